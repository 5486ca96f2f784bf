package limitmodel

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Times and durations are in microseconds; those of the model count from the Unix
// epoch.

// Algo is an algorithm.
type Algo byte

// The algorithms.
const (
	Fixed   Algo = 'f'
	Sliding Algo = 'c'
	Log     Algo = 'l'
	Bucket  Algo = 'b'
	Leases  Algo = 'n'
)

// Policy is a limit as the model knows it.
type Policy struct {
	Algo   Algo
	Name   string
	Limit  int64 // of a bucket: the burst
	Window int64 // of a bucket: the period; of leases: their length
	Rate   int64 // of a bucket: units a period
	Shadow bool
	// Aligned windows start at multiples of their length plus Offset.
	Aligned bool
	Offset  int64
}

// window is the time after which Limit units are free again.
func (p Policy) window() int64 {
	if p.Algo != Bucket {
		return p.Window
	}
	w := mul(p.Limit, p.Window)
	return ceilDiv(w, big.NewInt(p.Rate)).Int64()
}

// take is what one call holds of a state.
type take struct {
	id int // of the call
	n  int64
}

// state is what is used of one policy by one subject.
type state interface {
	clone() state
	String() string
	// dropped reports whether the state is so far in the future that the clock must
	// have been wrong when it was written.
	dropped(p Policy, now int64) bool
	// under makes the state what it is under p at now: new numbers hold at once for
	// what was taken before, but for those of a sliding window.
	under(p Policy, now int64)
	// used is the number of units that count at t if nobody calls, rounded up.
	used(p Policy, t int64) int64
	// idle reports whether nothing is used at t.
	idle(p Policy, t int64) bool
	// take adds n units of call id at now, by policy p.
	take(c *chooser, p Policy, now int64, id int, n int64)
	// giveBack takes away up to n units of call id, as far as they count at now.
	giveBack(c *chooser, p Policy, now int64, id int, n int64)
	// mistake takes away n units of others, for those of a call whose key was lost and whose
	// window came again, as a clock that was stepped back made it.
	mistake(c *chooser, n int64)
	// refund takes away the n units that were taken last, of a bucket those that
	// would drain next.
	refund(c *chooser, p Policy, now int64, n int64)
}

func newState(a Algo) state {
	switch a {
	case Fixed:
		return &fixed{}
	case Sliding:
		return &sliding{}
	case Log:
		return &log{}
	case Bucket:
		return &bucket{}
	case Leases:
		return &leases{}
	}
	panic("limitmodel: unknown algorithm")
}

func sum(ts []take) (n int64) {
	for _, t := range ts {
		n += t.n
	}
	return n
}

// given is whether units were given back to a window, and whether others were refunded
// after that: then what a reservation gets may be less than is left of it.
type given struct{ some, vague bool }

func (g *given) refunded() { g.vague = g.vague || g.some }

// back returns how many of n units a call gets back of the has that it holds.
func (g *given) back(c *chooser, n, has int64) int64 {
	if n = min(n, has); n > 0 {
		if g.vague {
			n -= int64(c.choose(int(n) + 1))
		}
		g.some = true
	}
	return n
}

// of returns how many of the units are of call id.
func of(ts []take, id int) (n int64) {
	for _, t := range ts {
		if t.id == id {
			n += t.n
		}
	}
	return n
}

// without takes up to n units of call id out of ts.
func without(ts []take, id int, n int64) []take {
	for i := range ts {
		if ts[i].id == id {
			k := min(n, ts[i].n)
			ts[i].n -= k
			n -= k
		}
	}
	return slices.DeleteFunc(ts, func(t take) bool { return t.n == 0 })
}

// withoutNewest takes up to n units off the end of ts and returns how many are
// still to be taken.
func withoutNewest(ts []take, n int64) ([]take, int64) {
	for n > 0 && len(ts) > 0 {
		last := &ts[len(ts)-1]
		k := min(n, last.n)
		last.n -= k
		n -= k
		if last.n == 0 {
			ts = ts[:len(ts)-1]
		}
	}
	return ts, n
}

func floorTo(t, window, offset int64) int64 {
	r := (t - offset) % window
	if r < 0 {
		r += window
	}
	return t - r
}

func mul(a, b int64) *big.Int { return new(big.Int).Mul(big.NewInt(a), big.NewInt(b)) }

func ceilDiv(a, b *big.Int) *big.Int {
	q, r := new(big.Int).QuoRem(a, b, new(big.Int))
	if r.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

// fixed is one window.
type fixed struct {
	start, window int64
	written       int64 // the window under which units were taken last
	takes         []take
	given         given
}

func (s *fixed) clone() state { c := *s; c.takes = slices.Clone(s.takes); return &c }
func (s *fixed) String() string {
	return fmt.Sprintf("f start=%d window=%d %v %v", s.start, s.window, s.takes, s.given)
}
func (s *fixed) dropped(p Policy, now int64) bool {
	x := *s
	x.under(p, now)
	return x.start-now > p.Window
}
func (s *fixed) under(p Policy, now int64) {
	if s.window == p.Window {
		return
	}
	s.window = p.Window
	if p.Aligned { // it counts in that window of the new length in which the old one began
		s.start = floorTo(s.start, p.Window, p.Offset)
	}
	if s.start+s.window <= now {
		s.takes = nil
	}
}
func (s *fixed) idle(p Policy, t int64) bool { return s.used(p, t) == 0 }
func (s *fixed) used(p Policy, t int64) int64 {
	if t >= s.start+s.window {
		return 0
	}
	return sum(s.takes)
}

func (s *fixed) take(c *chooser, p Policy, now int64, id int, n int64) {
	if p.Aligned && s.written != p.Window { // what was reserved under another length is not given back
		for i := range s.takes {
			s.takes[i].id = changed(s.takes[i].id)
		}
	}
	s.written = p.Window
	if s.idle(p, now) {
		s.takes, s.given = nil, given{}
		s.start, s.window = now, p.Window
		if p.Aligned {
			s.start = floorTo(now, p.Window, p.Offset)
		}
	}
	s.takes = append(s.takes, take{id, n})
}

func (s *fixed) giveBack(c *chooser, p Policy, now int64, id int, n int64) {
	if s.start+p.Window > now || c.choose(2) == 1 { // other limits may still count them
		s.takes = without(s.takes, id, s.given.back(c, n, of(s.takes, id)))
	}
}

func (s *fixed) mistake(c *chooser, n int64) { s.takes, _ = withoutNewest(s.takes, n) }

func (s *fixed) refund(c *chooser, p Policy, now int64, n int64) {
	if s.start+p.Window > now || c.choose(2) == 1 { // as in giveBack
		s.given.refunded()
		s.takes, _ = withoutNewest(s.takes, n)
	}
}

// sliding is two aligned windows: what was taken in the one before counts by the
// share of it that a window ending now still covers.
type sliding struct {
	start, window int64
	prev, cur     []take
	given         given
}

func (s *sliding) clone() state {
	c := *s
	c.prev, c.cur = slices.Clone(s.prev), slices.Clone(s.cur)
	return &c
}

func (s *sliding) String() string {
	return fmt.Sprintf("c start=%d window=%d prev=%v cur=%v %v", s.start, s.window, s.prev, s.cur, s.given)
}
func (s *sliding) under(Policy, int64)              {}
func (s *sliding) dropped(p Policy, now int64) bool { return s.start-now > s.window }
func (s *sliding) idle(p Policy, t int64) bool      { return s.used(p, t) == 0 }

// at returns the windows as they are at t.
func (s *sliding) at(t int64) (start int64, prev, cur []take) {
	switch t = max(t, s.start); {
	case s.window == 0 || t >= s.start+2*s.window:
		return 0, nil, nil
	case t >= s.start+s.window:
		return s.start + s.window, s.cur, nil
	}
	return s.start, s.prev, s.cur
}

func (s *sliding) used(p Policy, t int64) int64 {
	start, prev, cur := s.at(t)
	if len(prev) == 0 {
		return sum(cur)
	}
	left := start + s.window - max(t, start)
	return sum(cur) + ceilDiv(mul(sum(prev), left), big.NewInt(s.window)).Int64()
}

func (s *sliding) take(c *chooser, p Policy, now int64, id int, n int64) {
	start, prev, cur := s.at(now)
	if s.window != p.Window && s.used(p, now) > 0 {
		// What still counts counts as taken now.
		all := slices.Clone(cur)
		for i := range all {
			all[i].id = changed(all[i].id)
		}
		if more := s.used(p, now) - sum(cur); more > 0 {
			all = append([]take{{carried, more}}, all...)
		}
		start, prev, cur = floorTo(max(now, start), p.Window, 0), nil, all
	}
	if len(prev)+len(cur) == 0 {
		start = floorTo(now, p.Window, 0)
	}
	s.start, s.window = start, p.Window
	s.prev, s.cur = slices.Clone(prev), append(slices.Clone(cur), take{id, n})
}

func (s *sliding) giveBack(c *chooser, p Policy, now int64, id int, n int64) {
	if s.idle(p, now) && (!c.back || c.choose(2) == 0) {
		return
	}
	// A call is in one of them.
	if has := of(s.cur, id); has > 0 {
		s.cur = without(s.cur, id, s.given.back(c, n, has))
	} else if now < s.start+s.window {
		s.prev = without(s.prev, id, s.given.back(c, n, of(s.prev, id)))
	}
}

func (s *sliding) mistake(c *chooser, n int64) {
	if c.choose(2) == 0 {
		s.cur, _ = withoutNewest(s.cur, n)
	} else {
		s.prev, _ = withoutNewest(s.prev, n)
	}
}

func (s *sliding) refund(c *chooser, p Policy, now int64, n int64) {
	if s.idle(p, now) && (!c.back || c.choose(2) == 0) { // as in giveBack
		return
	}
	s.given.refunded()
	if s.cur, n = withoutNewest(s.cur, n); now < s.start+s.window {
		s.prev, _ = withoutNewest(s.prev, n)
	}
}

// carried is the id of units whose call is not known any more, and changed that of
// units of call id that were taken under other numbers, which it does not get back.
const carried = -1

func changed(id int) int {
	if id < 0 {
		return id
	}
	return -id - 2
}

// log is an entry for each call.
type log struct {
	window  int64
	entries []entry
}

type entry struct {
	time int64
	take
}

func (s *log) clone() state { c := *s; c.entries = slices.Clone(s.entries); return &c }
func (s *log) String() string {
	return fmt.Sprintf("l window=%d %v", s.window, s.entries)
}

func (s *log) newest() int64 {
	if len(s.entries) == 0 {
		return 0
	}
	return s.entries[len(s.entries)-1].time
}
func (s *log) dropped(p Policy, now int64) bool { return s.newest()-now > p.Window }
func (s *log) under(p Policy, now int64)        { s.window = p.Window }
func (s *log) idle(p Policy, t int64) bool      { return s.used(p, t) == 0 }
func (s *log) used(p Policy, t int64) (n int64) {
	for _, e := range s.entries {
		if e.time+s.window > t {
			n += e.n
		}
	}
	return n
}

func (s *log) trim(now int64) {
	s.entries = slices.DeleteFunc(s.entries, func(e entry) bool { return e.time+s.window <= now })
}

func (s *log) take(c *chooser, p Policy, now int64, id int, n int64) {
	s.trim(now)
	s.window = p.Window
	t := max(now, s.newest()+1)
	if c.merged && s.newest() >= now && c.choose(2) == 1 {
		t = s.newest() // one entry with the call before
	}
	s.entries = append(s.entries, entry{t, take{id, n}})
}

func (s *log) giveBack(c *chooser, p Policy, now int64, id int, n int64) {
	for i := range s.entries {
		if e := &s.entries[i]; e.id == id && e.time+p.Window > now {
			k := min(n, e.n)
			e.n -= k
			n -= k
		}
	}
	s.entries = slices.DeleteFunc(s.entries, func(e entry) bool { return e.n == 0 })
}

func (s *log) mistake(*chooser, int64) {} // no two are the same

func (s *log) refund(c *chooser, p Policy, now int64, n int64) {
	for i := len(s.entries) - 1; i >= 0 && n > 0; i-- {
		if e := &s.entries[i]; e.time+p.Window > now {
			k := min(n, e.n)
			e.n -= k
			n -= k
		}
	}
	s.entries = slices.DeleteFunc(s.entries, func(e entry) bool { return e.n == 0 })
}

// bucket is a queue of units that drain, first in, first out. Its amounts are in
// parts of a unit, of which a unit has as many as the period has microseconds: so
// many parts drain in a microsecond as units in a period.
type bucket struct {
	since, per, rate int64
	queue            []amount
}

type amount struct {
	id    int
	parts *big.Int
}

func (s *bucket) clone() state {
	c := *s
	c.queue = make([]amount, len(s.queue))
	for i, a := range s.queue {
		c.queue[i] = amount{a.id, new(big.Int).Set(a.parts)}
	}
	return &c
}

func (s *bucket) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "b since=%d per=%d rate=%d", s.since, s.per, s.rate)
	for _, a := range s.queue {
		fmt.Fprintf(&b, " %d:%v", a.id, a.parts)
	}
	return b.String()
}

func (s *bucket) dropped(p Policy, now int64) bool { return s.since-now > p.window() }

// level is what is in the queue at t.
func (s *bucket) level(t int64) *big.Int {
	l := new(big.Int)
	for _, a := range s.queue {
		l.Add(l, a.parts)
	}
	if t > s.since {
		l.Sub(l, mul(t-s.since, s.rate))
	}
	if l.Sign() < 0 {
		l.SetInt64(0)
	}
	return l
}
func (s *bucket) idle(p Policy, t int64) bool { return s.level(t).Sign() == 0 }
func (s *bucket) used(p Policy, t int64) int64 {
	if s.per == 0 {
		return 0
	}
	return ceilDiv(s.level(t), big.NewInt(s.per)).Int64()
}

// under converts what is in the queue to the numbers of p: whole units, rounded up.
// What the rounding adds is first in the queue.
func (s *bucket) under(p Policy, now int64) {
	if s.per == p.Window && s.rate == p.Rate {
		return
	}
	if len(s.queue) > 0 && reduced(s.per, s.rate) != reduced(p.Window, p.Rate) {
		old, per := big.NewInt(s.per), big.NewInt(p.Window)
		all := ceilDiv(s.level(s.since), old)
		all.Mul(all, per)
		for i := range s.queue {
			a := s.queue[i].parts
			a.Mul(a, per).Div(a, old)
			all.Sub(all, a)
		}
		s.queue[0].parts.Add(s.queue[0].parts, all)
	}
	if len(s.queue) > 0 && s.per != p.Window && reduced(s.per, s.rate) == reduced(p.Window, p.Rate) {
		for i := range s.queue { // exact, as the rate is a multiple alike
			a := s.queue[i].parts
			a.Mul(a, big.NewInt(p.Window)).Div(a, big.NewInt(s.per))
		}
	}
	for i := range s.queue {
		s.queue[i].id = changed(s.queue[i].id)
	}
	s.per, s.rate = p.Window, p.Rate
}

// reduced is the period without the divisors that it has in common with the rate:
// levels under limits that have it alike need no rounding.
func reduced(per, rate int64) int64 {
	return per / new(big.Int).GCD(nil, nil, big.NewInt(per), big.NewInt(rate)).Int64()
}

// drain lets the queue run until now.
func (s *bucket) drain(now int64) {
	if now <= s.since {
		return
	}
	out := mul(now-s.since, s.rate)
	s.since = now
	for len(s.queue) > 0 && out.Sign() > 0 {
		a := s.queue[0].parts
		if a.Cmp(out) > 0 {
			a.Sub(a, out)
			return
		}
		out.Sub(out, a)
		s.queue = s.queue[1:]
	}
}

func (s *bucket) take(c *chooser, p Policy, now int64, id int, n int64) {
	if s.drain(now); len(s.queue) == 0 {
		s.since, s.per, s.rate = now, p.Window, p.Rate
	}
	s.queue = append(s.queue, amount{id, mul(n, s.per)})
}

func (s *bucket) giveBack(c *chooser, p Policy, now int64, id int, n int64) {
	d := s.clone().(*bucket)
	d.drain(now)
	has := func(id int) bool {
		return slices.ContainsFunc(d.queue, func(a amount) bool { return a.id == id })
	}
	if has(changed(id)) && c.choose(2) == 1 {
		id = changed(id)
	}
	if !has(id) {
		return
	}
	left := mul(n, d.per)
	for _, a := range d.queue {
		if a.id == id {
			subUpTo(a.parts, left)
		}
	}
	d.queue = slices.DeleteFunc(d.queue, func(a amount) bool { return a.parts.Sign() == 0 })
	*s = *d
}

func (s *bucket) mistake(*chooser, int64) {} // no two are the same

func (s *bucket) refund(c *chooser, p Policy, now int64, n int64) {
	d := s.clone().(*bucket)
	d.under(p, now)
	if d.idle(p, now) {
		return
	}
	d.drain(now)
	left := mul(n, d.per)
	for i := range d.queue {
		subUpTo(d.queue[i].parts, left)
	}
	d.queue = slices.DeleteFunc(d.queue, func(a amount) bool { return a.parts.Sign() == 0 })
	*s = *d
}

// subUpTo takes from both what both have.
func subUpTo(a, b *big.Int) {
	k := new(big.Int).Set(b)
	if a.Cmp(k) < 0 {
		k.Set(a)
	}
	a.Sub(a, k)
	b.Sub(b, k)
}

// leases are units held.
type leases struct {
	held []lease
}

type lease struct {
	end int64
	take
}

func (s *leases) clone() state { c := *s; c.held = slices.Clone(s.held); return &c }
func (s *leases) String() string {
	return fmt.Sprintf("n %v", s.held)
}
func (s *leases) under(Policy, int64) {}
func (s *leases) dropped(p Policy, now int64) bool {
	return slices.ContainsFunc(s.held, func(l lease) bool { return l.end-now > 2*p.Window })
}
func (s *leases) idle(p Policy, t int64) bool { return s.used(p, t) == 0 }
func (s *leases) used(p Policy, t int64) (n int64) {
	for _, l := range s.held {
		if l.end > t {
			n += l.n
		}
	}
	return n
}

func (s *leases) take(c *chooser, p Policy, now int64, id int, n int64) {
	s.held = slices.DeleteFunc(s.held, func(l lease) bool { return l.end <= now })
	s.held = append(s.held, lease{now + p.Window, take{id, n}})
}

func (s *leases) giveBack(c *chooser, p Policy, now int64, id int, n int64) {
	s.held = slices.DeleteFunc(s.held, func(l lease) bool { return l.id == id })
}

func (s *leases) mistake(*chooser, int64) {} // no two are the same

func (s *leases) refund(*chooser, Policy, int64, int64) {} // leases end by themselves

// holds reports whether a lease of call id has not ended.
func (s *leases) holds(now int64, id int) bool {
	return slices.ContainsFunc(s.held, func(l lease) bool { return l.id == id && l.end > now })
}

// renew prolongs the leases of call id.
func (s *leases) renew(p Policy, now int64, id int) {
	for i := range s.held {
		if l := &s.held[i]; l.id == id {
			l.end = now + p.Window
		}
	}
}
