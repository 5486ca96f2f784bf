package ratelimit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func remaining(t *testing.T, l *ratelimit.Limiter, key string) int64 {
	t.Helper()
	r, err := l.Peek(t.Context(), key)
	if err != nil {
		t.Fatalf("Peek: %v", err)
	}
	return r.Remaining
}

func TestReserve(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, policy := range five(10) {
			t.Run(name, func(t *testing.T) {
				l := newLimiter(t, rdb, ratelimit.Config{}, policy)
				reserve := func(n int64) *ratelimit.Reservation {
					t.Helper()
					r, err := l.Reserve(t.Context(), name, n)
					if err != nil || !r.Allowed {
						t.Fatalf("Reserve(%d) = %+v, %v; want allowed", n, r.Result, err)
					}
					return r
				}
				held := name == "Concurrency"
				want := func(what string, rate, concurrency int64) {
					t.Helper()
					if held {
						rate = concurrency
					}
					if got := remaining(t, l, name); got != rate {
						t.Fatalf("remaining after %s = %d; want %d", what, got, rate)
					}
				}
				a, b, c := reserve(3), reserve(2), reserve(4)
				want("reserving 9", 1, 1)
				if r, err := l.Reserve(t.Context(), name, 2); err != nil || r.Allowed {
					t.Fatalf("Reserve(2) with 1 left = %+v, %v; want denied", r.Result, err)
				} else if err := r.Cancel(t.Context()); err != nil {
					t.Fatalf("Cancel of a denied reservation: %v", err)
				}
				gone, cancel := context.WithCancel(t.Context())
				cancel()
				if err := b.Cancel(gone); err != nil {
					t.Fatalf("Cancel under a cancelled context: %v", err)
				}
				want("cancelling 2", 3, 3)
				if err := b.Cancel(t.Context()); err != nil {
					t.Fatalf("second Cancel: %v", err)
				}
				want("cancelling twice", 3, 3)
				if err := a.Commit(t.Context(), 1); err != nil {
					t.Fatalf("Commit(1): %v", err)
				}
				want("committing 1 of 3", 5, 6)
				if err := c.Commit(t.Context(), 6); err != nil {
					t.Fatalf("Commit(6): %v", err)
				}
				want("committing 6 of 4", 3, 10)
				if err := c.Cancel(t.Context()); err != nil {
					t.Fatalf("Cancel after Commit: %v", err)
				}
				want("Cancel after Commit", 3, 10)
				d := reserve(1)
				if err := d.Commit(t.Context(), 1000); err != nil {
					t.Fatalf("Commit(1000): %v", err)
				}
				want("committing more than there is", 0, 10)
				if err := a.Commit(t.Context(), -1); err == nil {
					t.Fatal("Commit(-1) = nil; want an error")
				}
			})
		}
	})
}

// Giving back must never add to what is there, nor to a later window.
func TestRefundNeverExceedsTheLimit(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, policy := range five(10) {
			t.Run(name, func(t *testing.T) {
				l := newLimiter(t, rdb, ratelimit.Config{}, policy)
				if err := l.Refund(t.Context(), name, 5); err != nil {
					t.Fatalf("Refund of nothing: %v", err)
				}
				for range 3 {
					if r, err := l.AllowN(t.Context(), name, 2); err != nil || !r.Allowed {
						t.Fatalf("AllowN(2) = %+v, %v; want allowed", r, err)
					}
				}
				if err := l.Refund(t.Context(), name, 3); err != nil {
					t.Fatalf("Refund(3): %v", err)
				}
				want := int64(7)
				if name == "Concurrency" {
					want = 4
				}
				if got := remaining(t, l, name); got != want {
					t.Fatalf("remaining after 6 taken, 3 given back = %d; want %d", got, want)
				}
				if err := l.Refund(t.Context(), name, 100); err != nil {
					t.Fatalf("Refund(100): %v", err)
				}
				if name != "Concurrency" {
					if got := remaining(t, l, name); got != 10 {
						t.Fatalf("remaining after too large a refund = %d; want 10", got)
					}
				}
				if err := l.Refund(t.Context(), name, 0); err == nil {
					t.Fatal("Refund(0) = nil; want an error")
				}
			})
		}
		for name, policy := range map[string]ratelimit.Policy{
			"FixedWindow":   ratelimit.FixedWindow("w", 4, 60*time.Millisecond),
			"SlidingLog":    ratelimit.SlidingLog("w", 4, 60*time.Millisecond),
			"SlidingWindow": ratelimit.SlidingWindow("w", 4, 30*time.Millisecond),
			"TokenBucket":   ratelimit.TokenBucket("w", 4, 60*time.Millisecond, 4),
		} {
			t.Run("later window/"+name, func(t *testing.T) {
				l := newLimiter(t, rdb, ratelimit.Config{}, policy)
				// On a busy machine the later window may end before it was looked at.
				for looked := false; !looked; {
					r, err := l.Reserve(t.Context(), "later"+name, 4)
					if err != nil {
						t.Fatalf("Reserve: %v", err)
					}
					if !r.Allowed {
						time.Sleep(r.RetryAfter)
						continue
					}
					time.Sleep(r.ResetAfter + 2*time.Millisecond)
					later, err := l.AllowN(t.Context(), "later"+name, 4)
					if err != nil || !later.Allowed {
						t.Fatalf("AllowN after reset = %+v, %v; want allowed", later, err)
					}
					if err := r.Cancel(t.Context()); err != nil {
						t.Fatalf("Cancel: %v", err)
					}
					after, err := l.Peek(t.Context(), "later"+name)
					if err != nil {
						t.Fatalf("Peek: %v", err)
					}
					looked = after.At.Before(later.At.Add(later.ResetAfter))
					if looked && after.Remaining == 4 {
						t.Fatalf("after cancelling an earlier window's units: %+v; want the later window's 4 still used", after)
					}
				}
			})
		}
	})
}

// A lease is prolonged to its full length while it is held, and not once it has ended.
func TestRenew(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		const lease = time.Hour
		l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, ratelimit.Concurrency("jobs", 2, lease))
		key := ratelimit.DefaultPrefix + "{k}:n:jobs"
		// older lets time pass for the leases, and not for the server.
		older := func(d time.Duration) {
			t.Helper()
			leases, err := rdb.ZRangeWithScores(t.Context(), key, 0, -1).Result()
			if err != nil || len(leases) != 2 {
				t.Fatalf("leases %v, %v; want 2", leases, err)
			}
			for i := range leases {
				leases[i].Score -= float64(d.Microseconds())
			}
			if err := rdb.ZAdd(t.Context(), key, leases...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		r, err := l.Reserve(t.Context(), "k", 2)
		if err != nil || !r.Allowed {
			t.Fatalf("Reserve = %+v, %v; want allowed", r.Result, err)
		}
		for range 3 {
			older(lease / 2)
			before, _ := l.Peek(t.Context(), "k")
			held, err := r.Renew(t.Context())
			after, _ := l.Peek(t.Context(), "k")
			if err != nil || !held || before.ResetAfter > lease/2 || after.ResetAfter <= lease/2 || after.Remaining != 0 {
				t.Fatalf("Renew = %v, %v; the lease ended in %v before and in %v after, %d free", held, err, before.ResetAfter, after.ResetAfter, after.Remaining)
			}
			if ttl := rdb.PTTL(t.Context(), key).Val(); ttl <= after.ResetAfter {
				t.Fatalf("the key's TTL is %v; want more than the lease's %v", ttl, after.ResetAfter)
			}
		}
		older(lease)
		if got := remaining(t, l, "k"); got != 2 {
			t.Fatalf("remaining after the lease ended = %d; want 2", got)
		}
		if held, err := r.Renew(t.Context()); err != nil || held {
			t.Fatalf("Renew after the lease ended = %v, %v; want not held", held, err)
		}
		if got := remaining(t, l, "k"); got != 2 {
			t.Fatalf("remaining after a late Renew = %d; want 2", got)
		}
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		const window = 100 * time.Millisecond
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.SlidingLog("w", 2, window))
		start := time.Now()
		for range 3 {
			if err := l.Wait(t.Context(), "k"); err != nil {
				t.Fatalf("Wait: %v", err)
			}
		}
		if took := time.Since(start); took < window {
			t.Errorf("three waits at 2 in %v took %v; want more", window, took)
		}
		slow := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.SlidingLog("slow", 2, time.Hour))
		if err := slow.WaitN(t.Context(), "k", 1); err != nil {
			t.Fatal(err)
		}
		near, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := slow.WaitN(near, "k", 2); !errors.Is(err, ratelimit.ErrTooLate) || !errors.Is(err, context.DeadlineExceeded) || near.Err() != nil {
			t.Errorf("Wait with too near a deadline = %v, context %v; want ErrTooLate at once", err, near.Err())
		}
		if err := slow.WaitN(t.Context(), "k", 3); !errors.Is(err, ratelimit.ErrNever) {
			t.Errorf("WaitN(3) of 2 = %v; want ErrNever", err)
		}
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := slow.WaitN(gone, "k", 2); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait with a cancelled context = %v; want context.Canceled", err)
		}
		if err := l.WaitN(t.Context(), "k", 0); err == nil {
			t.Error("WaitN(0) = nil; want an error")
		}
	})
}

func TestResetAndBan(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, policy := range five(2) {
			t.Run(name, func(t *testing.T) {
				l := newLimiter(t, rdb, ratelimit.Config{}, policy)
				allow := func(what string, want bool) ratelimit.Result {
					t.Helper()
					r, err := l.Allow(t.Context(), name)
					if err != nil || r.Allowed != want {
						t.Fatalf("Allow %s = %+v, %v; want allowed %v", what, r, err, want)
					}
					return r
				}
				allow("first", true)
				allow("second", true)
				allow("third", false)
				allow("fourth", false)
				if err := l.Reset(t.Context(), name); err != nil {
					t.Fatalf("Reset: %v", err)
				}
				allow("after Reset", true)
				if err := l.Ban(t.Context(), name, time.Minute); err != nil {
					t.Fatalf("Ban: %v", err)
				}
				other := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("other", 9, time.Minute))
				if r, err := other.Peek(t.Context(), name); err != nil || r.Allowed || !r.Banned {
					t.Fatalf("Peek of another limiter = %+v, %v; want banned", r, err)
				}
				for range 2 {
					if r := allow("while banned", false); !r.Banned || r.RetryAfter <= 0 || r.RetryAfter > time.Minute || r.Policy != "" {
						t.Fatalf("Allow while banned = %+v; want banned for up to a minute", r)
					}
				}
				if err := l.Unban(t.Context(), name); err != nil {
					t.Fatalf("Unban: %v", err)
				}
				allow("after Unban", true)
			})
		}
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("w", 1, time.Minute))
		if err := l.Ban(t.Context(), "k", 0); err == nil {
			t.Error("Ban for 0 = nil; want an error")
		}
	})
}

// A call under a changed window moves what is used into a window of the new
// length, and its reservation knows that one.
func TestCancelAfterTheWindowChanged(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		before := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.SlidingWindow("api", 10, time.Hour))
		if _, err := before.AllowN(t.Context(), "k", 5); err != nil {
			t.Fatal(err)
		}
		after, err := before.With(ratelimit.SlidingWindow("api", 10, 1007*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		res, err := after.Reserve(t.Context(), "k", 3)
		if err != nil || res.Remaining != 2 {
			t.Fatalf("Reserve = %d left, %v; want 2", res.Remaining, err)
		}
		if err := res.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, err := after.Peek(t.Context(), "k"); err != nil || r.Remaining != 5 {
			t.Errorf("after Cancel %d are left, %v; want 5", r.Remaining, err)
		}
	})
}
