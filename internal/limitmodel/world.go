package limitmodel

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Never is the wait of a call that can never be admitted.
const Never = math.MaxInt64

// chooser answers where the page allows several outcomes. Each makes every run of
// choices happen.
type chooser struct {
	made   []int // choices to repeat, then those that were made
	of     []int // how many there were to choose from
	at     int
	back   bool // the clock may step back to where what has expired counts
	merged bool // the call may have been sent with the one before
}

// choose returns one of 0 to n-1.
func (c *chooser) choose(n int) int {
	if c.at == len(c.made) {
		c.made = append(c.made, 0)
	}
	if c.at == len(c.of) {
		c.of = append(c.of, n)
	}
	c.at++
	return c.made[c.at-1]
}

// each calls f once for each way to choose.
func each(f func(*chooser)) {
	var made []int
	for {
		c := &chooser{made: made}
		f(c)
		made = c.made[:c.at]
		for len(made) > 0 && made[len(made)-1]+1 == c.of[len(made)-1] {
			made = made[:len(made)-1]
		}
		if len(made) == 0 {
			return
		}
		made[len(made)-1]++
	}
}

// stateKey names the state of a policy for a subject.
type stateKey struct {
	subject int
	algo    Algo
	name    string
}

// World is all that is used.
type World struct {
	states map[stateKey]*record
	bans   map[int]ban          // by subject
	open   map[int]*reservation // by the call that reserved
	// passed is how far the clock went forward in all, by which a miniredis takes
	// TTLs down; stepped reports that it also went back.
	passed  int64
	stepped bool
	resets  map[stateKey]int64 // when it was reset last
	// lost says that a window may have come again whose units were lost: since the clock
	// had stepped, or since it was counted by another length meanwhile.
	lost map[stateKey]bool
}

// NewWorld returns a world where nothing is used.
func NewWorld() *World {
	return &World{states: map[stateKey]*record{}, bans: map[int]ban{}, open: map[int]*reservation{}, resets: map[stateKey]int64{}, lost: map[stateKey]bool{}}
}

func (w *World) clone() *World {
	c := *w
	c.bans, c.open, c.states = maps.Clone(w.bans), maps.Clone(w.open), make(map[stateKey]*record, len(w.states))
	c.resets, c.lost = maps.Clone(w.resets), maps.Clone(w.lost)
	for k, r := range w.states {
		c.states[k] = &record{r.clone(), r.lapse}
	}
	return &c
}

// String is the same for worlds that are the same.
func (w *World) String() string {
	var all []string
	for k, s := range w.states {
		all = append(all, fmt.Sprintf("%d%c%s %v %v", k.subject, k.algo, k.name, s.state, s.lapse))
	}
	slices.Sort(all)
	return fmt.Sprint(strings.Join(all, "\n"), "\n", w.bans)
}

// record is a state and when its key may be gone.
type record struct {
	state
	lapse int64 // by the time that has passed, see World.passed
}

// ban is the end of a ban and when its key may be gone.
type ban struct{ end, lapse int64 }

// find returns the record of p, for the caller to change. A key has the TTL of the
// limits that it was written under: where limits changed, or a clock stepped back,
// what was taken may be forgotten from when they would have given it all back.
func (w *World) find(c *chooser, subject int, p Policy, now int64) *record {
	k := stateKey{subject, p.Algo, p.Name}
	r, ok := w.states[k]
	if !ok {
		return &record{state: newState(p.Algo)}
	}
	s := r.clone()
	if s.under(p, now); !s.idle(p, now) && w.passed >= r.lapse && c.choose(2) == 1 {
		delete(w.states, k)
		w.lost[k] = w.lost[k] || w.stepped
		return &record{state: newState(p.Algo)}
	}
	return &record{r.clone(), r.lapse}
}

// look returns the state of p as a call at now finds it, for the caller to change.
func (w *World) look(c *chooser, subject int, p Policy, now int64) state {
	k := stateKey{subject, p.Algo, p.Name}
	s := w.find(c, subject, p, now).state
	if f, ok := s.(*fixed); ok && p.Aligned && f.window != 0 && f.window != p.Window {
		w.lost[k] = true
	}
	if f, ok := s.(*sliding); ok && f.window != 0 && f.window != p.Window {
		w.lost[k] = true
	}
	if s.dropped(p, now) {
		w.lost[k] = w.lost[k] || w.stepped
		return newState(p.Algo)
	}
	s.under(p, now)
	return s
}

// take stores what an admitted call has left.
func (w *World) take(subject int, p Policy, now int64, s state) {
	k := stateKey{subject, p.Algo, p.Name}
	r := &record{s, w.lapse(s, p, now)}
	if old, ok := w.states[k]; ok && w.stepped {
		r.lapse = min(r.lapse, old.lapse) // the TTL may be the one it had
	}
	w.states[k] = r
}

// lapse is when a key that p writes at now may be gone.
func (w *World) lapse(s state, p Policy, now int64) int64 {
	return w.passed + wait(now, func(t int64) bool { return s.idle(p, t) }, false)
}

// giveBack lets f give units of p back, unless its state is dropped.
func (w *World) giveBack(c *chooser, now int64, subject int, p Policy, f func(state)) {
	k := stateKey{subject, p.Algo, p.Name}
	r := w.find(c, subject, p, now)
	if _, ok := w.states[k]; !ok {
		return
	}
	if r.dropped(p, now) { // until a call finds that, it may be gone, as it was, or given back from
		switch c.choose(3) {
		case 0:
			return
		case 1:
			delete(w.states, k)
			return
		}
	}
	s := r.clone()
	s.under(p, now)
	before := r.String()
	lapse := min(r.lapse, w.lapse(s, p, now))
	if f(r.state); r.String() == before {
		return // nothing to give back, and nothing written
	}
	w.states[k] = &record{r.state, lapse}
}

// PolicyOutcome is what one policy says to a call.
type PolicyOutcome struct {
	Allowed    bool
	Remaining  int64
	RetryAfter int64
	NextAfter  int64
	ResetAfter int64
	charged    bool
}

// Outcome is what a call gets.
type Outcome struct {
	Allowed, Banned bool
	Granted         int64
	RetryAfter      int64
	Policies        []PolicyOutcome // nil for a ban
	// Deciding are the policies of which one decides; none if all are shadows.
	Deciding []int
}

// mode is how a call asks.
type mode byte

const (
	all  mode = iota // all units or none
	upTo             // as many as there are
	peek             // none
)

// decide lets call id ask for n units at now.
func (w *World) decide(c *chooser, now int64, subject int, ps []Policy, n int64, m mode, id int) Outcome {
	if b := w.bans[subject]; b.end > now && (w.passed < b.lapse || c.choose(2) == 0) {
		return Outcome{Banned: true, RetryAfter: b.end - now}
	}
	ask := n
	if m != all {
		ask = 1
	}
	states := make([]state, len(ps))
	free := make([]int64, len(ps))
	o := Outcome{Allowed: true, Granted: n, Policies: make([]PolicyOutcome, len(ps))}
	for i, p := range ps {
		states[i] = w.look(c, subject, p, now)
		free[i] = max(0, p.Limit-states[i].used(p, now))
		po := &o.Policies[i]
		po.Allowed = free[i] >= ask
		if !po.Allowed {
			po.RetryAfter = wait(now, func(t int64) bool { return p.Limit-states[i].used(p, t) >= ask }, ask > p.Limit)
		}
		if !p.Shadow {
			o.Allowed = o.Allowed && po.Allowed
			o.Granted = min(o.Granted, free[i])
		}
	}
	switch {
	case !o.Allowed || m == peek:
		o.Granted = 0
	case m == all:
		o.Granted = n
	}
	for i, p := range ps {
		po := &o.Policies[i]
		s := states[i]
		if n := min(o.Granted, free[i]); n > 0 && (m == upTo || n == o.Granted) {
			s.take(c, p, now, id, n)
			w.take(subject, p, now, s)
			po.charged = true
		}
		po.Remaining = max(0, p.Limit-s.used(p, now))
		if !s.idle(p, now) {
			po.NextAfter = wait(now, func(t int64) bool { return p.Limit-s.used(p, t) > po.Remaining }, false)
			po.ResetAfter = wait(now, func(t int64) bool { return s.idle(p, t) }, false)
		}
		if p.Shadow {
			continue
		}
		if !o.Allowed {
			o.RetryAfter = max(o.RetryAfter, po.RetryAfter)
		}
	}
	least := int64(Never)
	for i, p := range ps {
		if !p.Shadow {
			least = min(least, o.Policies[i].Remaining)
		}
	}
	for i, p := range ps {
		if po := o.Policies[i]; !p.Shadow && (!o.Allowed && po.RetryAfter == o.RetryAfter || o.Allowed && po.Remaining == least) {
			o.Deciding = append(o.Deciding, i)
		}
	}
	return o
}

// wait returns the smallest wait from now until ok, which stays so once it is.
func wait(now int64, ok func(t int64) bool, never bool) int64 {
	if never {
		return Never
	}
	if ok(now) {
		return 0
	}
	hi := int64(1)
	for !ok(now + hi) {
		if hi > 1<<60 {
			return Never
		}
		hi *= 2
	}
	lo := hi / 2 // not ok, or 0
	for hi-lo > 1 {
		if mid := lo + (hi-lo)/2; ok(now + mid) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi
}

// reservation is what a call took, to be settled.
type reservation struct {
	id, subject int
	at          int64
	n           int64
	asked       []Policy
	policies    []Policy // those it took from
}

// reserve is decide for all of n units, kept to be settled.
func (w *World) reserve(c *chooser, now int64, subject int, ps []Policy, n int64, id int) Outcome {
	o := w.decide(c, now, subject, ps, n, all, id)
	if o.Allowed {
		r := &reservation{id, subject, now, n, ps, nil}
		for i, p := range ps {
			if o.Policies[i].charged {
				r.policies = append(r.policies, p)
			}
		}
		w.open[id] = r
	}
	return o
}

// settle is Commit of actual units, Cancel if that is 0, of what call id reserved.
func (w *World) settle(c *chooser, now int64, id int, actual int64) {
	r := w.open[id]
	if r == nil {
		return
	}
	delete(w.open, id)
	s := *r
	r = &s
	ps := r.asked
	for _, p := range r.policies {
		back := r.n - actual
		if p.Algo != Leases && back <= 0 {
			continue
		}
		k := stateKey{r.subject, p.Algo, p.Name}
		if at, ok := w.resets[k]; ok && r.at <= at && w.stepped && p.Algo != Leases && c.choose(2) == 1 {
			continue // as if it had been taken before the Reset
		}
		w.giveBack(c, now, r.subject, p, func(s state) {
			if w.lost[k] && c.choose(2) == 1 {
				s.mistake(c, back) // the same window came again
				return
			}
			s.giveBack(c, p, now, r.id, back)
		})
	}
	if actual <= r.n {
		return
	}
	var rest []Policy
	for _, p := range ps {
		if p.Algo != Leases {
			rest = append(rest, p)
		}
	}
	if len(rest) == 0 {
		return
	}
	b, banned := w.bans[r.subject]
	if b.end > now && c.choose(2) == 0 {
		return
	}
	delete(w.bans, r.subject)
	w.decide(c, now, r.subject, rest, actual-r.n, upTo, r.id)
	if banned {
		w.bans[r.subject] = b
	}
}

func (w *World) refund(c *chooser, now int64, subject int, ps []Policy, n int64) {
	for _, p := range ps {
		if w.stepped { // it may count as from before what was reserved earlier
			w.lost[stateKey{subject, p.Algo, p.Name}] = true
		}
		w.giveBack(c, now, subject, p, func(s state) { s.refund(c, p, now, n) })
	}
}

func (w *World) reset(now int64, subject int, ps []Policy) {
	for _, p := range ps {
		k := stateKey{subject, p.Algo, p.Name}
		w.resets[k] = max(now, w.resets[k])
		delete(w.states, k)
	}
}

// renew prolongs the leases of call id and reports whether none had ended.
func (w *World) renew(c *chooser, now int64, id int) bool {
	r, held := w.open[id], true
	if r == nil {
		return c.choose(2) == 0 // what is called after the end does nothing
	}
	var all []*leases
	var of []Policy
	for _, p := range r.policies {
		if p.Algo == Leases {
			s := w.find(c, r.subject, p, now).state.(*leases)
			if s.dropped(p, now) && c.choose(2) == 1 {
				s = &leases{}
			}
			all, of = append(all, s), append(of, p)
			held = held && s.holds(now, id)
		}
	}
	for i, s := range all {
		if held {
			s.renew(of[i], now, id)
			w.take(r.subject, of[i], now, s)
		}
	}
	return held
}
