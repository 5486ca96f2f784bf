package ratelimit

import (
	"math"
	"time"
)

// Never is the RetryAfter of a call that asks for more units than a policy can
// ever admit at once.
const Never = time.Duration(math.MaxInt64)

// Source says who decided.
type Source uint8

const (
	// SourceRedis: Redis decided on its state.
	SourceRedis Source = iota
	// SourceDenied: an earlier denial by Redis proves this one; Redis was not asked.
	SourceDenied
	// SourceLocal: Redis is unavailable, a limiter in this process decided.
	SourceLocal
	// SourceFailOpen: Redis is unavailable, the call was admitted uncounted.
	SourceFailOpen
	// SourceFailClosed: Redis is unavailable, the call was denied.
	SourceFailClosed
)

// String returns "redis", "denied", "local", "open" or "closed".
func (s Source) String() string {
	switch s {
	case SourceRedis:
		return "redis"
	case SourceDenied:
		return "denied"
	case SourceLocal:
		return "local"
	case SourceFailOpen:
		return "open"
	case SourceFailClosed:
		return "closed"
	}
	return "unknown"
}

// Result is the outcome of one call. The zero Result is a denial, so a Result is
// safe to act on also when the error beside it was not looked at.
//
// All durations count from At.
type Result struct {
	// Allowed reports whether the call may proceed. For a peek: whether one unit
	// would be admitted.
	Allowed bool
	// Banned reports that the key is banned, see Limiter.Ban. Policies are not
	// looked at then.
	Banned bool

	// Granted is the number of units taken: the cost if Allowed; for AllowUpTo
	// perhaps less; 0 for a denial or peek.
	Granted int64
	// Limit and Remaining describe the deciding policy: how many units it admits
	// at once, and how many are left. Remaining is true on denial as well; of
	// SourceDenied both are as that earlier denial found them.
	Limit, Remaining int64

	// RetryAfter is the smallest wait after which this call would be admitted if
	// no other came: 0 if it was, Never if it asks for more than a policy can
	// ever admit.
	RetryAfter time.Duration
	// NextAfter is the wait until Remaining grows; 0 if nothing is used.
	NextAfter time.Duration
	// ResetAfter is the wait until nothing of the deciding policy is used.
	ResetAfter time.Duration

	// Policy names the deciding policy: of a denial the one that will admit the
	// call last, otherwise the one with the least remaining. It is empty if the
	// key is banned, if all policies are shadows, or if a failure policy decided
	// without counting.
	Policy string
	// Policies holds the outcome of each policy, in the order given to New. It
	// must not be changed. It is nil where Policy is empty, except that shadows
	// are reported.
	Policies []PolicyResult

	// Source says who decided.
	Source Source
	// At is the time of the decision, by the server's clock for SourceRedis and
	// SourceDenied, by this machine's otherwise.
	At time.Time
	// Err is why Redis did not decide, if it did not. The call was then decided by
	// the failure policy.
	Err error
}

// PolicyResult is what one policy says to a call.
type PolicyResult struct {
	// Name is the policy's name.
	Name string
	// Allowed reports whether this policy by itself admits the call. A shadow that
	// does not would have denied it.
	Allowed bool
	// Shadow reports that the policy does not deny.
	Shadow bool
	// Limit, Remaining and Window describe the policy after the call.
	Limit, Remaining int64
	Window           time.Duration
	// RetryAfter is the smallest wait after which this policy admits the call, 0
	// if it does, Never if it never can.
	RetryAfter time.Duration
	// NextAfter is the wait until Remaining grows, 0 if nothing is used.
	NextAfter time.Duration
	// ResetAfter is the wait until nothing is used.
	ResetAfter time.Duration
}
