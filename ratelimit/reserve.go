package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed refund.lua
	refundSource string
	//go:embed renew.lua
	renewSource string

	refundScript = roundtrip.NewScript(withParts(refundSource))
	renewScript  = roundtrip.NewScript(renewSource)
)

// Reservation is what Reserve took. End it with Commit or Cancel; what is called
// after either does nothing, so "defer r.Cancel(ctx)" is a safe habit. It is safe
// for concurrent use.
type Reservation struct {
	// Result is the outcome of Reserve. If it is not Allowed nothing was taken.
	Result

	l     *Limiter
	key   string
	n     int64
	lease string
	ended atomic.Bool

	// What was taken, for SourceRedis.
	subject *subject
	totals  []int64 // per policy up to and with this call
	took    []int64 // per policy by this call
	local   *localTicket
	parts   []*Reservation // of each policy, if they were asked apart
}

// Reserve takes n units for key as AllowN does, to be settled when the true cost
// is known: tokens of a model, bytes of a reply, whether a login failed. Units of
// a Concurrency policy are held until then. n is 1 or more. The error is that of
// Allow; the Reservation is never nil.
func (l *Limiter) Reserve(ctx context.Context, key string, n int64) (*Reservation, error) {
	res := &Reservation{l: l, key: key, n: n}
	if n < 1 {
		return res, fmt.Errorf("ratelimit: cost %d is less than 1", n)
	}
	start := time.Now()
	var err error
	res.Result, err = l.decide(ctx, key, n, res)
	if l.cfg.Hooks.OnDecision != nil {
		l.cfg.Hooks.decided(n, &res.Result, err, time.Since(start))
	}
	return res, err
}

// taken notes what Redis took, so that it can be given back.
func (r *Reservation) taken(s *subject, rn *run, n int64) {
	r.subject, r.totals = s, rn.totals(n)
	r.took = make([]int64, len(r.totals))
	for i := range r.took {
		before := rn.before()[i]
		if rn.cost > 0 {
			before += min(n*rn.cost, rn.took()[i])
		}
		r.took[i] = r.totals[i] - before
	}
}

// Cancel gives back all that was taken, as far as it still counts, and ends
// leases. It is carried out even if ctx is cancelled, and at most once: the error
// is non-nil if Redis could not be asked, and then the units may stay taken until
// they expire.
func (r *Reservation) Cancel(ctx context.Context) error { return r.Commit(ctx, 0) }

// Commit settles for actual units: if fewer were used than reserved, the rest is
// given back; if more, as many of them as the limits still admit are taken, and
// the others forgiven. Leases end. Errors are those of Cancel.
func (r *Reservation) Commit(ctx context.Context, actual int64) error {
	if actual < 0 {
		return fmt.Errorf("ratelimit: actual cost %d is negative", actual)
	}
	if !r.Allowed || !r.ended.CompareAndSwap(false, true) {
		return nil
	}
	if r.local != nil {
		r.local.settle(max(r.n-actual, 0))
		r.l.waits.returned(r.key)
		return nil
	}
	if r.parts != nil {
		var errs []error
		for _, p := range r.parts {
			errs = append(errs, p.Commit(ctx, actual))
		}
		return errors.Join(errs...)
	}
	if r.subject == nil {
		return nil // admitted uncounted
	}
	ctx = context.WithoutCancel(ctx)
	err := r.giveBack(ctx, max(r.n-actual, 0))
	if actual > r.n && err == nil {
		err = r.l.excess(ctx, r.key, actual-r.n)
	}
	return err
}

// giveBack returns n of the units of each rate policy and all leases.
func (r *Reservation) giveBack(ctx context.Context, n int64) error {
	set := r.subject.set
	if n == 0 && !set.leased {
		return nil
	}
	return r.l.refund(ctx, r.key, set, r.refundArgs(n))
}

func (r *Reservation) refundArgs(n int64) []any {
	set := r.subject.set
	args := make([]any, 0, 2+refundEach*len(set.policies))
	args = append(args, len(set.policies), r.subject.now)
	for i := range set.policies {
		p, s := &set.policies[i], r.subject.snaps[i]
		var mark any
		units, mark2, mark3 := min(n, r.took[i]), int64(0), int64(0)
		switch p.algo {
		case slidingLog:
			mark = s.logTime(r.subject.now)
		case tokenBucket:
			mark, mark2, mark3 = s.y+r.totals[i]*p.wt, s.x, s.z+r.totals[i]
		case concurrency:
			units, mark = r.took[i], r.lease
		case slidingWindow:
			n := p.counters(s, r.totals[i], r.subject.now)
			mark, mark2, mark3 = n.x, n.z, r.took[i]
		default:
			mark, mark2, mark3 = s.x, s.y+r.totals[i], r.took[i]
		}
		args = append(append(args, p.args[:]...), units, mark, mark2, mark3)
	}
	return args
}

// refundEach is the number of arguments of refund.lua for a policy.
const refundEach = 10

func (l *Limiter) refund(ctx context.Context, key string, set *policySet, args []any) error {
	_, err := l.conn.Run(ctx, "refund", refundScript.Cmd(ctx, refundKeys(l.keys.base(key), set), args...).Once())
	if redis.IsTryAgainError(err) {
		err = l.refundApart(ctx, key, set, args)
	}
	// Also after a failure: it may have been carried out.
	l.forget(key)
	return err
}

// excess takes up to n units that were used beyond a reservation.
func (l *Limiter) excess(ctx context.Context, key string, n int64) error {
	set := l.set
	if set.leased {
		var rest []Policy
		for i := range set.policies {
			if set.policies[i].algo != concurrency {
				rest = append(rest, set.policies[i].Policy)
			}
		}
		if len(rest) == 0 {
			return nil
		}
		var err error
		if set, err = l.newSet(rest); err != nil {
			return err
		}
	}
	_, _, _, _, err := (&Limiter{core: l.core, set: set}).ask(ctx, hashOf(key), key, -min(n, set.most), "")
	return err
}

// Renew prolongs the reservation's leases to their full length from now, for work
// that takes longer. It reports false if one has ended already: others may hold
// its units by now. Without Concurrency policies it does nothing and reports
// true.
func (r *Reservation) Renew(ctx context.Context) (held bool, err error) {
	if !r.Allowed || r.ended.Load() {
		return false, nil
	}
	for _, p := range r.parts {
		if held, err = p.Renew(ctx); !held || err != nil {
			return held, err
		}
	}
	if r.subject == nil || r.lease == "" {
		return true, nil
	}
	set := r.subject.set
	prefix := r.l.keys.base(r.key)
	var keys []string
	args := []any{r.lease}
	for i := range set.policies {
		if p := &set.policies[i]; p.algo == concurrency {
			keys = append(keys, prefix+p.suffix)
			args = append(args, p.win, r.took[i])
		}
	}
	cmd, err := r.l.conn.Run(ctx, "renew", renewScript.Cmd(ctx, keys, args...))
	if err != nil {
		return false, err
	}
	n, err := cmd.Int()
	return n == 1, err
}

// Refund gives back the n units of key that were taken last (of a token bucket those
// that would drain next), from every policy
// that is not a Concurrency: never below nothing used, and never to a later
// window. To give back just what one call took, use Reserve. n is 1 or more. The
// units may stay taken if the error is non-nil.
func (l *Limiter) Refund(ctx context.Context, key string, n int64) error {
	if n < 1 {
		return errors.New("ratelimit: a refund must be of 1 unit or more")
	}
	return l.refund(context.WithoutCancel(ctx), key, l.set, l.refundArgs(min(n, maxUnits)))
}

func (l *Limiter) refundArgs(n int64) []any {
	set := l.set
	args := make([]any, 0, 2+refundEach*len(set.policies))
	args = append(args, len(set.policies), "")
	for i := range set.policies {
		p := &set.policies[i]
		units := n
		switch p.algo {
		case tokenBucket:
			units = min(n, maxExact/2/p.wt)
		case concurrency:
			units = 0
		}
		args = append(append(args, p.args[:]...), units, "", 0, 0)
	}
	return args
}

// backSuffix ends the name of the key that says what was given back, as far as those need to
// know who give back later.
const backSuffix = ":back"

// refundKeys returns the keys of refund.lua, which are those of reset.lua as well.
func refundKeys(base string, set *policySet) []string {
	keys := make([]string, 0, 3*len(set.policies))
	for _, end := range []string{"", resetSuffix} {
		for i := range set.policies {
			keys = append(keys, base+set.policies[i].suffix+end)
		}
	}
	for i := range set.policies {
		if p := &set.policies[i]; p.algo == tokenBucket || p.algo == fixedWindow || p.algo == slidingWindow {
			keys = append(keys, base+p.suffix+backSuffix)
		}
	}
	return keys
}

// stateKeys returns the state keys of key's policies.
func (l *Limiter) stateKeys(key string, set *policySet) []string {
	prefix := l.keys.base(key)
	keys := make([]string, len(set.policies))
	for i := range keys {
		keys[i] = prefix + set.policies[i].suffix
	}
	return keys
}
