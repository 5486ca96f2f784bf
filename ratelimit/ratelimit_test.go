package ratelimit_test

import (
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		os.Exit(0)
	}
	redistest.Main(m)
}

func newLimiter(t testing.TB, rdb redis.UniversalClient, cfg ratelimit.Config, policies ...ratelimit.Policy) *ratelimit.Limiter {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute // a busy machine is not what most tests are about
	}
	l, err := ratelimit.New(rdb, cfg, policies...)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return l
}

// five returns one policy of each algorithm that admits limit units at once and
// gives none back for a minute.
func five(limit int64) map[string]ratelimit.Policy {
	return map[string]ratelimit.Policy{
		"FixedWindow":   ratelimit.FixedWindow("api", limit, time.Minute),
		"SlidingLog":    ratelimit.SlidingLog("api", limit, time.Minute),
		"SlidingWindow": ratelimit.SlidingWindow("api", limit, 24*time.Hour),
		"TokenBucket":   ratelimit.TokenBucket("api", 1, time.Minute, limit),
		"Concurrency":   ratelimit.Concurrency("api", limit, time.Minute),
	}
}

func TestAllow(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, policy := range five(5) {
			t.Run(name, func(t *testing.T) {
				l := newLimiter(t, rdb, ratelimit.Config{}, policy)
				for i := range int64(3) {
					r, err := l.Allow(t.Context(), name)
					if err != nil || !r.Allowed || r.Granted != 1 || r.Remaining != 4-i || r.Limit != 5 || r.Policy != "api" || r.RetryAfter != 0 || r.Err != nil {
						t.Fatalf("Allow %d = %+v, %v; want allowed, %d remaining", i+1, r, err, 4-i)
					}
				}
				r, err := l.AllowN(t.Context(), name, 3)
				// A sliding window of a day may need two: what is used early in one weighs until late in the next.
				if err != nil || r.Allowed || r.Granted != 0 || r.Remaining != 2 || r.RetryAfter <= 0 || r.RetryAfter > 48*time.Hour {
					t.Fatalf("AllowN(3) = %+v, %v; want denied, 2 remaining, a wait", r, err)
				}
				if r, err = l.AllowN(t.Context(), name, 6); err != nil || r.Allowed || r.RetryAfter != ratelimit.Never || r.Remaining != 2 {
					t.Fatalf("AllowN(6) = %+v, %v; want denied for ever, 2 remaining", r, err)
				}
				if r, err = l.Peek(t.Context(), name); err != nil || !r.Allowed || r.Granted != 0 || r.Remaining != 2 {
					t.Fatalf("Peek = %+v, %v; want allowed, 2 remaining", r, err)
				}
				if r, err = l.AllowUpTo(t.Context(), name, 4); err != nil || !r.Allowed || r.Granted != 2 || r.Remaining != 0 {
					t.Fatalf("AllowUpTo(4) = %+v, %v; want 2 granted", r, err)
				}
				if r, err = l.AllowUpTo(t.Context(), name, 4); err != nil || r.Allowed || r.Granted != 0 || r.RetryAfter <= 0 {
					t.Fatalf("AllowUpTo(4) again = %+v, %v; want denied, a wait", r, err)
				}
				if r, err = l.AllowN(t.Context(), name, -1); err == nil || r.Allowed {
					t.Fatalf("AllowN(-1) = %+v, nil; want an error", r)
				}
			})
		}
	})
}

func TestSeveralPoliciesAllOrNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{},
			ratelimit.FixedWindow("minute", 3, time.Minute),
			ratelimit.SlidingLog("hour", 5, time.Hour),
			ratelimit.TokenBucket("burst", 1, time.Hour, 2))
		for range 2 {
			if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
				t.Fatalf("Allow = %+v, %v; want allowed", r, err)
			}
		}
		r, err := l.Allow(t.Context(), "k")
		if err != nil || r.Allowed || r.Policy != "burst" || r.Remaining != 0 {
			t.Fatalf("third Allow = %+v, %v; want denied by burst", r, err)
		}
		want := []int64{1, 3, 0}
		for i, p := range r.Policies {
			if p.Remaining != want[i] || p.Allowed != (i != 2) {
				t.Errorf("policy %q: remaining %d, allowed %v; want %d, %v: a denied call took something", p.Name, p.Remaining, p.Allowed, want[i], i != 2)
			}
		}
	})
}
