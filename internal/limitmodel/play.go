package limitmodel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/ratelimit"
)

// Env is where a history is played.
type Env struct {
	Client redis.UniversalClient
	// SetTime sets the clock of the server. Nil: the clock runs by itself, and is
	// read before and after each call.
	SetTime func(time.Time)
}

// History is what one seed plays: limiters and calls to them.
type History struct {
	Kind     Algo
	Seed     uint64
	Limiters []Limiter
	Ops      []Op
	live     bool // on a server whose clock runs
}

// Limiter is a list of policies in one of two processes.
type Limiter struct {
	Process  int
	Policies []Policy
}

// Op is one step. Which fields count depends on Kind.
type Op struct {
	Kind    string
	Limiter int
	Subject int
	N       int64
	D       int64 // microseconds
	ID      int   // of the call; of the reservation that is settled
	Calls   []Op  // side by side, or of AllowAll
}

func (o Op) String() string {
	who := fmt.Sprintf("limiter %d, subject %d", o.Limiter, o.Subject)
	switch o.Kind {
	case "clock":
		return fmt.Sprintf("clock %+d µs", o.D)
	case "allow", "upto", "refund":
		return fmt.Sprintf("%s %d: %s", o.Kind, o.N, who)
	case "reserve":
		return fmt.Sprintf("#%d reserve %d: %s", o.ID, o.N, who)
	case "commit":
		return fmt.Sprintf("commit #%d to %d", o.ID, o.N)
	case "cancel", "renew":
		return fmt.Sprintf("%s #%d", o.Kind, o.ID)
	case "ban":
		return fmt.Sprintf("ban for %d µs: %s", o.D, who)
	case "together", "allowall":
		var b strings.Builder
		fmt.Fprintf(&b, "%s:", o.Kind)
		for _, c := range o.Calls {
			fmt.Fprintf(&b, " [%v]", c)
		}
		return b.String()
	case "scriptflush":
		return o.Kind
	}
	return o.Kind + ": " + who
}

// epoch is where set clocks begin.
const epoch = 1_900_000_000_000_000

// names counts the prefixes of histories.
var names struct {
	sync.Mutex
	n int
}

// player plays one history.
type player struct {
	env      Env
	h        *History
	prefix   string
	limiters []*ratelimit.Limiter
	open     map[int]*ratelimit.Reservation
	worlds   []*World
	now      int64 // of a set clock
	lo, hi   int64 // the last call was between these
	after    []int64
	last     []got // of the last step
	most     int   // worlds at one time
	persists bool
	trace    []string
	keep     bool // keep a trace
}

func newPlayer(env Env, h *History) (*player, error) {
	names.Lock()
	names.n++
	prefix := fmt.Sprintf("m%d:", names.n)
	names.Unlock()
	p := &player{env: env, h: h, prefix: prefix, open: map[int]*ratelimit.Reservation{}, worlds: []*World{NewWorld()}, now: epoch}
	if env.SetTime != nil {
		env.SetTime(time.UnixMicro(p.now))
	}
	cfg := ratelimit.Config{Prefix: prefix, PlainKeys: true, NoDenialCache: true, Timeout: time.Minute}
	var base [2]*ratelimit.Limiter
	for _, l := range h.Limiters {
		var ps []ratelimit.Policy
		for _, x := range l.Policies {
			ps = append(ps, x.real())
		}
		var r *ratelimit.Limiter
		var err error
		if b := base[l.Process]; b != nil {
			r, err = b.With(ps...)
		} else {
			r, err = ratelimit.New(env.Client, cfg, ps...)
			base[l.Process] = r
		}
		if err != nil {
			return nil, err
		}
		p.limiters = append(p.limiters, r)
	}
	return p, nil
}

func (p Policy) real() (r ratelimit.Policy) {
	w := time.Duration(p.Window) * time.Microsecond
	switch p.Algo {
	case Fixed:
		r = ratelimit.FixedWindow(p.Name, p.Limit, w)
		if p.Aligned {
			r = r.Aligned(time.Duration(p.Offset) * time.Microsecond)
		}
	case Sliding:
		r = ratelimit.SlidingWindow(p.Name, p.Limit, w)
	case Log:
		r = ratelimit.SlidingLog(p.Name, p.Limit, w)
	case Bucket:
		r = ratelimit.TokenBucket(p.Name, p.Rate, w, p.Limit)
	case Leases:
		r = ratelimit.Concurrency(p.Name, p.Limit, w)
	}
	if p.Shadow {
		r = r.Shadow()
	}
	return r
}

func key(subject int) string { return "s" + strconv.Itoa(subject) }

// serverTime asks the server what time it is.
func (p *player) serverTime(ctx context.Context) int64 {
	if p.env.SetTime != nil {
		return p.now
	}
	t, err := p.env.Client.Time(ctx).Result()
	if err != nil {
		panic(err)
	}
	return t.UnixMicro()
}

// got is what a call returned.
type got struct {
	res  ratelimit.Result
	held bool
	err  error
}

// step plays op and compares. The error says how the two disagree.
func (p *player) step(ctx context.Context, op Op) error {
	note := ""
	if p.keep {
		defer func() { p.trace = append(p.trace, strings.TrimSuffix(op.String()+"  → "+note, "  → ")) }()
	}
	p.last = nil
	if op.Kind == "clock" {
		if p.env.SetTime == nil {
			time.Sleep(time.Duration(op.D) * time.Microsecond)
			return nil
		}
		for _, w := range p.worlds {
			if op.D < 0 {
				w.stepped = true
			} else {
				w.passed += op.D
			}
		}
		p.now += op.D
		p.env.SetTime(time.UnixMicro(p.now))
		return nil
	}
	p.lo = p.serverTime(ctx)
	g := p.call(ctx, op)
	p.hi, p.last = p.serverTime(ctx), g
	if p.keep {
		note = g[0].String()
		for _, o := range g[1:] {
			note += " | " + o.String()
		}
	}
	for _, x := range g {
		if x.err != nil {
			return fmt.Errorf("an error: %w", x.err)
		}
	}
	if err := p.compare(op, g); err != nil {
		return err
	}
	if (op.Kind == "reset" || op.Kind == "refund") && p.env.SetTime != nil {
		// What is reserved in the microsecond of either may count as before it.
		return p.step(ctx, Op{Kind: "clock", D: 1})
	}
	if d := g[0].res; d.Granted > 0 && p.env.SetTime != nil && op.Kind != "allowall" && op.Kind != "together" {
		if err := p.checkTTLs(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

func (p *player) call(ctx context.Context, op Op) []got {
	var g got
	var l *ratelimit.Limiter
	if op.Limiter < len(p.limiters) {
		l = p.limiters[op.Limiter]
	}
	switch op.Kind {
	case "allow":
		g.res, g.err = l.AllowN(ctx, key(op.Subject), op.N)
	case "upto":
		g.res, g.err = l.AllowUpTo(ctx, key(op.Subject), op.N)
	case "peek":
		g.res, g.err = l.Peek(ctx, key(op.Subject))
	case "reserve":
		var r *ratelimit.Reservation
		r, g.err = l.Reserve(ctx, key(op.Subject), op.N)
		g.res = r.Result
		p.open[op.ID] = r
	case "commit":
		if r := p.open[op.ID]; r != nil {
			g.err = r.Commit(ctx, op.N)
		}
	case "cancel":
		if r := p.open[op.ID]; r != nil {
			g.err = r.Cancel(ctx)
		}
	case "renew":
		g.held = true
		if r := p.open[op.ID]; r != nil {
			g.held, g.err = r.Renew(ctx)
		}
	case "refund":
		g.err = l.Refund(ctx, key(op.Subject), op.N)
	case "reset":
		g.err = l.Reset(ctx, key(op.Subject))
	case "ban":
		g.err = l.Ban(ctx, key(op.Subject), time.Duration(op.D)*time.Microsecond)
	case "unban":
		g.err = l.Unban(ctx, key(op.Subject))
	case "scriptflush":
		g.err = p.env.Client.ScriptFlush(ctx).Err()
	case "persist":
		p.persists = true
		keys, err := p.keys(ctx, "{"+key(op.Subject)+"}*")
		g.err = err
		for _, k := range keys {
			if err := p.env.Client.Persist(ctx, k).Err(); err != nil {
				g.err = err
			}
		}
	case "together":
		gs := make([]got, len(op.Calls))
		var wg sync.WaitGroup
		for i, c := range op.Calls {
			wg.Go(func() { gs[i] = p.call(ctx, c)[0] })
		}
		wg.Wait()
		return gs
	case "allowall":
		var calls []ratelimit.Call
		for _, c := range op.Calls {
			calls = append(calls, ratelimit.Call{Limiter: p.limiters[c.Limiter], Key: key(c.Subject), Cost: c.N})
		}
		g.res, g.err = ratelimit.AllowAll(ctx, calls...)
	default:
		g.err = errors.New("limitmodel: unknown step " + op.Kind)
	}
	return []got{g}
}

// errSlow ends a history on a server whose clock runs: a call took so long, on a busy
// machine, that too many times come into question at which it was carried out.
var errSlow = errors.New("limitmodel: a call took too long to tell when it was carried out")

// compare lets each world take the step and keeps those that saw what was got.
func (p *player) compare(op Op, g []got) error {
	times := []int64{p.lo}
	if p.env.SetTime == nil {
		switch {
		case op.Kind == "allow" || op.Kind == "upto" || op.Kind == "peek" || op.Kind == "reserve":
			at := g[0].res.At.UnixMicro()
			if at < p.lo || at > p.hi {
				return fmt.Errorf("at is %d, the server's clock was between %d and %d", at, p.lo, p.hi)
			}
			times[0] = at
		case op.Kind == "together" || op.Kind == "reset" || op.Kind == "unban" || op.Kind == "scriptflush" || op.Kind == "persist":
		case p.hi-p.lo > 2000:
			return errSlow
		default:
			for t := p.lo + 1; t <= p.hi; t++ {
				times = append(times, t)
			}
		}
	}
	var next []*World
	var first error
	seen := map[string]bool{}
	for _, w := range p.worlds {
		for _, now := range times {
			each(func(c *chooser) {
				w := w.clone()
				c.back = p.h.back()
				if err := p.tell(c, w, now, op, g); err != nil {
					if first == nil {
						first = err
					}
					return
				}
				if len(p.worlds) > 1 || len(times) > 1 || len(c.made) > 0 {
					s := w.String()
					if seen[s] {
						return
					}
					seen[s] = true
				}
				next = append(next, w)
			})
		}
	}
	if len(next) == 0 {
		return first
	}
	if len(next) > 3000 {
		if p.env.SetTime == nil {
			return errSlow
		}
		return fmt.Errorf("%d worlds, such as\n%v\nand\n%v", len(next), next[0], next[len(next)-1])
	}
	p.worlds = next
	p.most = max(p.most, len(next))
	return nil
}

// tell lets w take a step at now and compares what it sees.
func (p *player) tell(c *chooser, w *World, now int64, op Op, g []got) error {
	if p.env.SetTime == nil {
		w.passed = now
	}
	var ps []Policy
	if op.Limiter < len(p.h.Limiters) {
		ps = p.h.Limiters[op.Limiter].Policies
	}
	switch op.Kind {
	case "allow", "upto", "peek", "reserve":
		return p.tellCall(c, w, now, op, g[0].res)
	case "commit":
		w.settle(c, now, op.ID, op.N)
	case "cancel":
		w.settle(c, now, op.ID, 0)
	case "renew":
		if held := w.renew(c, now, op.ID); held != g[0].held {
			return fmt.Errorf("held is %v, the model says %v", g[0].held, held)
		}
	case "refund":
		w.refund(c, now, op.Subject, ps, op.N)
	case "reset":
		w.reset(now, op.Subject, ps)
	case "ban":
		w.bans[op.Subject] = ban{now + op.D, w.passed + op.D}
	case "unban":
		delete(w.bans, op.Subject)
	case "together":
		left := make([]int, len(op.Calls))
		for i := range left {
			left[i] = i
		}
		last := int64(0)
		for first := true; len(left) > 0; first = false {
			k := c.choose(len(left))
			i := left[k]
			left = slices.Delete(left, k, k+1)
			at := g[i].res.At.UnixMicro()
			if at < last || p.env.SetTime == nil && (at < p.lo || at > p.hi) {
				return fmt.Errorf("at of %v is not in order", op.Calls[i])
			}
			last, c.merged = at, !first
			err := p.tellCall(c, w, at, op.Calls[i], g[i].res)
			c.merged = false
			if err != nil {
				return err
			}
		}
	case "allowall":
		return p.tellAll(c, w, now, op, g[0].res)
	}
	return nil
}

func (p *player) tellCall(c *chooser, w *World, now int64, op Op, r ratelimit.Result) error {
	ps := p.h.Limiters[op.Limiter].Policies
	var o Outcome
	switch op.Kind {
	case "allow":
		if op.N == 0 {
			o = w.decide(c, now, op.Subject, ps, 1, peek, op.ID)
		} else {
			o = w.decide(c, now, op.Subject, ps, op.N, all, op.ID)
		}
	case "upto":
		o = w.decide(c, now, op.Subject, ps, op.N, upTo, op.ID)
	case "peek":
		o = w.decide(c, now, op.Subject, ps, 1, peek, op.ID)
	case "reserve":
		o = w.reserve(c, now, op.Subject, ps, op.N, op.ID)
	}
	return differ(o, ps, now, r)
}

// tellAll is AllowAll: one call after another, given back when one is denied.
func (p *player) tellAll(c *chooser, w *World, now int64, op Op, r ratelimit.Result) error {
	var ps []Policy
	whole := Outcome{Allowed: true}
	least := int64(Never)
	for i, x := range op.Calls {
		one := p.h.Limiters[x.Limiter].Policies
		o := w.reserve(c, now, x.Subject, one, x.N, x.ID)
		first := len(ps)
		ps = append(ps, one...)
		whole.Policies = append(whole.Policies, o.Policies...)
		if !o.Allowed {
			for _, y := range op.Calls[:i] {
				w.settle(c, now, y.ID, 0)
			}
			for j := range o.Deciding {
				o.Deciding[j] += first
			}
			if o.Banned {
				r.Policies = nil // those of the calls before
				return differ(o, nil, now, r)
			}
			whole.Allowed, whole.RetryAfter, whole.Deciding = false, o.RetryAfter, o.Deciding
			break
		}
		for _, d := range o.Deciding {
			switch left := o.Policies[d].Remaining; {
			case left < least:
				least, whole.Deciding = left, []int{first + d}
			case left == least:
				whole.Deciding = append(whole.Deciding, first+d)
			}
		}
	}
	for _, x := range op.Calls {
		delete(w.open, x.ID)
	}
	whole.Granted = r.Granted // of one call or of all: the page does not say
	return differ(whole, ps, now, r)
}

func micros(d time.Duration) int64 {
	if d == ratelimit.Never {
		return Never
	}
	if d%time.Microsecond != 0 {
		return -int64(d)
	}
	return int64(d / time.Microsecond)
}

// differ says how r differs from what the model says.
func differ(o Outcome, ps []Policy, now int64, r ratelimit.Result) error {
	var wrong []string
	check := func(what string, got, want any) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %v, the model says %v", what, got, want))
		}
	}
	check("Source", r.Source, ratelimit.SourceRedis)
	check("Err", r.Err, nil)
	check("At", r.At.UnixMicro(), now)
	check("Allowed", r.Allowed, o.Allowed)
	check("Banned", r.Banned, o.Banned)
	check("Granted", r.Granted, o.Granted)
	check("RetryAfter", micros(r.RetryAfter), o.RetryAfter)
	if o.Banned {
		check("Policy", r.Policy, "")
		check("len(Policies)", len(r.Policies), 0)
		return join(wrong)
	}
	if len(r.Policies) != len(ps) {
		check("len(Policies)", len(r.Policies), len(ps))
		return join(wrong)
	}
	for i, p := range ps {
		at := fmt.Sprintf("Policies[%d].", i)
		x, y := r.Policies[i], o.Policies[i]
		check(at+"Name", x.Name, p.Name)
		check(at+"Shadow", x.Shadow, p.Shadow)
		check(at+"Limit", x.Limit, p.Limit)
		check(at+"Window", micros(x.Window), p.window())
		check(at+"Allowed", x.Allowed, y.Allowed)
		check(at+"Remaining", x.Remaining, y.Remaining)
		check(at+"RetryAfter", micros(x.RetryAfter), y.RetryAfter)
		check(at+"NextAfter", micros(x.NextAfter), y.NextAfter)
		check(at+"ResetAfter", micros(x.ResetAfter), y.ResetAfter)
	}
	if len(o.Deciding) == 0 {
		check("Policy", r.Policy, "")
		return join(wrong)
	}
	decides := slices.IndexFunc(o.Deciding, func(i int) bool {
		x := r.Policies[i]
		return r.Policy == x.Name && r.Limit == x.Limit && r.Remaining == x.Remaining && r.NextAfter == x.NextAfter && r.ResetAfter == x.ResetAfter
	})
	if decides < 0 {
		wrong = append(wrong, fmt.Sprintf("Policy %q, Limit %d, Remaining %d, NextAfter %v, ResetAfter %v are not of a deciding policy, %v",
			r.Policy, r.Limit, r.Remaining, r.NextAfter, r.ResetAfter, o.Deciding))
	}
	return join(wrong)
}

func join(wrong []string) error {
	if len(wrong) == 0 {
		return nil
	}
	if len(wrong) > 6 {
		wrong = append(wrong[:6], "…")
	}
	return errors.New(strings.Join(wrong, "; "))
}

func (g got) String() string {
	r := g.res
	if g.err != nil {
		return "error " + g.err.Error()
	}
	if r.At.IsZero() {
		if g.held {
			return "held"
		}
		return ""
	}
	var b strings.Builder
	switch {
	case r.Banned:
		b.WriteString("banned")
	case r.Allowed:
		fmt.Fprintf(&b, "yes %d", r.Granted)
	default:
		b.WriteString("no")
	}
	if r.RetryAfter != 0 {
		fmt.Fprintf(&b, " retry %v", short(r.RetryAfter))
	}
	for _, x := range r.Policies {
		fmt.Fprintf(&b, " (%s %d left", x.Name, x.Remaining)
		if x.RetryAfter != 0 {
			fmt.Fprintf(&b, " retry %v", short(x.RetryAfter))
		}
		fmt.Fprintf(&b, " next %v reset %v)", short(x.NextAfter), short(x.ResetAfter))
	}
	return b.String()
}

func short(d time.Duration) string {
	if d == ratelimit.Never {
		return "never"
	}
	return strconv.FormatInt(int64(d/time.Microsecond), 10)
}

// keys returns the keys of this history that match.
func (p *player) keys(ctx context.Context, pattern string) ([]string, error) {
	return p.env.Client.Keys(ctx, p.prefix+pattern).Result()
}

// checkTTLs looks at the keys that an admitted call has just written: they outlive
// what they hold by about a second, a bucket's by up to a sixteenth more.
func (p *player) checkTTLs(ctx context.Context, op Op) error {
	w := p.worlds[0]
	if w.stepped {
		return nil // a miniredis takes TTLs down by steps forward alone
	}
	for _, x := range p.h.Limiters[op.Limiter].Policies {
		s, ok := w.states[stateKey{op.Subject, x.Algo, x.Name}]
		if !ok {
			continue
		}
		ttl, err := p.env.Client.PTTL(ctx, fmt.Sprintf("%s{%s}:%c:%s", p.prefix, key(op.Subject), x.Algo, x.Name)).Result()
		if err != nil {
			return err
		}
		if x.Shadow || p.persists && ttl == -1 {
			continue
		}
		holds := time.Duration(wait(p.now, func(t int64) bool { return s.idle(x, t) }, false)) * time.Microsecond
		most := holds + 1100*time.Millisecond
		if x.Algo == Bucket {
			most += time.Duration(x.window()/16+x.Window/16) * time.Microsecond
		}
		least := holds
		if s.used(x, p.now) == p.last[0].res.Granted {
			least += 990 * time.Millisecond
		}
		if ttl < least || ttl > most {
			return fmt.Errorf("the key of %c %s has a TTL of %v and holds something for %v", x.Algo, x.Name, ttl, holds)
		}
	}
	return nil
}

// walk looks at all keys: none without a TTL.
func (p *player) walk(ctx context.Context) error {
	if p.persists {
		return nil
	}
	keys, err := p.keys(ctx, "*")
	if err != nil {
		return err
	}
	for _, k := range keys {
		ttl, err := p.env.Client.PTTL(ctx, k).Result()
		if err != nil {
			return err
		}
		if ttl == -1 {
			return fmt.Errorf("the key %s has no TTL", k)
		}
	}
	return nil
}

// pick returns one of xs.
func pick[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }
