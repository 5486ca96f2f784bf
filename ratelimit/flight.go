package ratelimit

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Group commit: calls that come while Redis is busy with earlier ones gather in
// the next flight, which leaves as soon as one has landed. No timer holds a call
// back. Calls on the same key run the script once, with their costs in order of
// arrival; see decide.go for what a flight sends.

const (
	// maxFlying flights of a lane may be in the air: Redis works on one while the
	// replies of the other are handed out.
	maxFlying = 2
	// maxFlight bounds the calls of a flight, minSeats calls share one however few
	// there are.
	maxFlight = 4096
	minSeats  = 8
)

// lane carries the calls of one server, or of one slot of a cluster, where
// flights of different slots are joined by the Conn for each master.
type lane struct {
	mu      sync.Mutex
	waiting []*flight // the first leaves next
	flying  int
	room    int          // for the calls of the next flight: what the largest of late took
	callers atomic.Int64 // in flights, waiting or in the air

	apartUntil atomic.Int64 // nanoseconds after base, see apart.go; 0: not
}

// seats is how many calls a flight takes: half of those that are under way, so that
// Redis works on one half while this process works on the other.
func (ln *lane) seats() int { return min(max(minSeats, int(ln.callers.Load()+1)/2), maxFlight) }

// lanes finds the lane of a key.
type lanes struct {
	one    lane
	bySlot *[16384]atomic.Pointer[lane] // of a cluster
}

func (l *lanes) of(base string) *lane {
	if l.bySlot == nil {
		return &l.one
	}
	p := &l.bySlot[roundtrip.Slot(base)]
	if ln := p.Load(); ln != nil {
		return ln
	}
	p.CompareAndSwap(nil, new(lane))
	return p.Load()
}

// call is one caller's part of a flight.
type call struct {
	set   *policySet
	known *knownKey // nil: nothing
	base  string    // of its keys in Redis, see keys
	state string    // the key of the first policy's state, which begins with base
	// cost > 0 is taken whole, < 0 is up to -cost, 0 is a peek.
	cost  int64
	lease string // for sets with leases

	// The outcome, read after landing.
	subject *subject
	left    bool  // the caller left before take-off
	run     int32 // of the subject
	order   int64 // within the run
}

type flight struct {
	calls   []call
	inAir   bool
	until   time.Time // by when its calls need their outcome
	sent    time.Time
	landed  chan struct{} // nil if a caller flies alone
	subject []*subject
}

// fly sends one call and returns its flight and seat, once it has landed. The
// error is non-nil if the caller stopped waiting; took reports whether the call
// may have been sent by then.
func (c *core) fly(ctx context.Context, cl call) (f *flight, seat int, took bool, err error) {
	ln := c.lanes.of(cl.base)
	if ln.apart(cl.set) {
		return nil, 0, false, errApart
	}
	if c.cfg.NoCoalesce {
		f = &flight{calls: []call{cl}}
		c.send(ctx, f)
		return f, 0, true, nil
	}
	ln.callers.Add(1)
	defer ln.callers.Add(-1)
	ln.mu.Lock()
	if len(ln.waiting) == 0 && ln.flying < maxFlying {
		// Nobody to share with: the caller flies itself.
		ln.flying++
		ln.mu.Unlock()
		f = &flight{calls: []call{cl}}
		c.send(ctx, f)
		ln.mu.Lock()
		if len(ln.waiting) > 0 {
			go c.pilot(ln)
		} else {
			ln.flying--
		}
		ln.mu.Unlock()
		return f, 0, true, nil
	}
	seats := ln.seats()
	if i := slices.IndexFunc(ln.waiting, func(f *flight) bool { return len(f.calls) < seats }); i >= 0 {
		f = ln.waiting[i]
	} else {
		// Not seats, which are few while the callers of the last flight come back. In fours,
		// so that a small flight now and then does not make the next ones grow.
		f = &flight{landed: make(chan struct{}), calls: make([]call, 0, (ln.room+3)/4*4), until: time.Now().Add(c.cfg.Timeout)}
		ln.waiting = append(ln.waiting, f)
	}
	seat = len(f.calls)
	f.calls = append(f.calls, cl)
	ln.mu.Unlock()

	// Its first call's time bounds a flight, and the Conn ends it by then. So callers
	// have no timers of their own.
	if !await(ctx, f.landed) {
		return c.leave(ctx, ln, f, seat)
	}
	return f, seat, true, nil
}

// await waits for landed, and reports false if ctx ended first.
func await(ctx context.Context, landed <-chan struct{}) bool {
	done := ctx.Done()
	if done == nil {
		<-landed
		return true
	}
	select {
	case <-landed:
		return true
	case <-done:
		return false
	}
}

// leave gives up the seat of a caller whose context ended.
func (c *core) leave(ctx context.Context, ln *lane, f *flight, seat int) (_ *flight, _ int, took bool, _ error) {
	ln.mu.Lock()
	took = f.inAir
	if !took {
		f.calls[seat].left = true
	}
	ln.mu.Unlock()
	return f, seat, took, ctx.Err()
}

// pilot sends flights until nobody waits.
func (c *core) pilot(ln *lane) {
	for {
		ln.gather()
		ln.mu.Lock()
		if len(ln.waiting) == 0 {
			ln.flying--
			ln.mu.Unlock()
			return
		}
		f := ln.waiting[0]
		ln.waiting = slices.Delete(ln.waiting, 0, 1)
		f.inAir = true
		ln.room = max(len(f.calls), ln.room*31/32)
		ln.mu.Unlock()
		c.send(context.Background(), f)
		close(f.landed)
	}
}

// gather lets the callers that the last flight woke come back with their next
// call. It yields while calls keep coming and never sleeps.
func (ln *lane) gather() {
	seen := -1
	for range 5 {
		ln.mu.Lock()
		n := 0
		if len(ln.waiting) > 0 {
			n = len(ln.waiting[0].calls)
		}
		full := n >= ln.seats()
		ln.mu.Unlock()
		if n == seen || full {
			return
		}
		seen = n
		runtime.Gosched()
	}
}
