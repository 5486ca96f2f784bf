package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// inLine starts a call of WaitN, and returns once so many calls stand in line.
func inLine(t *testing.T, ctx context.Context, l *ratelimit.Limiter, n int64, line int) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- l.WaitN(ctx, "k", n) }()
	awaitLine(t, l, line)
	return done
}

// come returns what comes, within half a minute.
func come[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("a call of Wait did not return")
	}
	return v
}

func awaitLine(t *testing.T, l *ratelimit.Limiter, line int) {
	t.Helper()
	redistest.Await(t, "a line", func() error {
		if n := l.Waiting("k"); n != line {
			return fmt.Errorf("%d in line; want %d", n, line)
		}
		return nil
	})
}

// TestWaitTogether lets many callers wait behind a ban. Once it is lifted there is one
// decision for each unit that comes, and one for all that there is room for.
func TestWaitTogether(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		const n = 64
		for _, c := range []struct {
			policy ratelimit.Policy
			most   int64 // decisions
		}{
			{ratelimit.TokenBucket("paced", 1000, time.Second, 1), 2 * n},
			{ratelimit.FixedWindow("room", n, time.Hour), 2}, // the first tells of the room
		} {
			var decisions atomic.Int64
			l := newLimiter(t, rdb, ratelimit.Config{Prefix: c.policy.Name() + ":", MaxStale: -1, Hooks: ratelimit.Hooks{
				OnDecision: func(d ratelimit.Decision) { decisions.Add(1) }}}, c.policy)
			if err := l.Ban(t.Context(), "k", time.Hour); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					if err := l.Wait(t.Context(), "k"); err != nil {
						t.Errorf("Wait of caller %d = %v", i, err)
					}
				})
			}
			awaitLine(t, l, n)
			decisions.Store(0)
			if err := l.Unban(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			if got := decisions.Load(); got > c.most {
				t.Errorf("%v: %d decisions for %d callers; want %d at most", c.policy, got, n, c.most)
			}
			redistest.Await(t, "the queue to end", func() error {
				if q := l.Queues(); q != 0 {
					return fmt.Errorf("%d queues are left; want none", q)
				}
				return nil
			})
			if c.policy.Name() == "room" {
				if left := remaining(t, l, "k"); left != 0 {
					t.Errorf("%d left of %d; want 0", left, n)
				}
			}
		}
	})
}

// TestWaitInOrder gives back a unit at a time: callers are admitted in the order in which
// they came, and one that waits for many units is not passed over by those behind it.
func TestWaitInOrder(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: -1}, ratelimit.FixedWindow("f", 10, time.Hour))
		if _, err := l.AllowN(t.Context(), "k", 10); err != nil {
			t.Fatal(err)
		}
		came := make(chan int)
		var all sync.WaitGroup
		costs := []int64{1, 1, 7, 1, 2, 10, 1, 1, 1, 1, 1, 1}
		for i, cost := range costs {
			all.Go(func() {
				if err := l.WaitN(t.Context(), "k", cost); err != nil {
					t.Errorf("WaitN of caller %d = %v", i, err)
				}
				came <- i
			})
			awaitLine(t, l, i+1)
		}
		for i, cost := range costs {
			for n := range cost {
				if line := l.Waiting("k"); n > 0 && line < len(costs)-i-1 {
					t.Fatalf("%d in line after %d of the %d units that caller %d waits for; want %d", line, n, cost, i, len(costs)-i)
				}
				if err := l.Refund(t.Context(), "k", 1); err != nil {
					t.Fatal(err)
				}
			}
			if got := come(t, came); got != i {
				t.Fatalf("caller %d was admitted; want caller %d, who waits for %d units", got, i, cost)
			}
		}
		all.Wait()
	})
}

// TestWaitHears lets a caller wait for an hour whose unit comes back at once.
func TestWaitHears(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		policy := ratelimit.SlidingLog("l", 1, time.Hour)
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: -1}, policy)
		other := newLimiter(t, rdb, ratelimit.Config{MaxStale: 5 * time.Millisecond}, policy)
		for _, back := range []struct {
			name string
			by   *ratelimit.Limiter
			how  func(r *ratelimit.Reservation) error
		}{
			{"Cancel", l, func(r *ratelimit.Reservation) error { return r.Cancel(t.Context()) }},
			{"Commit", l, func(r *ratelimit.Reservation) error { return r.Commit(t.Context(), 0) }},
			{"Refund", l, func(*ratelimit.Reservation) error { return l.Refund(t.Context(), "k", 1) }},
			{"Reset", l, func(*ratelimit.Reservation) error { return l.Reset(t.Context(), "k") }},
			{"Cancel by another process", other, func(r *ratelimit.Reservation) error { return r.Cancel(t.Context()) }},
		} {
			r, err := l.Reserve(t.Context(), "k", 1)
			if err != nil || !r.Allowed {
				t.Fatalf("%s: Reserve = %+v, %v", back.name, r.Result, err)
			}
			done := inLine(t, t.Context(), back.by, 1, 1)
			if err := back.how(r); err != nil {
				t.Fatalf("%s: %v", back.name, err)
			}
			if err := come(t, done); err != nil {
				t.Fatalf("%s: Wait = %v", back.name, err)
			}
			if left := remaining(t, l, "k"); left != 0 {
				t.Fatalf("%s: %d left; want 0", back.name, left)
			}
			if err := l.Reset(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestWaitLocal is TestWaitHears where the units were taken in this process.
func TestWaitLocal(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = rdb.Close() })
	l := newLimiter(t, rdb, ratelimit.Config{Timeout: 100 * time.Millisecond, MaxStale: -1}, ratelimit.FixedWindow("f", 8, time.Hour))
	r, err := l.Reserve(t.Context(), "k", 2)
	if err != nil || !r.Allowed || r.Source != ratelimit.SourceLocal {
		t.Fatalf("Reserve = %+v, %v; want all of the share, 2 of 8", r.Result, err)
	}
	done := inLine(t, t.Context(), l, 1, 1)
	if err := r.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := come(t, done); err != nil {
		t.Fatalf("Wait = %v", err)
	}
	// More than the share is not more than the limit.
	ctx, cancel := context.WithCancel(t.Context())
	done = inLine(t, ctx, l, 5, 1)
	cancel()
	if err := come(t, done); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitN(5) of 8 = %v; want it to wait until it is cancelled", err)
	}
}

// TestWaitLine lets callers wait behind one that waits for an hour.
func TestWaitLine(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: -1}, ratelimit.SlidingLog("l", 10, time.Hour))
		if _, err := l.AllowN(t.Context(), "k", 7); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := inLine(t, ctx, l, 9, 1)
		// A caller in line is not asked for, and told at once that its turn comes too late.
		near, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		n := redistest.Count(t, rdb, func() {
			if err := l.Wait(near, "k"); !errors.Is(err, ratelimit.ErrTooLate) || near.Err() != nil {
				t.Errorf("Wait behind one that waits for an hour = %v; want ErrTooLate at once", err)
			}
		})
		if n.Total != 0 {
			t.Errorf("it sent %v; want nothing", n.By)
		}
		second := inLine(t, t.Context(), l, 2, 2)
		gone, leave := context.WithCancel(t.Context())
		third := inLine(t, gone, l, 1, 3)
		leave()
		if err := come(t, third); !errors.Is(err, context.Canceled) || ratelimit.MaybeExecuted(err) {
			t.Errorf("Wait of a caller that left the line = %v; want context.Canceled, and nothing taken", err)
		}
		fourth := inLine(t, t.Context(), l, 1, 3)
		cancel() // the large cost leaves, and the others fit
		if err := come(t, first); !errors.Is(err, context.Canceled) {
			t.Errorf("WaitN of a caller that left = %v; want context.Canceled", err)
		}
		for i, done := range []<-chan error{second, fourth} {
			if err := come(t, done); err != nil {
				t.Errorf("Wait %d behind a caller that left = %v", i, err)
			}
		}
		if left := remaining(t, l, "k"); left != 0 {
			t.Errorf("%d left; want 0", left)
		}
	})
}

// TestWaitLeftMeanwhile gives back what was taken for a caller that left before it was told.
func TestWaitLeftMeanwhile(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var leave atomic.Pointer[func()]
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: -1, Hooks: ratelimit.Hooks{OnDecision: func(d ratelimit.Decision) {
			if f := leave.Load(); f != nil && d.Cost == 3 {
				(*f)()
			}
		}}}, ratelimit.FixedWindow("f", 5, time.Hour))
		r, err := l.Reserve(t.Context(), "k", 5)
		if err != nil || !r.Allowed {
			t.Fatalf("Reserve = %+v, %v", r.Result, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := inLine(t, ctx, l, 3, 1)
		left := make(chan error, 1)
		f := func() { cancel(); left <- <-done }
		leave.Store(&f)
		if err := r.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := come(t, left); !errors.Is(err, context.Canceled) {
			t.Errorf("WaitN = %v; want context.Canceled", err)
		}
		redistest.Await(t, "the units to be given back", func() error {
			if n := remaining(t, l, "k"); n != 5 {
				return fmt.Errorf("%d left; want 5", n)
			}
			return nil
		})
	})
}

// TestHeldRefused refuses what would take leases that nobody could end.
func TestHeldRefused(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("f", 5, time.Hour), ratelimit.Concurrency("jobs", 5, time.Hour))
		_, all := ratelimit.AllowAll(t.Context(), ratelimit.Call{Limiter: l, Key: "k"})
		for name, err := range map[string]error{"Wait": l.Wait(t.Context(), "k"), "WaitN": l.WaitN(t.Context(), "k", 2), "AllowAll": all} {
			if err == nil || !strings.Contains(err.Error(), `"jobs"`) || !strings.Contains(err.Error(), "Reserve") {
				t.Errorf("%s = %v; want an error that names the policy and Reserve", name, err)
			}
		}
		r, err := l.Peek(t.Context(), "k")
		if err != nil || slices.ContainsFunc(r.Policies, func(p ratelimit.PolicyResult) bool { return p.Remaining != 5 }) {
			t.Errorf("Peek = %+v, %v; want all units there", r.Policies, err)
		}
	})
}

// TestGranted asks for more than policies that decide nothing admit.
func TestGranted(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range five(5) {
			l := newLimiter(t, rdb, ratelimit.Config{}, p.Shadow())
			if r, err := l.AllowN(t.Context(), name, 42); err != nil || !r.Allowed || r.Granted != 42 || r.Policies[0].Remaining != 5 {
				t.Errorf("%s: AllowN(42) of a shadow of 5 = %+v, %v; want 42 granted, none counted", name, r, err)
			}
			if r, err := l.AllowUpTo(t.Context(), name, 42); err != nil || !r.Allowed || r.Granted != 42 || r.Policies[0].Remaining != 0 {
				t.Errorf("%s: AllowUpTo(42) of a shadow of 5 = %+v, %v; want 42 granted, 5 counted", name, r, err)
			}
		}
	})
	away := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = away.Close() })
	l := newLimiter(t, away, ratelimit.Config{Timeout: 100 * time.Millisecond, OnUnavailable: ratelimit.FailOpen}, ratelimit.FixedWindow("f", 5, time.Hour))
	if r, err := l.AllowN(t.Context(), "k", 42); err != nil || !r.Allowed || r.Granted != 42 {
		t.Errorf("AllowN(42) of 5 that fails open = %+v, %v; want 42 granted", r, err)
	}
}
