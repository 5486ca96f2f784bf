package ratelimit

import "github.com/redporch/redporch/internal/roundtrip"

// The classes of what can go wrong with Redis, for errors.Is. They are the same values in
// all packages of this module. ErrTimeout, ErrRefused and ErrOverloaded come with
// [ErrUnavailable], which says that Redis did not decide; ErrBug never does.
var (
	// ErrTimeout says that no answer came in time, see [MaybeExecuted].
	ErrTimeout = roundtrip.ErrTimeout

	// ErrRefused says that Redis answered and will keep refusing until somebody changes
	// its configuration: out of memory, no permission, not authenticated, read-only.
	ErrRefused = roundtrip.ErrRefused

	// ErrOverloaded says that this process did not get to asking Redis in time. Nothing was
	// executed, and it says nothing of Redis.
	ErrOverloaded = roundtrip.ErrOverloaded

	// ErrBug says that the call was wrong for the data or the topology, such as a key that
	// holds something else.
	ErrBug = roundtrip.ErrBug
)

// MaybeExecuted reports whether Redis may have carried out what err is about, although no
// answer was seen: something may have been written or charged. It is false for nil, and for
// errors that prove the opposite, such as a refused connection or an open circuit breaker.
func MaybeExecuted(err error) bool { return roundtrip.MaybeExecuted(err) }
