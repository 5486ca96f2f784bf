package ratelimit

import (
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"
)

// local decides in this process while Redis can't be asked: the same algorithms
// on states in memory, with a share of each limit. All policies of a key are in
// one shard, so they too are taken together or not at all.
type local struct {
	share  float64
	seed   maphash.Seed
	shards [16]localShard
}

type localShard struct {
	mu    sync.Mutex
	limit int
	keys  map[string]*localKey
	// ends of the list of keys, by when they were last seen
	newest, oldest *localKey
}

type localKey struct {
	key          string
	newer, older *localKey
	states       map[string]*localState // by the policy's suffix

	// What Redis last said, from which states start.
	subject *subject
	totals  []int64
	landed  time.Duration
}

// localState is what a policy holds of a key.
type localState struct {
	snap  snap  // of all but logs and leases
	win   int64 // with which snap was made, µs
	tick  int64
	units []localUnits // logs: by time taken; leases: by end
}

type localUnits struct {
	at     int64 // µs
	n      int64
	ticket *localTicket // of a lease
}

// maxLocalUnits bounds a log in memory. Beyond it calls share entries, and end
// later than they had to.
const maxLocalUnits = 10_000

func newLocal(share float64, keys int) *local {
	l := &local{share: share, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].limit = max(1, keys/len(l.shards))
		l.shards[i].keys = make(map[string]*localKey)
	}
	return l
}

// scale returns n's share, at least 1.
func scale(n int64, share float64) int64 { return max(1, int64(math.Floor(float64(n)*share))) }

// scaleUp returns n's share, rounded up.
func scaleUp(n int64, share float64) int64 { return int64(math.Ceil(float64(n) * share)) }

// localPolicy returns the policy that a process keeps by itself, which may be one that
// New would refuse.
func localPolicy(p Policy, share float64) Policy {
	if p.algo != tokenBucket {
		p.limit = scale(p.limit, share)
		return p
	}
	// The rate is a share of at least 1, so that it needs a longer period if it is small;
	// both lose less than a thousandth by being whole.
	p.burst = scale(p.burst, share)
	us := float64(p.window.Microseconds())
	rate := float64(p.limit) * share
	if rate < 1000 {
		longer := min(1000/rate, float64(maxWindow.Microseconds())/us)
		us, rate = us*longer, rate*longer
	}
	p.limit = max(1, int64(rate))
	for k := int64(1); ; k *= 10 {
		p.window = time.Duration((int64(us)+k-1)/k*k) * time.Microsecond
		if p.window > maxWindow {
			p.window = maxWindow
		}
		if p.check() == nil || k > int64(us) {
			return p
		}
	}
}

func (l *local) shard(key string) *localShard {
	return &l.shards[maphash.String(l.seed, key)%uint64(len(l.shards))]
}

// touch returns the entry of key and makes it the newest. s.mu must be held.
func (s *localShard) touch(key string) *localKey {
	k := s.keys[key]
	switch {
	case k == nil:
		k = &localKey{key: key}
		s.keys[key] = k
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
	if len(s.keys) > s.limit {
		delete(s.keys, s.oldest.key)
		s.unlink(s.oldest)
	}
	return k
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

// note keeps what Redis said about key, for a warm start.
func (l *local) note(key string, sub *subject, totals []int64, landed time.Duration) {
	s := l.shard(key)
	s.mu.Lock()
	k := s.touch(key)
	k.subject, k.totals, k.landed = sub, totals, landed
	k.states = nil
	s.mu.Unlock()
}

// clear forgets key.
func (l *local) clear(key string) {
	s := l.shard(key)
	s.mu.Lock()
	if k := s.keys[key]; k != nil {
		delete(s.keys, key)
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
	s := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.touch(key)
	sub := &subject{set: set.local, now: now, runs: []run{{cost: cost, calls: 1}}}
	states := make([]*localState, len(set.local.policies))
	for i := range set.local.policies {
		p := &set.local.policies[i]
		states[i] = k.state(p, set, l.share)
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

// state returns the state of p, made from what Redis last said if it is new.
func (k *localKey) state(p *compiled, set *policySet, share float64) *localState {
	if st := k.states[p.suffix]; st != nil {
		return st
	}
	st := &localState{win: p.win, tick: p.tickUS}
	if k.states == nil {
		k.states = make(map[string]*localState)
	}
	k.states[p.suffix] = st
	if k.subject == nil {
		return st
	}
	from := k.subject
	// The server's clock and ours may differ.
	shift := micros(k.landed) - from.now
	for i := range from.snaps {
		was := &from.set.policies[i]
		if was.suffix != p.suffix {
			continue
		}
		s, total := from.snaps[i], k.totals[i]
		switch p.algo {
		case fixedWindow:
			st.snap = snap{x: s.x + shift, y: scaleUp(s.y+total, share)}
			if p.offset != anchored {
				st.snap.x = s.x
			}
		case slidingWindow:
			st.snap = snap{x: s.x, y: scaleUp(s.y, share), z: scaleUp(s.z+total, share)}
			st.win = was.win
		case tokenBucket:
			used := scaleUp(ceilDiv(s.y, was.wt)+total, share)
			st.snap = snap{x: (s.x*was.tickUS + shift) / p.tickUS, y: min(used, p.burst) * p.wt}
		case slidingLog:
			if used := scaleUp(s.x+total, share); used > 0 {
				st.units = []localUnits{{at: max(s.z, from.now) + shift, n: used}}
			}
		case concurrency:
			if used := scaleUp(s.x+total, share); used > 0 {
				st.units = []localUnits{{at: max(s.z, from.now+was.win) + shift, n: used}}
			}
		}
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
		if last := len(st.units) - 1; last+1 >= maxLocalUnits {
			st.units[last].at = v.logTime(now)
			st.units[last].n += n
			return
		}
		st.units = append(st.units, localUnits{at: v.logTime(now), n: n})
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
				if st.units[j].at == k.at || j == len(st.units)-1 && len(st.units) >= maxLocalUnits {
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
