package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Call is one of the limits that AllowAll asks for.
type Call struct {
	Limiter *Limiter
	Key     string
	// Cost is in units; zero means 1.
	Cost int64
}

// AllowAll admits a request that is limited for several subjects, such as its
// user, its address and the service as a whole, if each of calls is admitted, and
// takes nothing if one is not.
//
// Each call is atomic, all of its policies together; several subjects are not,
// for their keys may be on different servers. They are asked one after another,
// and what was taken is given back when a later one denies. So no limit is ever
// exceeded, but a request that is denied in the end may for a moment take units
// that another then finds missing, and a process that dies in between leaves them
// taken. Put the call first that is most likely to deny: it costs one round trip
// then. Denials known in this process cost none, in any order. For a decision
// that must be atomic make it one subject with several policies.
//
// A Limiter that holds units (see Holds) is refused, since nobody could end the lease;
// use Reserve.
//
// The Result is that of the call that denied, whose RetryAfter need not be enough
// for the others, or of the one with the least remaining. Policies holds those of
// all calls that were asked. Errors are those of Allow.
func AllowAll(ctx context.Context, calls ...Call) (Result, error) {
	if len(calls) == 0 {
		return Result{}, errors.New("ratelimit: AllowAll needs at least one call")
	}
	for i := range calls {
		if calls[i].Limiter == nil {
			return Result{}, errors.New("ratelimit: a Call has no Limiter")
		}
		if err := calls[i].Limiter.lends("AllowAll"); err != nil {
			return Result{}, err
		}
		if calls[i].Cost < 0 {
			return Result{}, fmt.Errorf("ratelimit: cost %d is negative", calls[i].Cost)
		}
	}
	for _, c := range calls {
		if r, ok := c.Limiter.known(c.Key, max(c.Cost, 1)); ok {
			return r, nil
		}
	}
	var best Result
	var policies []PolicyResult
	taken := make([]*Reservation, 0, len(calls))
	for _, c := range calls {
		res, err := c.Limiter.Reserve(ctx, c.Key, max(c.Cost, 1))
		policies = append(policies, res.Policies...)
		if err != nil || !res.Allowed {
			for _, t := range taken {
				_ = t.Cancel(ctx) // what can't be given back stays taken
			}
			r := res.Result
			r.Policies = policies
			return r, err
		}
		taken = append(taken, res)
		if len(taken) == 1 || res.Policy != "" && (best.Policy == "" || res.Remaining < best.Remaining) {
			best = res.Result
		}
	}
	best.Policies = policies
	return best, nil
}

// known answers a call that an earlier denial decides.
func (l *Limiter) known(key string, cost int64) (Result, bool) {
	if l.denied == nil {
		return Result{}, false
	}
	start := time.Now()
	r, ok := l.proven(l.denied.bucket(hashOf(key)), key, min(cost, l.set.most+1))
	if ok && l.cfg.Hooks.OnDecision != nil {
		l.cfg.Hooks.decided(cost, &r, nil, time.Since(start))
	}
	return r, ok
}
