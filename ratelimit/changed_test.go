package ratelimit_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// changes is what the page says of limits that change, for each algorithm: 10 of 10 units
// are taken, and then another length holds.
var changes = []struct {
	name         string
	was          ratelimit.Policy
	shorter      ratelimit.Policy // a sixth of the time
	longer       ratelimit.Policy // 60 times as long
	retryShorter time.Duration    // after which a unit fits
	retryLonger  time.Duration
	forgotten    time.Duration // after which the longer one knows nothing; 0: never too early
}{
	{"FixedWindow", ratelimit.FixedWindow("p", 10, time.Minute), ratelimit.FixedWindow("p", 10, 10*time.Second), ratelimit.FixedWindow("p", 10, time.Hour),
		10 * time.Second, time.Hour, time.Minute},
	{"aligned", ratelimit.FixedWindow("p", 10, time.Minute).Aligned(0), ratelimit.FixedWindow("p", 10, 10*time.Second).Aligned(0), ratelimit.FixedWindow("p", 10, time.Hour).Aligned(0),
		10 * time.Second, time.Hour, time.Minute},
	{"SlidingLog", ratelimit.SlidingLog("p", 10, time.Minute), ratelimit.SlidingLog("p", 10, 10*time.Second), ratelimit.SlidingLog("p", 10, time.Hour),
		10 * time.Second, time.Hour, time.Minute},
	// The old counters count on: 9 of the 10 a tenth into the next window.
	{"SlidingWindow", ratelimit.SlidingWindow("p", 10, time.Minute), ratelimit.SlidingWindow("p", 10, 10*time.Second), ratelimit.SlidingWindow("p", 10, time.Hour),
		66 * time.Second, 66 * time.Second, 0},
	{"TokenBucket", ratelimit.TokenBucket("p", 10, time.Minute, 10), ratelimit.TokenBucket("p", 10, 10*time.Second, 10), ratelimit.TokenBucket("p", 10, time.Hour, 10),
		time.Second, 6 * time.Minute, time.Minute * 17 / 16},
	{"Concurrency", ratelimit.Concurrency("p", 10, time.Minute), ratelimit.Concurrency("p", 10, 40*time.Second), ratelimit.Concurrency("p", 10, time.Hour),
		time.Minute, time.Minute, 0},
}

// TestChangedLimits is that with a clock that is set: RetryAfter is the time after which a
// unit fits, or the old limit's time after which its key is gone.
func TestChangedLimits(t *testing.T) {
	for _, c := range changes {
		for name, now := range map[string]ratelimit.Policy{"shorter": c.shorter, "longer": c.longer} {
			m, rdb := redistest.Mini(t)
			start := time.Unix(1_900_000_800, 0) // begins a minute and an hour
			m.SetTime(start)
			old := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, c.was)
			l := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, now)
			if r, err := old.AllowN(t.Context(), "k", 10); err != nil || !r.Allowed {
				t.Fatalf("%s: AllowN = %+v, %v", c.name, r, err)
			}
			want := c.retryShorter
			if name == "longer" {
				want = c.retryLonger
			}
			r, err := l.Allow(t.Context(), "k")
			if err != nil || r.Allowed || r.RetryAfter != want {
				t.Fatalf("%s, %s: Allow = allowed %v, RetryAfter %v, %v; want a denial for %v", c.name, name, r.Allowed, r.RetryAfter, err, want)
			}
			fits := want
			if name == "longer" && c.forgotten > 0 {
				fits = c.forgotten + 1100*time.Millisecond // a key outlives what it holds by a second
				m.SetTime(start.Add(min(fits-1200*time.Millisecond-c.forgotten/16, want-1)))
				if r, err := l.Allow(t.Context(), "k"); c.name != "TokenBucket" && (err != nil || r.Allowed) {
					t.Fatalf("%s: allowed %v, %v before the old limit gave back what it took; want a denial", c.name, r.Allowed, err)
				}
			} else {
				m.SetTime(start.Add(want - time.Microsecond))
				if r, err := l.Allow(t.Context(), "k"); err != nil || r.Allowed {
					t.Fatalf("%s, %s: allowed %v, %v a microsecond early", c.name, name, r.Allowed, err)
				}
			}
			m.SetTime(start.Add(fits))
			if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
				t.Fatalf("%s, %s: Allow after %v = allowed %v, RetryAfter %v, %v; want it allowed", c.name, name, fits, r.Allowed, r.RetryAfter, err)
			}
		}
	}
}

// TestChangedOnce lets one call take a unit under the longer limit, before the old one has
// given back the others: from then on that limit's TTL holds.
func TestChangedOnce(t *testing.T) {
	for _, c := range changes {
		m, rdb := redistest.Mini(t)
		start := time.Unix(1_900_000_800, 0)
		m.SetTime(start)
		old := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, c.was)
		l := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, c.longer)
		if r, err := old.AllowN(t.Context(), "k", 9); err != nil || !r.Allowed {
			t.Fatalf("%s: AllowN = %+v, %v", c.name, r, err)
		}
		if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed || r.Remaining != 0 {
			t.Fatalf("%s: Allow = %+v, %v; want it allowed, none left", c.name, r, err)
		}
		r, err := l.Allow(t.Context(), "k")
		if err != nil || r.Allowed {
			t.Fatalf("%s: Allow = %+v, %v; want a denial", c.name, r, err)
		}
		m.SetTime(start.Add(r.RetryAfter - time.Microsecond))
		if r, err := l.Allow(t.Context(), "k"); err != nil || r.Allowed {
			t.Errorf("%s: allowed %v, %v a microsecond before RetryAfter", c.name, r.Allowed, err)
		}
		m.SetTime(start.Add(r.RetryAfter))
		if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
			t.Errorf("%s: allowed %v, %v after RetryAfter", c.name, r.Allowed, err)
		}
	}
}

// TestChangedRate gives back nothing of what was reserved at another rate, also where the
// rate is the old one again.
func TestChangedRate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.TokenBucket("p", 1, time.Hour, 10))
		other := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.TokenBucket("p", 7, 2*time.Hour, 10))
		r, err := l.Reserve(t.Context(), "k", 2)
		if err != nil || !r.Allowed {
			t.Fatalf("Reserve = %+v, %v", r.Result, err)
		}
		for _, l := range []*ratelimit.Limiter{other, l} {
			if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
				t.Fatalf("Allow = %+v, %v", r, err)
			}
		}
		if err := r.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := remaining(t, l, "k"); left != 6 {
			t.Errorf("%d of 10 left; want 6, nothing given back", left)
		}
	})
}
