package ratelimit

import (
	"crypto/sha256"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// local decides in this process while Redis can't be asked: the same algorithms
// on states in memory, with a share of each limit. All policies of a key are in
// one shard, so they too are taken together or not at all. What was admitted is
// remembered until it expires, whatever Redis does in between: a Redis that comes and
// goes does not renew the share.
type local struct {
	shards [16]localShard
}

// localID is a digest of a key: who sends long keys must not fill the memory.
type localID [16]byte

type localShard struct {
	mu    sync.Mutex
	limit int // keys
	size  int // bytes, about; at most limit times localKeyBytes
	keys  map[localID]*localKey
	// ends of the list of keys, by when they were last seen
	newest, oldest *localKey
}

type localKey struct {
	id           localID
	newer, older *localKey
	size         int
	states       map[string]*localState // by the policy's suffix
}

// localKeyBytes bounds what a key takes on average, map and list included; one with few
// policies takes less than half. localStateBytes and localUnitBytes are what its parts take.
const (
	localKeyBytes   = 1024
	localEmptyBytes = 320
	localStateBytes = 320
	localUnitBytes  = 32
)

// localState is what a policy holds of a key.
type localState struct {
	snap  snap  // of all but logs and leases
	win   int64 // with which snap was made, µs
	tick  int64
	units []localUnits // logs: by time taken; leases: by end
}

type localUnits struct {
	at     int64 // µs; of a log: when the last of them were taken
	from   int64 // of a log: when the first were
	n      int64
	ticket *localTicket // of a lease
}

// maxLocalUnits bounds a log in memory, to twice as much. Beyond it calls share entries,
// and end later than they had to, by a part in maxLocalUnits of the window at most.
const maxLocalUnits = 64

func newLocal(keys int) *local {
	l := new(local)
	for i := range l.shards {
		l.shards[i].limit = max(1, keys/len(l.shards))
		l.shards[i].keys = make(map[localID]*localKey)
	}
	return l
}

// scale returns n's share, at least 1.
func scale(n int64, share float64) int64 { return max(1, int64(math.Floor(float64(n)*share))) }

// localPolicy returns the policy that a process keeps by itself, which may be one that
// New would refuse.
func localPolicy(p Policy, share float64) Policy {
	if p.algo != tokenBucket {
		p.limit = scale(p.limit, share)
		return p
	}
	// The numbers that a bucket is computed with have to be small where its burst is large,
	// see numbers. So the share of the rate is the best fraction of small whole numbers below
	// it, in units a tick, for the finest tick that loses less than a thousandth.
	p.burst = scale(p.burst, share)
	rate := min(float64(p.limit)*share/float64(p.window.Microseconds()), float64(p.burst)) // a µs
	longestPeriod := maxWindow.Microseconds()
	part, had := p, 0.0
	part.limit, part.window, part.burst = 1, maxWindow, min(p.burst, int64(longest/maxWindow)) // where the rate is smaller
	for tick := int64(1); tick <= longestPeriod; tick *= 10 {
		n, d := below(rate*float64(tick), maxUnits, min(longestPeriod/tick, maxExact/2/p.burst))
		if n == 0 {
			continue
		}
		q, period := p, time.Duration(d*tick)*time.Microsecond
		times := int64((minWindow + period - 1) / period)
		q.limit, q.window = n*times, period*time.Duration(times)
		// Rounded down, a rate may take a little longer than is allowed to fill its burst.
		q.burst = max(1, int64(min(float64(q.burst), float64(longest)/float64(q.window)*float64(q.limit)*(1-1e-9))))
		if got := float64(n) / float64(d*tick); got > had && q.check() == nil {
			part, had = q, got
		}
		if had > 0.999*rate {
			break
		}
	}
	return part
}

// below returns the largest fraction n/d that is not above x, for n up to mostN and d up to
// mostD; 0/1 if there is none above 0. It walks down the Stern-Brocot tree, many steps of
// one direction at a time (Graham, Knuth, Patashnik, Concrete Mathematics, section 4.5).
func below(x float64, mostN, mostD int64) (n, d int64) {
	upN, upD := int64(1), int64(0) // above x
	d = 1
	if mostD < 1 {
		return 0, 1
	}
	const close = 1e-13 // what a float64 has lost by now
	for {
		short, over := x*float64(d)-float64(n), float64(upN)-x*float64(upD)
		if short <= close*x*float64(d) || over <= close*x*float64(upD) {
			// Where x is the upper one but for the error of a float64, that is x itself.
			if over <= close*x*float64(upD) && upD > 0 && upN <= mostN && upD <= mostD {
				return upN, upD
			}
			return n, d
		}
		up := min(short/over, float64(mostN-n)/float64(upN))
		if upD > 0 {
			up = min(up, float64(mostD-d)/float64(upD))
		}
		n, d = n+int64(up)*upN, d+int64(up)*upD
		short = x*float64(d) - float64(n)
		down := 0.0
		if short > close*x*float64(d) {
			down = min(over/short, float64(mostD)) // further, its denominator is too large
			if whole := float64(int64(down)); whole == over/short {
				down = whole - 1 // x itself would be above x
			}
			upN, upD = upN+int64(down)*n, upD+int64(down)*d
		}
		if up < 1 && down < 1 || upD > mostD {
			return n, d
		}
	}
}

func (l *local) shard(key string) (*localShard, localID) {
	sum := sha256.Sum256([]byte(key))
	id := localID(sum[:])
	return &l.shards[sum[31]%uint8(len(l.shards))], id
}

// touch returns the entry of id and makes it the newest. s.mu must be held.
func (s *localShard) touch(id localID) *localKey {
	k := s.keys[id]
	switch {
	case k == nil:
		k = &localKey{id: id, size: localEmptyBytes}
		s.size += k.size
		s.keys[id] = k
	case k == s.newest:
		return k
	default:
		s.unlink(k)
	}
	k.older = s.newest
	if s.newest != nil {
		s.newest.newer = k
	}
	s.newest = k
	if s.oldest == nil {
		s.oldest = k
	}
	s.shrink()
	return k
}

// shrink forgets the keys that were not seen for longest, until the bounds are kept.
func (s *localShard) shrink() {
	for s.oldest != s.newest && (len(s.keys) > s.limit || s.size > s.limit*localKeyBytes) {
		delete(s.keys, s.oldest.id)
		s.size -= s.oldest.size
		s.unlink(s.oldest)
	}
}

// measure notes how much k takes by now.
func (s *localShard) measure(k *localKey) {
	size := localEmptyBytes
	for _, st := range k.states {
		size += localStateBytes + localUnitBytes*cap(st.units)
	}
	s.size += size - k.size
	k.size = size
	s.shrink()
}

func (s *localShard) unlink(k *localKey) {
	if k.newer != nil {
		k.newer.older = k.older
	} else {
		s.newest = k.older
	}
	if k.older != nil {
		k.older.newer = k.newer
	} else {
		s.oldest = k.newer
	}
	k.newer, k.older = nil, nil
}

// clear forgets key.
func (l *local) clear(key string) {
	s, id := l.shard(key)
	s.mu.Lock()
	if k := s.keys[id]; k != nil {
		delete(s.keys, id)
		s.size -= k.size
		s.unlink(k)
	}
	s.mu.Unlock()
}

// micros is a clock that is never stepped.
func micros(since time.Duration) int64 { return base.UnixMicro() + since.Microseconds() }

// decide decides about cost units for key under those policies of set that have
// a local one.
func (l *local) decide(key string, set *policySet, cost int64, reserve *Reservation) Result {
	now := micros(time.Since(base))
	s, id := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.touch(id)
	defer s.measure(k)
	sub := &subject{set: set.local, now: now, runs: []run{{cost: cost, calls: 1}}}
	states := make([]*localState, len(set.local.policies))
	for i := range set.local.policies {
		p := &set.local.policies[i]
		states[i] = k.state(p)
		sub.snaps = append(sub.snaps, states[i].at(p, now))
	}
	np := len(states)
	sub.replay(nil, make([]int64, np), make([]int64, set.local.numbers()))
	r := &sub.runs[0]
	for i := range states {
		if p := &set.local.policies[i]; p.listed() {
			if need := max(cost, 1); need <= p.cap {
				r.when()[i] = states[i].when(p, sub.snaps[i], r.took()[i], need, now)
			}
			r.over()[i] = states[i].when(p, sub.snaps[i], r.took()[i], 1, now)
		}
	}
	var ticket *localTicket
	if reserve != nil && r.granted > 0 {
		ticket = &localTicket{shard: s, took: make([]localTaken, len(states))}
		reserve.local = ticket
	}
	for i, st := range states {
		if n := r.took()[i]; n > 0 {
			st.take(&set.local.policies[i], sub.snaps[i], n, now, ticket)
			if ticket != nil {
				ticket.took[i] = localTaken{state: st, policy: &set.local.policies[i], n: n, x: sub.snaps[i].x, at: sub.snaps[i].logTime(now)}
			}
		}
	}
	return sub.result(r, 0, nil)
}

// state returns the state of p.
func (k *localKey) state(p *compiled) *localState {
	st := k.states[p.suffix]
	if st == nil {
		st = &localState{win: p.win, tick: p.tickUS}
		if k.states == nil {
			k.states = make(map[string]*localState, 1)
		}
		k.states[strings.Clone(p.suffix)] = st
	}
	return st
}

// at brings the state to now and describes it as the scripts do.
func (st *localState) at(p *compiled, now int64) snap {
	s := &st.snap
	switch p.algo {
	case fixedWindow:
		start := now
		if p.offset != anchored {
			start = now - floorMod(now-max(p.offset, 0), p.win)
		}
		if s.y == 0 || now-s.x >= p.win || s.x < start && p.offset != anchored {
			*s = snap{x: start}
		}
	case tokenBucket:
		if st.win != p.win || st.tick != p.tickUS {
			s.y = ceilDiv(s.y, st.win/st.tick) * p.wt
			s.x = s.x * st.tick / p.tickUS
			st.win, st.tick = p.win, p.tickUS
		}
		t := now / p.tickUS
		if gone := t - s.x; gone >= ceilDiv(s.y, p.rate) {
			s.y = 0
		} else if gone > 0 {
			s.y -= gone * p.rate
		}
		if s.y == 0 || t > s.x {
			s.x = t
		}
	case slidingWindow:
		start := now - floorMod(now, p.win)
		switch {
		case st.win != p.win:
			*s = snap{x: start, z: s.y + s.z}
			st.win = p.win
		case s.x == start-p.win:
			*s = snap{x: start, y: s.z}
		case s.x < start:
			*s = snap{x: start}
		}
	default:
		limit := now
		if p.algo == slidingLog {
			limit = now - p.win
		}
		ended := 0
		for ended < len(st.units) && st.units[ended].at <= limit {
			ended++
		}
		st.units = slices.Delete(st.units, 0, ended)
		var v snap
		for _, u := range st.units {
			v.x += u.n
		}
		if n := len(st.units); n > 0 {
			v.y, v.z = st.units[0].at, st.units[n-1].at
		}
		return v
	}
	return *s
}

func floorMod(a, b int64) int64 { return a - floorDiv(a, b)*b }

// when returns the time at which need units fit, for logs and leases, after took
// were taken on top of v.
func (st *localState) when(p *compiled, v snap, took, need, now int64) int64 {
	over := v.x + took + need - p.limit
	for _, u := range st.units {
		if p.algo == concurrency && took > 0 && u.at > now+p.win {
			if over -= took; over <= 0 {
				return now + p.win
			}
			took = 0
		}
		if over -= u.n; over <= 0 {
			if p.algo == slidingLog {
				return u.at + p.win
			}
			return u.at
		}
	}
	return now + p.win
}

// take adds n units.
func (st *localState) take(p *compiled, v snap, n, now int64, ticket *localTicket) {
	switch p.algo {
	case fixedWindow:
		st.snap.y += n
	case tokenBucket:
		st.snap.y += n * p.wt
	case slidingWindow:
		st.snap.z += n
	case slidingLog:
		if last := len(st.units) - 1; last+1 >= maxLocalUnits && now-st.units[last].from < p.win/maxLocalUnits {
			st.units[last].at = v.logTime(now)
			st.units[last].n += n
			return
		}
		st.units = append(st.units, localUnits{at: v.logTime(now), from: now, n: n})
	case concurrency:
		u := localUnits{at: now + p.win, n: n, ticket: ticket}
		i, _ := slices.BinarySearchFunc(st.units, u.at+1, func(a localUnits, at int64) int { return int(max(-1, min(1, a.at-at))) })
		st.units = slices.Insert(st.units, i, u)
	}
}

// localTicket is what a Reservation took in this process.
type localTicket struct {
	shard *localShard
	took  []localTaken
}

type localTaken struct {
	state  *localState
	policy *compiled
	n      int64
	x      int64 // snap.x when taken
	at     int64
}

// settle gives back n units of each policy, as far as they still count, and ends
// leases.
func (t *localTicket) settle(n int64) {
	t.shard.mu.Lock()
	defer t.shard.mu.Unlock()
	for i := range t.took {
		k := &t.took[i]
		st, back := k.state, min(n, k.n)
		if st == nil {
			continue
		}
		switch k.policy.algo {
		case fixedWindow:
			if st.snap.x == k.x {
				st.snap.y = max(0, st.snap.y-back)
			}
		case slidingWindow:
			if st.snap.x == k.x {
				st.snap.z = max(0, st.snap.z-back)
			} else if st.snap.x == k.x+k.policy.win {
				st.snap.y = max(0, st.snap.y-back)
			}
		case tokenBucket:
			drained := max(0, micros(time.Since(base))-k.at) / k.policy.tickUS * k.policy.rate
			st.snap.y = max(0, st.snap.y-max(0, back*k.policy.wt-drained))
		case slidingLog:
			for j := len(st.units) - 1; j >= 0 && back > 0 && st.units[j].at >= k.at; j-- {
				if st.units[j].at == k.at {
					d := min(back, st.units[j].n)
					st.units[j].n -= d
					back -= d
				}
			}
		case concurrency:
			st.units = slices.DeleteFunc(st.units, func(u localUnits) bool { return u.ticket == t })
		}
	}
}
