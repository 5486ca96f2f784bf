package ratelimit

import "time"

// Hooks are told what happens in a Limiter. All are optional, called on the
// caller's goroutine unless said otherwise, and must be safe for concurrent use.
// They are given no keys. A panic in a hook is swallowed.
type Hooks struct {
	// OnDecision is told of each decision. Callers of Wait for one key may be decided about
	// together, on a goroutine of the Limiter's: Cost is that of all of them then.
	OnDecision func(Decision)
	// OnStateChange is told once each time Redis becomes unavailable to the
	// limiter, and once when it is available again.
	OnStateChange func(available bool, cause error)
}

// Decision describes a decided call.
type Decision struct {
	Allowed bool
	Banned  bool
	// Cost is what was asked for, Granted what was given.
	Cost, Granted int64
	// Policy is the deciding policy, as in Result.
	Policy string
	// ShadowDenied names the first shadow policy that would have denied, if any.
	ShadowDenied string
	Source       Source
	// Duration is the time from entry to return.
	Duration time.Duration
	// Err is Result.Err, or the error returned.
	Err error
}

// decided tells OnDecision.
func (h *Hooks) decided(cost int64, r *Result, err error, took time.Duration) {
	defer func() { _ = recover() }()
	d := Decision{Allowed: r.Allowed, Banned: r.Banned, Cost: cost, Granted: r.Granted, Policy: r.Policy,
		Source: r.Source, Duration: took, Err: err}
	if err == nil {
		d.Err = r.Err
	}
	for i := range r.Policies {
		if p := &r.Policies[i]; p.Shadow && !p.Allowed {
			d.ShadowDenied = p.Name
			break
		}
	}
	h.OnDecision(d)
}

func (h *Hooks) changed(available bool, cause error) {
	if h.OnStateChange == nil {
		return
	}
	defer func() { _ = recover() }()
	h.OnStateChange(available, cause)
}
