package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// breakable is a Redis that can be made to refuse connections.
func breakable(t *testing.T) (*redis.Client, *redistest.Proxy) {
	t.Helper()
	m, _ := redistest.Mini(t)
	proxy := redistest.NewProxy(t, "tcp", m.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { rdb.Close() })
	return rdb, proxy
}

func breakIt(p *redistest.Proxy) {
	p.Refuse()
	p.Cut(true)
}

func TestFailurePolicies(t *testing.T) {
	rdb, proxy := breakable(t)
	cfg := ratelimit.Config{Timeout: 200 * time.Millisecond, Share: 0.5, LocalFor: time.Hour}
	short := cfg
	short.LocalFor = 1
	window := func(name string, f ratelimit.FailurePolicy) ratelimit.Policy {
		return ratelimit.FixedWindow(name, 4, time.Minute).OnUnavailable(f)
	}
	limiters := map[string]*ratelimit.Limiter{
		"default":     newLimiter(t, rdb, cfg, ratelimit.FixedWindow("w", 4, time.Minute)),
		"open":        newLimiter(t, rdb, cfg, window("w", ratelimit.FailOpen)),
		"closed":      newLimiter(t, rdb, cfg, window("w", ratelimit.FailClosed)),
		"local":       newLimiter(t, rdb, cfg, window("w", ratelimit.Local)),
		"thenClosed":  newLimiter(t, rdb, cfg, window("w", ratelimit.LocalThenClosed)),
		"closed soon": newLimiter(t, rdb, short, window("w", ratelimit.LocalThenClosed)),
		"one closed":  newLimiter(t, rdb, cfg, window("w", ratelimit.FailOpen), window("v", ratelimit.FailClosed)),
		"shadow":      newLimiter(t, rdb, cfg, window("w", ratelimit.FailOpen), window("v", ratelimit.FailClosed).Shadow()),
	}
	breakIt(proxy)
	for name, want := range map[string]ratelimit.Source{
		"open": ratelimit.SourceFailOpen, "closed": ratelimit.SourceFailClosed,
		"one closed": ratelimit.SourceFailClosed, "shadow": ratelimit.SourceFailOpen,
	} {
		r, err := limiters[name].Allow(t.Context(), "k")
		open := want == ratelimit.SourceFailOpen
		if err != nil || r.Source != want || r.Allowed != open || (r.Granted == 1) != open || (r.RetryAfter > 0) == open || !errors.Is(r.Err, ratelimit.ErrUnavailable) {
			t.Errorf("%s: Allow = %+v, %v; want source %v", name, r, err, want)
		}
	}
	for _, name := range []string{"default", "local", "thenClosed"} {
		for i := range 3 {
			r, err := limiters[name].Allow(t.Context(), "k")
			if err != nil || r.Source != ratelimit.SourceLocal || r.Allowed != (i < 2) || r.Limit != 2 || !errors.Is(r.Err, ratelimit.ErrUnavailable) {
				t.Errorf("%s: Allow %d = %+v, %v; want half the limit of 4 in process", name, i+1, r, err)
			}
			if i == 2 && (r.RetryAfter <= 50*time.Second || r.RetryAfter > time.Minute || r.Policy != "w") {
				t.Errorf("%s: denied %+v; want the wait for the window's end", name, r)
			}
		}
	}
	_, _ = limiters["closed soon"].Allow(t.Context(), "k") // finds out
	if r, err := limiters["closed soon"].Allow(t.Context(), "other"); err != nil || r.Source != ratelimit.SourceFailClosed || r.Allowed {
		t.Errorf("closed soon after LocalFor: %+v, %v; want closed", r, err)
	}
	if r, err := limiters["local"].Allow(t.Context(), "other"); err != nil || r.Source != ratelimit.SourceLocal || !r.Allowed {
		t.Errorf("local after LocalFor: %+v, %v; want local", r, err)
	}
	if err := limiters["open"].Reset(t.Context(), "k"); !errors.Is(err, ratelimit.ErrUnavailable) {
		t.Errorf("Reset = %v; want ErrUnavailable", err)
	}
	proxy.Accept(t)
	waitFor(t, "recovery", func() bool {
		r, err := limiters["local"].Allow(t.Context(), "back")
		return err == nil && r.Source == ratelimit.SourceRedis
	})
}

// All algorithms keep their limits in process, through several outages, and give back.
func TestLocal(t *testing.T) {
	for name, p := range five(8) {
		t.Run(name, func(t *testing.T) {
			rdb, proxy := breakable(t)
			l := newLimiter(t, rdb, ratelimit.Config{Share: 0.5}, p.OnUnavailable(ratelimit.Local))
			if r, err := l.AllowN(t.Context(), "warm", 5); err != nil || !r.Allowed || r.Source != ratelimit.SourceRedis {
				t.Fatalf("AllowN(5) = %+v, %v; want allowed by Redis", r, err)
			}
			breakIt(proxy)
			if r, err := l.AllowN(t.Context(), "warm", 3); err != nil || !r.Allowed || r.Source != ratelimit.SourceLocal || r.Remaining != 1 || r.Limit != 4 {
				t.Errorf("AllowN(3) of a key that Redis saw = %+v, %v; want 1 of 4 remaining", r, err)
			}
			// A Redis that comes and goes does not renew the share.
			proxy.Accept(t)
			waitFor(t, "recovery", func() bool {
				r, err := l.Peek(t.Context(), "warm")
				return err == nil && r.Source == ratelimit.SourceRedis
			})
			breakIt(proxy)
			if r, err := l.Peek(t.Context(), "warm"); err != nil || r.Source != ratelimit.SourceLocal || r.Remaining != 1 {
				t.Errorf("Peek in a second outage = %+v, %v; want 1 of 4 remaining", r, err)
			}
			res, err := l.Reserve(t.Context(), "cold", 3)
			if err != nil || !res.Allowed || res.Remaining != 1 {
				t.Fatalf("Reserve(3) = %+v, %v; want allowed, 1 remaining", res.Result, err)
			}
			if r, err := l.AllowN(t.Context(), "cold", 2); err != nil || r.Allowed || r.RetryAfter <= 0 || r.RetryAfter == ratelimit.Never {
				t.Errorf("AllowN(2) of 1 = %+v, %v; want denied, a wait", r, err)
			}
			if r, err := l.AllowN(t.Context(), "cold", 5); err != nil || r.Allowed || r.RetryAfter != ratelimit.Never {
				t.Errorf("AllowN(5) of 4 = %+v, %v; want denied for ever", r, err)
			}
			if r, err := l.AllowUpTo(t.Context(), "cold", 9); err != nil || r.Granted != 1 {
				t.Errorf("AllowUpTo(9) of 1 = %+v, %v; want 1", r, err)
			}
			if err := res.Commit(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			want := int64(2)
			if name == "Concurrency" {
				want = 3 // all of the lease has ended
			}
			if got := remaining(t, l, "cold"); got != want {
				t.Errorf("remaining after giving 2 back = %d; want %d", got, want)
			}
			var admitted atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 4 {
						r, _ := l.Allow(context.Background(), "many")
						admitted.Add(r.Granted)
					}
				})
			}
			wg.Wait()
			if admitted.Load() != 4 {
				t.Errorf("32 concurrent calls admitted %d; want 4", admitted.Load())
			}
		})
	}
}

// Windows in process end as they do in Redis.
func TestLocalTimePasses(t *testing.T) {
	rdb, proxy := breakable(t)
	breakIt(proxy)
	for name, p := range map[string]ratelimit.Policy{
		"FixedWindow":   ratelimit.FixedWindow("p", 3, 40*time.Millisecond),
		"Aligned":       ratelimit.FixedWindow("p", 3, 40*time.Millisecond).Aligned(0),
		"SlidingLog":    ratelimit.SlidingLog("p", 3, 40*time.Millisecond),
		"SlidingWindow": ratelimit.SlidingWindow("p", 3, 40*time.Millisecond),
		"TokenBucket":   ratelimit.TokenBucket("p", 3, 40*time.Millisecond, 3),
		"Concurrency":   ratelimit.Concurrency("p", 3, 40*time.Millisecond),
	} {
		l := newLimiter(t, rdb, ratelimit.Config{Share: 1}, p.OnUnavailable(ratelimit.Local))
		denied := 0
		for i := 0; i < 3 || denied == 0 && i < 100; i++ {
			r, err := l.AllowN(t.Context(), name, 3)
			if err == nil && !r.Allowed {
				time.Sleep(r.RetryAfter)
				r, err = l.AllowN(t.Context(), name, 3)
			}
			if err != nil || !r.Allowed || r.Source != ratelimit.SourceLocal {
				t.Errorf("%s: AllowN(3) after its wait = %+v, %v; want allowed", name, r, err)
			}
			again, err := l.AllowN(t.Context(), name, 3)
			if err != nil || again.Allowed && again.At.Before(r.At.Add(r.ResetAfter)) {
				t.Errorf("%s: AllowN(3) at once = %+v, %v; want denied after %+v", name, again, err, r)
			}
			if !again.Allowed {
				denied++
			}
		}
		if denied == 0 {
			t.Errorf("%s: nothing was denied", name)
		}
	}
}

// No call waits for a server that does not answer, and the state hook is told once.
func TestPausedServer(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	var downs, ups atomic.Int64
	l := newLimiter(t, rdb, ratelimit.Config{
		Timeout: 50 * time.Millisecond,
		Hooks: ratelimit.Hooks{OnStateChange: func(available bool, cause error) {
			if available {
				ups.Add(1)
			} else if downs.Add(1); !errors.Is(cause, ratelimit.ErrUnavailable) {
				t.Errorf("OnStateChange(false, %v); want ErrUnavailable", cause)
			}
			panic("a hook that panics harms nobody")
		}},
	}, ratelimit.SlidingLog("p", 1000, time.Minute).OnUnavailable(ratelimit.FailOpen))
	waitFor(t, "answer", func() bool {
		r, err := l.Allow(t.Context(), "k")
		return err == nil && r.Source == ratelimit.SourceRedis
	})
	downs.Store(0)
	ups.Store(0)
	s.Pause()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				r, err := l.Allow(context.Background(), "k")
				if err != nil || r.Source != ratelimit.SourceFailOpen || !r.Allowed {
					t.Errorf("Allow = %+v, %v; want open", r, err)
				}
			}
		})
	}
	wg.Wait() // all have returned while the server does not answer
	s.Resume()
	waitFor(t, "recovery", func() bool {
		r, err := l.Allow(t.Context(), "k")
		return err == nil && r.Source == ratelimit.SourceRedis
	})
	if downs.Load() != 1 || ups.Load() != 1 {
		t.Errorf("OnStateChange was told of %d outages and %d recoveries; want 1 and 1", downs.Load(), ups.Load())
	}
}

func TestHooks(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var got []ratelimit.Decision
		l := newLimiter(t, rdb, ratelimit.Config{Hooks: ratelimit.Hooks{OnDecision: func(d ratelimit.Decision) {
			got = append(got, d)
			panic("a hook that panics harms nobody")
		}}}, ratelimit.FixedWindow("real", 3, time.Minute), ratelimit.SlidingLog("dry", 2, time.Minute).Shadow())
		for range 3 {
			l.Allow(t.Context(), "k")
		}
		l.AllowN(t.Context(), "k", 2)
		l.AllowN(t.Context(), "k", 2)
		l.Reserve(t.Context(), "k", 7)
		if len(got) != 6 {
			t.Fatalf("%d decisions; want 6", len(got))
		}
		for i, want := range []ratelimit.Decision{
			{Allowed: true, Cost: 1, Granted: 1, Policy: "real"},
			{Allowed: true, Cost: 1, Granted: 1, Policy: "real"},
			{Allowed: true, Cost: 1, Granted: 1, Policy: "real", ShadowDenied: "dry"},
			{Cost: 2, Policy: "real", ShadowDenied: "dry"},
			{Cost: 2, Policy: "real", ShadowDenied: "dry", Source: ratelimit.SourceDenied},
			{Cost: 7, Policy: "real", ShadowDenied: "dry"},
		} {
			if got[i].Duration <= 0 {
				t.Errorf("decision %d took %v; want more than 0", i, got[i].Duration)
			}
			got[i].Duration = 0
			if i == 5 {
				got[i].Source = 0 // may be derived from the denial before
			}
			if got[i] != want {
				t.Errorf("decision %d = %+v; want %+v", i, got[i], want)
			}
		}
	})
}

func TestShadowNeverDenies(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range five(2) {
			l := newLimiter(t, rdb, ratelimit.Config{}, p.Shadow())
			for i := range 4 {
				r, err := l.Allow(t.Context(), name)
				if err != nil || !r.Allowed || r.Policy != "" || len(r.Policies) != 1 || r.Policies[0].Allowed != (i < 2) || !r.Policies[0].Shadow || (r.Policies[0].RetryAfter > 0) == (i < 2) {
					t.Errorf("%s: Allow %d = %+v, %v; want allowed, the shadow denying from the third on", name, i+1, r, err)
				}
			}
		}
	})
}

func TestAllowAll(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.SlidingLog("user", 2, time.Minute))
		with := func(p ratelimit.Policy) *ratelimit.Limiter {
			w, err := l.With(p)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		ip := with(ratelimit.TokenBucket("ip", 1, time.Minute, 5))
		all := with(ratelimit.FixedWindow("all", 3, time.Minute))
		ask := func(user string) ratelimit.Result {
			t.Helper()
			r, err := ratelimit.AllowAll(t.Context(), ratelimit.Call{Limiter: l, Key: ratelimit.Join("user", user)},
				ratelimit.Call{Limiter: ip, Key: "ip"}, ratelimit.Call{Limiter: all, Key: "all"})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		for range 2 {
			if r := ask("ann"); !r.Allowed || len(r.Policies) != 3 {
				t.Fatalf("AllowAll = %+v; want allowed by three", r)
			}
		}
		if r := ask("ann"); r.Allowed || r.Policy != "user" || len(r.Policies) != 1 {
			t.Fatalf("AllowAll of a user with none left = %+v; want denied by user", r)
		}
		if n := redistest.Count(t, rdb, func() { ask("ann") }); n.Total != 0 {
			t.Errorf("denied again sent %v; want nothing", n)
		}
		if r := ask("bob"); !r.Allowed || r.Policy != "all" || r.Remaining != 0 {
			t.Fatalf("AllowAll = %+v; want allowed, all the tightest", r)
		}
		for range 3 {
			if r := ask("cat"); r.Allowed || r.Policy != "all" {
				t.Fatalf("AllowAll with none left for all = %+v; want denied by all", r)
			}
		}
		if got := remaining(t, l, ratelimit.Join("user", "cat")); got != 2 {
			t.Errorf("a denied request left %d for its user; want 2, all given back", got)
		}
		if got := remaining(t, ip, "ip"); got != 2 {
			t.Errorf("denied requests left %d for their address; want 2", got)
		}
		if _, err := ratelimit.AllowAll(t.Context()); err == nil {
			t.Error("AllowAll() = nil error; want a complaint")
		}
		// Never more than any limit, whoever comes at the same time.
		var admitted atomic.Int64
		var wg sync.WaitGroup
		shared := with(ratelimit.SlidingLog("shared", 10, time.Minute))
		for i := range 8 {
			wg.Go(func() {
				for range 5 {
					r, err := ratelimit.AllowAll(context.Background(), ratelimit.Call{Limiter: l, Key: fmt.Sprint("u", i)}, ratelimit.Call{Limiter: shared, Key: "shared"})
					if err != nil {
						t.Errorf("AllowAll: %v", err)
					}
					if r.Allowed {
						admitted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if n := admitted.Load(); n != 10 {
			t.Errorf("admitted %d; want 10", n)
		}
	})
}
