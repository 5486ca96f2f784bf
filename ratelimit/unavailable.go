package ratelimit

import (
	"context"
	"errors"
	"time"
)

// unavailable decides without Redis, by the failure policies.
func (l *Limiter) unavailable(key string, cost int64, cause error, reserve *Reservation) (Result, error) {
	// A burst that this process can't pass on in time is what a limit is for: it opens
	// none, and says nothing of Redis.
	overloaded := errors.Is(cause, ErrOverloaded)
	if !overloaded && l.down.Load() == 0 && l.down.CompareAndSwap(0, int64(time.Since(base))+1) {
		l.cfg.Hooks.changed(false, cause)
	}
	closed := false
	for i := range l.set.policies {
		p := &l.set.policies[i]
		if p.shadow {
			continue
		}
		switch p.down {
		case FailOpen:
			closed = closed || overloaded && l.set.local == nil
		case FailClosed:
			closed = true
		case LocalThenClosed:
			since := l.down.Load()
			closed = closed || since != 0 && time.Since(base)-time.Duration(since) >= l.cfg.LocalFor
		}
	}
	switch {
	case closed:
		return Result{Source: SourceFailClosed, RetryAfter: closedRetry, At: time.Now(), Err: cause}, nil
	case l.set.local != nil:
		r := l.local.decide(key, l.set, cost, reserve)
		r.Source, r.Err = SourceLocal, cause
		return r, nil
	}
	return Result{Allowed: true, Granted: max(cost, -cost), Source: SourceFailOpen, At: time.Now(), Err: cause}, nil
}

// available notes that Redis answered.
func (c *core) available() {
	if since := c.down.Load(); since != 0 && c.down.CompareAndSwap(since, 0) {
		c.cfg.Hooks.changed(true, nil)
	}
}

// refundAbandoned gives back what a call took whose caller had left.
func (l *Limiter) refundAbandoned(key string, s *subject, r *run, n int64, lease string) {
	res := &Reservation{Result: s.result(r, n, nil), l: l, key: key, n: r.cost, lease: lease}
	if r.cost < 0 {
		res.n = r.granted
	}
	if !res.Allowed || res.n == 0 {
		return
	}
	res.taken(s, r, n)
	_ = res.Cancel(context.Background()) // what can't be given back stays taken
}
