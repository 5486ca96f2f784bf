package roundtrip

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// clock is what is known of a server's clock. A TIME travels along with other commands
// now and then: the server's answer was made between the sending and the reply, so that
// server time less local time lies between two numbers. Of two such intervals both are
// true, and so is what they have in common, if each is widened by what clocks drift apart
// meanwhile (the intersection of Marzullo's algorithm, as NTP uses it: RFC 5905, section
// 11.2.1). If they have nothing in common, one of the clocks was set, or another server
// answers, and the newer holds.
//
// Local time is the time since base, which no setting of this host's clock changes.
type clock struct {
	known atomic.Pointer[offset]
	next  atomic.Int64 // when TIME is asked for again, nanoseconds after base
	mu    sync.Mutex
}

// offset is an interval in which server time less time since base is, in nanoseconds of
// the Unix epoch, at a time since base.
type offset struct{ low, high, at int64 }

const (
	clockEvery  = 10 * time.Second
	clockRetry  = time.Minute // after a refusal
	clockDrift  = 200         // parts in a million, twice what NTP takes for a clock that runs free
	clockMemory = 10 * time.Minute
)

// due reports whether the caller is to ask for TIME. Others are not told so meanwhile.
func (c *clock) due() bool {
	now := int64(time.Since(base))
	next := c.next.Load()
	return now >= next && c.next.CompareAndSwap(next, now+int64(clockEvery))
}

// doubt has the next call ask again.
func (c *clock) doubt() { c.next.Store(0) }

// at returns the interval at a later time.
func (o offset) later(now int64) offset {
	drift := (now - o.at) / 1_000_000 * clockDrift
	return offset{o.low - drift, o.high + drift, now}
}

// learn takes a TIME that was asked for at sent and there at came, both since base.
func (c *clock) learn(server, sent, came int64) {
	// TIME is in whole microseconds, cut off.
	seen := offset{server - came, server + 1000 - sent, came}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.known.Load(); k != nil && came-k.at < int64(clockMemory) {
		old := k.later(came)
		if low, high := max(seen.low, old.low), min(seen.high, old.high); low <= high {
			seen.low, seen.high = low, high
		}
	}
	c.known.Store(&seen)
}

// now returns the server's time.
func (c *clock) now() (t time.Time, bound time.Duration, ok bool) {
	k := c.known.Load()
	if k == nil {
		return time.Now(), 0, false
	}
	now := int64(time.Since(base))
	o := k.later(now)
	return time.Unix(0, now+o.low+(o.high-o.low)/2), time.Duration((o.high-o.low)/2 + 1), true
}

// ServerTime returns the time by the clock of the server that has key, which expires
// keys by it: within bound, provided that neither clock was set since it was last asked.
// It costs no command. What it rests on travels along with the first call to a server, and
// then with one each ten seconds, or the first after a failure.
//
// A server of a cluster that has not been asked yet is taken to have the clock of the one
// that was asked last, within a second: such servers have their time from NTP, as a rule,
// and of the first call nobody knows yet to which of them it goes.
//
// ok is false until a call has succeeded, and where TIME is not permitted; t is then this
// host's time.
func (c *Conn) ServerTime(key string) (t time.Time, bound time.Duration, ok bool) {
	t, bound, ok = c.eng.pairFor(key).clock.now()
	if last := c.eng.lastClock.Load(); !ok && last != nil {
		t, bound, ok = last.now()
		bound += time.Second
	}
	return t, bound, ok
}

// LearnServerTime asks for what ServerTime tells if that is not known yet: for what is
// stamped with it although no call went out before. It costs a round trip, once, and
// no more than one a minute where TIME is not permitted.
func (c *Conn) LearnServerTime(ctx context.Context, op, key string) {
	if _, _, ok := c.ServerTime(key); ok || int64(time.Since(base)) < c.eng.pairFor(key).clock.next.Load() {
		return
	}
	_ = c.Do(ctx, op, clockScript.Cmd(ctx, []string{key})) // with which TIME goes along
}

// RelearnServerTime has the next call to each server ask for the time again, and forget what
// was known. It is for tests that set a server's clock.
func RelearnServerTime(rdb redis.UniversalClient) {
	e := engineFor(rdb)
	forget := func(p *lanePair) { p.clock.known.Store(nil); p.clock.doubt() }
	forget(e.lanes)
	e.lastClock.Store(nil)
	e.byMaster.Range(func(_, p any) bool { forget(p.(*lanePair)); return true })
}

// clockScript asks the server that has a key, where a command without one goes to any.
var clockScript = NewScript(`return redis.call('TIME')`)

// processTimed is process with a TIME.
func (e *engine) processTimed(ctx context.Context, l *lane, cmds []redis.Cmder) {
	var ask redis.Cmder
	if e.cluster != nil {
		key := firstKey(cmds[0])
		if key == "" {
			e.process(ctx, cmds)
			return
		}
		ask = clockScript.Cmd(ctx, []string{key})
	} else {
		ask = redis.NewTimeCmd(ctx, "time")
	}
	all := make([]redis.Cmder, 0, len(cmds)+1)
	all = append(append(all, cmds...), ask)
	sent := int64(time.Since(base))
	e.process(ctx, all)
	if isUnknownScript(ask) {
		ask.(runsScript).useSource()
		ask.SetErr(nil)
		sent = int64(time.Since(base))
		e.process(ctx, []redis.Cmder{ask})
	}
	came := int64(time.Since(base))
	if t, ok := timeOf(ask); ok {
		l.clock.learn(t, sent, came)
		e.lastClock.Store(l.clock)
	} else if err := ask.Err(); err != nil && isReply(err) {
		l.clock.next.Store(came + int64(clockRetry))
	} else {
		l.clock.doubt()
	}
}

// timeOf reads a reply, in nanoseconds of the Unix epoch.
func timeOf(cmd redis.Cmder) (int64, bool) {
	if cmd.Err() != nil {
		return 0, false
	}
	switch cmd := cmd.(type) {
	case *redis.TimeCmd:
		return cmd.Val().UnixNano(), true
	case *ScriptCmd:
		parts, err := cmd.StringSlice()
		if err != nil || len(parts) != 2 {
			return 0, false
		}
		s, err1 := strconv.ParseInt(parts[0], 10, 64)
		us, err2 := strconv.ParseInt(parts[1], 10, 64)
		return s*1e9 + us*1e3, err1 == nil && err2 == nil
	}
	return 0, false
}
