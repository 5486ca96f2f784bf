package middleware

import (
	"context"
	"errors"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// SessionHooks returns hooks for [session.Config] that tell o of each exchange with
// Redis (Op "load", "save", …; Outcome "ok" or "error") and of what happens to
// sessions (Op "session"; Outcome "created", "destroyed", "regenerated", "revoked",
// "adopted" or "undecodable").
func SessionHooks(o Observer) session.Hooks {
	happened := func(outcome string) func(context.Context, session.Event) {
		return func(ctx context.Context, _ session.Event) {
			o.tell(Event{Area: "session", Op: "session", Outcome: outcome, Context: ctx})
		}
	}
	return session.Hooks{
		Created:     happened("created"),
		Destroyed:   happened("destroyed"),
		Regenerated: happened("regenerated"),
		Revoked:     happened("revoked"),
		Adopted:     happened("adopted"),
		Undecodable: func(ctx context.Context, _ session.Event, err error) {
			o.tell(Event{Area: "session", Op: "session", Outcome: "undecodable", Err: err, Context: ctx})
		},
		Call: func(c session.Call) {
			o.tell(Event{Area: "session", Op: c.Op, Outcome: okOrError(c.Err), Duration: c.Duration, Err: c.Err})
		},
	}
}

// RateLimitHooks returns hooks for [ratelimit.Config] that tell o of each decision
// (Op "decide"; Outcome "allowed", "denied", "shadow", "banned" or "error"; Name
// the deciding policy) and of Redis going and coming (Op "redis"; Outcome
// "unavailable" or "available"). A decision by a failure policy has the outcome it
// came to, and Err set.
func RateLimitHooks(o Observer) ratelimit.Hooks {
	return ratelimit.Hooks{
		OnDecision: func(d ratelimit.Decision) {
			ev := Event{Area: "ratelimit", Op: "decide", Outcome: "denied", Name: d.Policy, Duration: d.Duration, Err: d.Err}
			switch {
			case d.Banned:
				ev.Outcome = "banned"
			case d.Allowed && d.ShadowDenied != "":
				ev.Outcome, ev.Name = "shadow", d.ShadowDenied
			case d.Allowed:
				ev.Outcome = "allowed"
			case d.Err != nil && d.Source == ratelimit.SourceRedis:
				ev.Outcome = "error"
			}
			o.tell(ev)
		},
		OnStateChange: func(available bool, cause error) {
			ev := Event{Area: "ratelimit", Op: "redis", Outcome: "available"}
			if !available {
				ev.Outcome, ev.Err = "unavailable", cause
			}
			o.tell(ev)
		},
	}
}

// CacheHooks returns hooks for [cacheaside.Config] that tell o of loads (Op "load";
// Outcome "ok", "not-found" or "error"), fills (Op "fill"; Outcome "accepted",
// "refused" or "error"), invalidations (Op "invalidate"; Outcome "ok" or "error") and
// failures that no caller sees (Op "error"; Outcome the operation). name is the
// cache's, for [Event.Name]. Hits are too quick to be reported one by one: publish
// Cache.Stats, with expvar.Func for instance.
func CacheHooks(o Observer, name string) cacheaside.Hooks {
	return cacheaside.Hooks{
		AfterInvalidate: func(ctx context.Context, _ cacheaside.Invalidation, err error) {
			o.tell(Event{Area: "cacheaside", Op: "invalidate", Outcome: okOrError(err), Name: name, Err: err, Context: ctx})
		},
		Load: func(l cacheaside.LoadEvent) {
			ev := Event{Area: "cacheaside", Op: "load", Outcome: okOrError(l.Err), Name: name, Duration: l.Duration, Err: l.Err}
			if errors.Is(l.Err, cacheaside.ErrNotFound) {
				ev.Outcome, ev.Err = "not-found", nil
			}
			o.tell(ev)
		},
		Fill: func(f cacheaside.FillEvent) {
			ev := Event{Area: "cacheaside", Op: "fill", Outcome: "accepted", Name: name, Err: f.Err}
			switch {
			case f.Err != nil:
				ev.Outcome = "error"
			case !f.Accepted:
				ev.Outcome = "refused"
			}
			o.tell(ev)
		},
		Error: func(op string, err error) {
			o.tell(Event{Area: "cacheaside", Op: "error", Outcome: op, Name: name, Err: err})
		},
	}
}

func okOrError(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
