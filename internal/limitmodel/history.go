package limitmodel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Kinds are the algorithms that lead a history; others come beside.
var Kinds = []Algo{Fixed, Sliding, Log, Bucket, Leases}

func (a Algo) String() string {
	return map[Algo]string{Fixed: "fixed", Sliding: "sliding", Log: "log", Bucket: "bucket", Leases: "leases"}[a]
}

// back reports whether the clock steps back in h.
func (h *History) back() bool { return h.Seed%3 == 0 && !h.live }

// subjects is how many a history has.
const subjects = 3

// limitersOf makes the limiters of a history: in each of two processes one by New
// and some by With, whose policies share names, with other numbers.
func limitersOf(r *rand.Rand, kind Algo, live bool) []Limiter {
	windows := []int64{1000, 7001, 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000}
	scale := r.IntN(len(windows))
	if live {
		windows, scale = []int64{5000, 12_001, 40_000}, r.IntN(3)
	}
	window := func() int64 { return windows[max(0, scale-r.IntN(2))] + int64(r.IntN(2))*int64(r.IntN(100)) }
	limit := func() int64 { return pick[int64](r, 1, 2, 3, 5, 8, 13, 40, 100, 1000) }
	type name struct {
		algo    Algo
		name    string
		aligned bool
		offset  int64
		forms   []Policy
	}
	var names []name
	add := func(a Algo, n string) {
		x := name{algo: a, name: n, aligned: a == Fixed && r.IntN(2) == 0, offset: r.Int64N(100_000)}
		for range 1 + r.IntN(3) {
			p := Policy{Algo: a, Name: n, Limit: limit(), Window: window(), Aligned: x.aligned, Offset: x.offset}
			if a == Bucket {
				p.Rate = pick[int64](r, 1, 2, 3, 7, 10, 100)
			}
			x.forms = append(x.forms, p)
		}
		if r.IntN(2) == 0 { // the window stays, the limit does not
			for i := range x.forms {
				x.forms[i].Window = x.forms[0].Window
			}
		}
		names = append(names, x)
	}
	add(kind, "a")
	if r.IntN(2) == 0 {
		add(kind, "b")
	}
	for r.IntN(3) == 0 && len(names) < 4 {
		add(pick(r, Kinds...), fmt.Sprintf("x%d", len(names)))
	}
	var ls []Limiter
	for i := range 5 {
		l := Limiter{Process: i % 2}
		for j, x := range names {
			if j > 0 && r.IntN(3) == 0 {
				continue
			}
			p := pick(r, x.forms...)
			p.Shadow = r.IntN(8) == 0
			l.Policies = append(l.Policies, p)
		}
		r.Shuffle(len(l.Policies), func(a, b int) { l.Policies[a], l.Policies[b] = l.Policies[b], l.Policies[a] })
		ls = append(ls, l)
	}
	return ls
}

// next chooses the next step.
func (p *player) next(r *rand.Rand, id int) Op {
	o := Op{ID: id, Limiter: r.IntN(len(p.h.Limiters)), Subject: r.IntN(subjects)}
	if r.IntN(4) != 0 {
		o.Subject = 0
	}
	ps := p.h.Limiters[o.Limiter].Policies
	lead := ps[r.IntN(len(ps))]
	cost := func() int64 {
		switch r.IntN(10) {
		case 0:
			return lead.Limit
		case 1:
			return lead.Limit + r.Int64N(3)
		case 2, 3:
			return 1 + r.Int64N(lead.Limit)
		}
		return 1 + r.Int64N(3)
	}
	o.N = cost()
	switch n := len(p.worlds); { // find out in which the limiters are
	case n > 64:
		o.Kind = "reset"
		return o
	case n > 8 && r.IntN(3) > 0:
		o.Kind = "peek"
		return o
	}
	settle := func(kind string) Op {
		if len(p.openIDs()) == 0 {
			return Op{Kind: "reserve", ID: id, Limiter: o.Limiter, Subject: o.Subject, N: o.N}
		}
		o.Kind, o.ID = kind, pick(r, p.openIDs()...)
		if p.vague(o.ID) { // too many outcomes to follow
			return Op{Kind: "reset", ID: id, Limiter: o.Limiter, Subject: p.subjectOf(o.ID)}
		}
		o.Limiter, o.N = 0, r.Int64N(1+lead.Limit)
		if r.IntN(3) == 0 {
			o.N = r.Int64N(4)
		}
		return o
	}
	switch k := r.IntN(100); {
	case k < 26:
		return Op{Kind: "clock", D: p.jump(r, lead)}
	case k < 46:
		o.Kind = "allow"
		if r.IntN(30) == 0 {
			o.N = 0
		}
	case k < 52:
		o.Kind = "upto"
	case k < 58:
		o.Kind = "peek"
	case k < 71:
		o.Kind = "reserve"
	case k < 78:
		return settle("commit")
	case k < 83:
		return settle("cancel")
	case k < 87:
		return settle("renew")
	case k < 91:
		o.Kind = "refund"
	case k < 93:
		o.Kind = "reset"
		if r.IntN(3) > 0 {
			o.Kind = "allow"
		}
	case k < 94:
		o.Kind, o.D = "ban", 1000+r.Int64N(2*lead.Window)
		if r.IntN(2) > 0 {
			o.Kind = "peek"
		}
	case k < 95:
		o.Kind = "unban"
	case k < 96:
		o.Kind = pick(r, "scriptflush", "persist")
		if r.IntN(4) > 0 {
			o.Kind = "upto"
		}
	case k < 98:
		x := Op{Kind: "together"}
		for i := range 2 + r.IntN(2) {
			o.Kind, o.ID, o.N = pick(r, "allow", "allow", "upto"), id+i, cost()
			x.Calls = append(x.Calls, o)
		}
		return x
	default:
		x := Op{Kind: "allowall"}
		n := 2 + r.IntN(2)
		if p.h.live { // the calls are made at different times, of which the result has one
			n = 1
		}
		for i := range n {
			l := r.IntN(len(p.h.Limiters))
			if slices.ContainsFunc(p.h.Limiters[l].Policies, func(q Policy) bool { return q.Algo == Leases }) {
				continue
			}
			x.Calls = append(x.Calls, Op{Kind: "allow", ID: id + i, Limiter: l, Subject: i, N: cost()})
		}
		if len(x.Calls) > 0 {
			return x
		}
		o.Kind = "allow"
	}
	return o
}

// subjectOf is that of a reservation.
func (p *player) subjectOf(id int) int {
	for _, w := range p.worlds {
		if r := w.open[id]; r != nil {
			return r.subject
		}
	}
	return 0
}

// vague reports whether a reservation may get any part of many units back.
func (p *player) vague(id int) bool {
	for _, w := range p.worlds {
		r := w.open[id]
		if r == nil {
			continue
		}
		for _, x := range r.policies {
			rec := w.states[stateKey{r.subject, x.Algo, x.Name}]
			if rec == nil {
				continue
			}
			switch s := rec.state.(type) {
			case *fixed:
				if s.given.vague && of(s.takes, id) > 10 {
					return true
				}
			case *sliding:
				if s.given.vague && max(of(s.prev, id), of(s.cur, id)) > 10 {
					return true
				}
			}
		}
	}
	return false
}

// jump chooses how far the clock goes.
func (p *player) jump(r *rand.Rand, lead Policy) int64 {
	w := lead.window()
	if p.h.live {
		return r.Int64N(1 + w/4)
	}
	switch k := r.IntN(20); {
	case k < 6 && len(p.after) > 0: // to where something happens, or beside it
		return max(0, pick(r, p.after...)+r.Int64N(3)-1)
	case k < 9:
		return 1 + r.Int64N(4)
	case k < 13:
		return 1 + r.Int64N(w/8+1)
	case k < 17:
		return 1 + r.Int64N(w)
	case k < 18:
		return 1 + r.Int64N(3*w)
	case p.h.back():
		switch r.IntN(6) {
		case 0:
			return -w - r.Int64N(3) + 1
		case 1:
			return -3 * w
		case 2:
			return -1 - r.Int64N(4)
		}
		return -1 - r.Int64N(w/2+1)
	}
	return 1 + r.Int64N(w/2+1)
}

func (p *player) openIDs() []int {
	ids := make([]int, 0, len(p.open))
	for id := range p.open {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// remember keeps what the generator may go for.
func (p *player) remember(op Op, g []got) {
	p.after = p.after[:0]
	for _, x := range g {
		for _, y := range x.res.Policies {
			for _, d := range []int64{micros(y.RetryAfter), micros(y.NextAfter), micros(y.ResetAfter)} {
				if d > 0 && d < 1<<50 {
					p.after = append(p.after, d)
				}
			}
		}
	}
	for _, id := range p.openIDs() {
		if !p.open[id].Allowed {
			delete(p.open, id)
		}
	}
	if (op.Kind == "commit" || op.Kind == "cancel") && op.ID%8 != 0 { // some are settled again
		delete(p.open, op.ID)
	}
	if len(p.open) > 12 {
		delete(p.open, p.openIDs()[0])
	}
}

// Stats are the figures of a play.
type Stats struct {
	Steps, Allowed, Denied, Settled, Worlds int
}

// Play plays a history of so many steps for a seed. The error describes a
// disagreement: the seed and the shortest history with it that was found.
//
// On a server whose clock runs, a history that a call took too long in, as on a busy
// machine, is played again, five times, and then ends where it is.
func Play(ctx context.Context, env Env, kind Algo, seed uint64, steps int) (st Stats, err error) {
	for range 5 {
		if st, err = play(ctx, env, kind, seed, steps); !errors.Is(err, errSlow) {
			return st, err
		}
	}
	return st, nil
}

func play(ctx context.Context, env Env, kind Algo, seed uint64, steps int) (Stats, error) {
	r := rand.New(rand.NewPCG(seed, uint64(kind)))
	h := &History{Kind: kind, Seed: seed, live: env.SetTime == nil}
	h.Limiters = limitersOf(r, kind, h.live)
	p, err := newPlayer(env, h)
	if err != nil {
		return Stats{}, fmt.Errorf("seed %d: %w", seed, err)
	}
	var st Stats
	for range steps {
		op := p.next(r, 10*(len(h.Ops)+1))
		h.Ops = append(h.Ops, op)
		if err = p.step(ctx, op); err != nil {
			break
		}
		st.count(op, p.last)
		p.remember(op, p.last)
	}
	st.Worlds = p.most
	if errors.Is(err, errSlow) {
		p.cleanUp(ctx)
		return st, err
	}
	if err == nil {
		err = p.walk(ctx)
	}
	if err != nil {
		return st, fmt.Errorf("%s", shrink(ctx, env, h, err))
	}
	p.cleanUp(ctx)
	return st, nil
}

func (st *Stats) count(op Op, g []got) {
	st.Steps++
	if op.Kind == "commit" || op.Kind == "cancel" {
		st.Settled++
	}
	for _, x := range g {
		switch {
		case x.res.At.IsZero():
		case x.res.Allowed:
			st.Allowed++
		default:
			st.Denied++
		}
	}
}

func (p *player) cleanUp(ctx context.Context) {
	if keys, err := p.keys(ctx, "*"); err == nil {
		for _, k := range keys {
			p.env.Client.Del(ctx, k)
		}
	}
}

// replay plays h once more.
func replay(ctx context.Context, env Env, h *History, keep bool) ([]string, error) {
	p, err := newPlayer(env, h)
	if err != nil {
		return nil, nil
	}
	defer p.cleanUp(ctx)
	p.keep = keep
	for _, op := range h.Ops {
		if err := p.step(ctx, op); err != nil {
			return p.trace, err
		}
	}
	return p.trace, p.walk(ctx)
}

// shrink looks for a shorter history that fails, and describes it.
func shrink(ctx context.Context, env Env, h *History, failure error) string {
	budget := 100_000 // steps
	if h.live {
		budget = 40_000
	}
	fails := func(x *History) bool {
		if budget -= len(x.Ops); budget < 0 {
			return false
		}
		_, err := replay(ctx, env, x, false)
		return err != nil && !errors.Is(err, errSlow)
	}
	steps := len(h.Ops)
	try := func(change func(x *History)) bool {
		x := h.clone()
		change(x)
		if !fails(x) {
			return false
		}
		h = x
		return true
	}
	again := fails(h)
	for changed := again; changed; {
		changed = false
		for n := max(1, len(h.Ops)/2); n > 0; n /= 2 {
			for i := len(h.Ops) - n; i >= 0; i -= n {
				if i+n <= len(h.Ops) && try(func(x *History) { x.Ops = slices.Delete(x.Ops, i, i+n) }) {
					changed = true
				}
			}
		}
		for i := range h.Limiters {
			for j := len(h.Limiters[i].Policies) - 1; j >= 0 && len(h.Limiters[i].Policies) > 1; j-- {
				if try(func(x *History) { x.Limiters[i].Policies = slices.Delete(x.Limiters[i].Policies, j, j+1) }) {
					changed = true
				}
			}
		}
		for i := range h.Ops {
			for _, f := range simpler {
				if y := f(h.Ops[i]); y.size() < h.Ops[i].size() && try(func(x *History) { x.Ops[i] = f(x.Ops[i]) }) {
					changed = true
				}
			}
		}
	}
	trace, err := replay(ctx, env, h, true)
	if err == nil {
		err = fmt.Errorf("not seen again: %w", failure)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "kind %v, seed %d: %v\n", h.Kind, h.Seed, err)
	fmt.Fprintf(&b, "%d steps, shrunk to %d:\n", steps, len(h.Ops))
	used := map[int]bool{}
	for _, o := range h.Ops {
		for _, c := range append(o.Calls, o) {
			used[c.Limiter] = true
		}
	}
	for i, l := range h.Limiters {
		if used[i] {
			fmt.Fprintf(&b, "limiter %d, process %d: %v\n", i, l.Process, l.Policies)
		}
	}
	if skip := len(trace) - 30; skip > 0 {
		fmt.Fprintf(&b, "… %d more\n", skip)
		trace = trace[skip:]
	}
	b.WriteString(strings.Join(trace, "\n"))
	return b.String()
}

// simpler are ways to make a step smaller.
var simpler = []func(Op) Op{
	func(o Op) Op { o.Limiter = 0; return o },
	func(o Op) Op { o.Subject = 0; return o },
	func(o Op) Op { o.N = min(o.N, 1); return o },
	func(o Op) Op { o.N -= o.N / 2; return o },
	func(o Op) Op { o.N -= min(1, max(0, o.N-1)); return o },
	func(o Op) Op { o.D /= 2; return o },
	func(o Op) Op { o.D -= o.D % 1000; return o },
	func(o Op) Op {
		if len(o.Calls) > 1 {
			o.Calls = o.Calls[1:]
		}
		return o
	},
	func(o Op) Op {
		if len(o.Calls) > 1 {
			o.Calls = o.Calls[:len(o.Calls)-1]
		}
		return o
	},
	func(o Op) Op {
		if o.Kind == "upto" || o.Kind == "peek" || o.Kind == "reserve" {
			o.Kind = "allow"
		}
		return o
	},
}

// size orders steps, so that shrinking ends.
func (o Op) size() float64 {
	d := float64(max(o.D, -o.D))
	s := 4*float64(o.Limiter) + 2*float64(o.Subject) + float64(max(o.N, 0)) + d/1e6 + 10*float64(len(o.Calls))
	if d != 0 && o.D%1000 != 0 {
		s += 1 + d/1e6
	}
	if o.N == 0 && o.Kind == "allow" || o.Kind == "upto" && o.N < 1 {
		s += 1e9
	}
	if o.Kind == "reserve" && o.N < 1 || o.Kind == "refund" && o.N < 1 || o.Kind == "ban" && o.D < 1000 {
		s += 1e9
	}
	if o.Kind == "upto" || o.Kind == "reserve" || o.Kind == "peek" {
		s++
	}
	return s
}

func (h *History) clone() *History {
	c := *h
	c.Ops = slices.Clone(h.Ops)
	c.Limiters = slices.Clone(h.Limiters)
	for i := range c.Limiters {
		c.Limiters[i].Policies = slices.Clone(c.Limiters[i].Policies)
	}
	return &c
}

func (p Policy) String() string {
	s := fmt.Sprintf("%v %s %d per %d", p.Algo, p.Name, p.Limit, p.Window)
	if p.Algo == Bucket {
		s = fmt.Sprintf("bucket %s %d, %d per %d", p.Name, p.Limit, p.Rate, p.Window)
	}
	if p.Aligned {
		s += fmt.Sprintf(" aligned %d", p.Offset)
	}
	if p.Shadow {
		s += " shadow"
	}
	return s
}
