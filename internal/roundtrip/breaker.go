package roundtrip

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// breaker stops calls to a server that failed several times in a row. It is here
// rather than from a library since its closed state must cost one atomic load
// and its outcome is reported once a flight, not once a call.
//
// Closed: calls pass. After breakerFailures failures in a row it opens for a
// pause, in which calls fail at once. After the pause one call at a time may
// pass as a probe: success closes the breaker, failure doubles the pause, up to
// breakerMaxPause. The pause has a jitter of ±25 %, so that many processes do not
// probe together.
type breaker struct {
	failures atomic.Int32
	pause    atomic.Int64 // nanoseconds, the last pause
	until    atomic.Int64 // Unix nanoseconds until which calls fail; 0: closed
}

const (
	breakerFailures = 5
	breakerMinPause = 50 * time.Millisecond
	breakerMaxPause = time.Second
)

// allow reports whether a call may pass.
func (b *breaker) allow() bool {
	until := b.until.Load()
	if until == 0 {
		return true
	}
	now := time.Now().UnixNano()
	if now < until {
		return false
	}
	// A probe: keep the others out for one more pause, within which the probe
	// reports, or has died.
	return b.until.CompareAndSwap(until, now+max(b.pause.Load(), int64(breakerMinPause)))
}

// calm reports whether the last call succeeded, as far as is known.
func (b *breaker) calm() bool { return b.failures.Load() == 0 }

// report takes the outcome of a call or flight.
func (b *breaker) report(failed bool) {
	if !failed {
		if b.failures.Load() != 0 {
			b.failures.Store(0)
			b.pause.Store(0)
			b.until.Store(0)
		}
		return
	}
	if n := b.failures.Add(1); n < breakerFailures {
		return
	}
	pause := min(max(2*b.pause.Load(), int64(breakerMinPause)), int64(breakerMaxPause))
	b.pause.Store(pause)
	jitter := rand.Int64N(pause/2+1) - pause/4
	b.until.Store(time.Now().UnixNano() + pause + jitter)
}

// open reports whether calls are failing at once right now.
func (b *breaker) open() bool { return b.until.Load() != 0 }
