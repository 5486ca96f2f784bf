package ratelimit

import "time"

// unavailable decides without Redis.
func (l *Limiter) unavailable(key string, cost int64, cause error, reserve *Reservation) (Result, error) {
	if l.down.CompareAndSwap(false, true) {
		l.cfg.Hooks.changed(false, cause)
	}
	r := Result{Allowed: true, Source: SourceFailOpen, At: time.Now(), Err: cause}
	for i := range l.set.policies {
		p := &l.set.policies[i]
		if !p.shadow && p.down == FailClosed {
			r.Allowed, r.Source = false, SourceFailClosed
		}
	}
	if r.Allowed {
		r.Granted = max(cost, -cost)
	}
	return r, nil
}

// localTicket is what a Reservation took from a local limiter.
type localTicket struct{}

func (t *localTicket) settle(back int64) {}
