package ratelimit_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func TestDeniedAgainCostsNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range five(2) {
			l := newLimiter(t, rdb, ratelimit.Config{}, p)
			var last ratelimit.Result
			for range 3 {
				var err error
				if last, err = l.Allow(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			if last.Allowed || last.Source != ratelimit.SourceRedis {
				t.Fatalf("%s: third Allow = %+v; want denied by Redis", name, last)
			}
			var r ratelimit.Result
			n := redistest.Count(t, rdb, func() {
				for range 100 {
					r, _ = l.Allow(t.Context(), name)
				}
			})
			if name == "Concurrency" {
				// A lease may be given back at any moment, so Redis is asked.
				if n.By["evalsha"] != 100 || r.Source != ratelimit.SourceRedis {
					t.Errorf("%s: 100 denials sent %v, last %+v; want Redis asked", name, n, r)
				}
				continue
			}
			if n.Total != 0 || r.Allowed || r.Source != ratelimit.SourceDenied {
				t.Errorf("%s: 100 denials sent %v, last %+v; want none sent", name, n, r)
			}
			if r.RetryAfter <= 0 || r.RetryAfter > last.RetryAfter || r.Remaining != 0 || r.Limit != 2 || r.Policy != "api" || len(r.Policies) != 1 {
				t.Errorf("%s: denied again %+v; want the denial %+v counted down", name, r, last)
			}
			if allocs := testing.AllocsPerRun(100, func() { l.Allow(t.Context(), name) }); allocs != 0 {
				t.Errorf("%s: a denial again makes %v allocations; want none", name, allocs)
			}
			// More units than denied are denied as well, fewer are not proven to be.
			n = redistest.Count(t, rdb, func() {
				r, _ = l.AllowN(t.Context(), name, 2)
				r, _ = l.AllowN(t.Context(), name, 2)
			})
			if r.Allowed || r.RetryAfter <= 0 || n.Total > 1 {
				t.Errorf("%s: AllowN(2) = %+v with %v; want denied with at most one command", name, r, n)
			}
			n = redistest.Count(t, rdb, func() { r, _ = l.AllowUpTo(t.Context(), name, 5) })
			if r.Allowed || n.Total != 0 {
				t.Errorf("%s: AllowUpTo(5) = %+v with %v; want denied in process", name, r, n)
			}
			if n = redistest.Count(t, rdb, func() { l.Peek(t.Context(), name) }); n.Total != 1 {
				t.Errorf("%s: Peek sent %v; want one command", name, n)
			}
		}
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.SlidingLog("api", 5, time.Minute))
		l.AllowN(t.Context(), "cost", 3)
		if r, err := l.AllowN(t.Context(), "cost", 4); err != nil || r.Allowed {
			t.Fatalf("AllowN(4) of 2 = %+v, %v; want denied", r, err)
		}
		if r, err := l.AllowN(t.Context(), "cost", 2); err != nil || !r.Allowed {
			t.Errorf("AllowN(2) of 2 after AllowN(4) was denied = %+v, %v; want allowed", r, err)
		}
		off := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, ratelimit.FixedWindow("off", 1, time.Minute))
		off.Allow(t.Context(), "k")
		off.Allow(t.Context(), "k")
		if n := redistest.Count(t, rdb, func() { off.Allow(t.Context(), "k") }); n.Total != 1 {
			t.Errorf("with NoDenialCache a denial again sent %v; want one command", n)
		}
	})
}

// The cache never denies what Redis would admit, and RetryAfter holds.
func TestDenialsAreExact(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range map[string]ratelimit.Policy{
			"FixedWindow":   ratelimit.FixedWindow("p", 3, 30*time.Millisecond),
			"SlidingLog":    ratelimit.SlidingLog("p", 3, 30*time.Millisecond),
			"SlidingWindow": ratelimit.SlidingWindow("p", 3, 30*time.Millisecond),
			"TokenBucket":   ratelimit.TokenBucket("p", 3, 30*time.Millisecond, 2),
		} {
			l := newLimiter(t, rdb, ratelimit.Config{MaxStale: -1}, p)
			asked := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, p)
			proven := 0
			for end, calls := time.Now().Add(10*time.Second), 0; calls < 50 || proven < 10 && time.Now().Before(end); calls++ {
				free, err := asked.Peek(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				r, err := l.Allow(t.Context(), name)
				if err != nil || free.Allowed && !r.Allowed {
					t.Fatalf("%s: Peek says %+v, then Allow %+v, %v", name, free, r, err)
				}
				if r.Source == ratelimit.SourceDenied {
					proven++
				}
			}
			if proven == 0 {
				t.Errorf("%s: no denial was proven in process", name)
			}
			r, err := l.Allow(t.Context(), name)
			for err == nil && r.Allowed {
				r, err = l.Allow(t.Context(), name)
			}
			time.Sleep(r.RetryAfter)
			if r, err = l.Allow(t.Context(), name); err != nil || !r.Allowed {
				t.Errorf("%s: Allow after RetryAfter = %+v, %v; want allowed", name, r, err)
			}
		}
	})
}

// What another process gives back is noticed after MaxStale, what this one gives
// back at once.
func TestDenialsEndWhenUnitsComeBack(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		p := ratelimit.SlidingLog("p", 2, time.Minute)
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: 60 * time.Millisecond}, p)
		other := newLimiter(t, rdb, ratelimit.Config{}, p)
		res, err := l.Reserve(t.Context(), "k", 2)
		if err != nil || !res.Allowed {
			t.Fatalf("Reserve = %+v, %v", res, err)
		}
		denied := func(want ratelimit.Source) {
			t.Helper()
			if r, err := l.Allow(t.Context(), "k"); err != nil || r.Allowed || r.Source != want {
				t.Fatalf("Allow = %+v, %v; want denied by %v", r, err, want)
			}
		}
		denied(ratelimit.SourceRedis)
		denied(ratelimit.SourceDenied)
		if err := res.Commit(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
			t.Fatalf("Allow after giving back = %+v, %v; want allowed", r, err)
		}
		denied(ratelimit.SourceRedis)
		if err := l.Refund(t.Context(), "k", 1); err != nil {
			t.Fatal(err)
		}
		if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
			t.Fatalf("Allow after Refund = %+v, %v; want allowed", r, err)
		}
		denied(ratelimit.SourceRedis)
		start := time.Now()
		if err := other.Reset(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		for {
			r, err := l.Allow(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if r.Allowed {
				break
			}
			if time.Since(start) > time.Second {
				t.Fatalf("denied %v after another process's Reset; want about MaxStale", time.Since(start))
			}
		}
	})
}
