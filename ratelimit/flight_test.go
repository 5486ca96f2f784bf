package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// Any number of callers admit exactly the limit, merged or not.
func TestConcurrentCallersAdmitExactlyTheLimit(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, alone := range []bool{false, true} {
			for name, p := range five(60) {
				key := fmt.Sprint(name, alone)
				l := newLimiter(t, rdb, ratelimit.Config{NoCoalesce: alone, NoDenialCache: true}, p, ratelimit.FixedWindow("second", 1000, time.Minute))
				var admitted atomic.Int64
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() {
						for i := range 8 {
							r, err := l.AllowN(context.Background(), key, int64(1+i%2))
							if err != nil || r.Err != nil {
								t.Errorf("%s: AllowN = %+v, %v", key, r, err)
							}
							admitted.Add(r.Granted)
						}
					})
				}
				wg.Wait()
				r, err := l.Peek(t.Context(), key)
				if err != nil || admitted.Load() < 59 || admitted.Load() > 60 || r.Policies[0].Remaining != 60-admitted.Load() || r.Policies[1].Remaining != 1000-admitted.Load() {
					t.Errorf("%s: admitted %d units, %+v remain, %v; want 60, none", key, admitted.Load(), r, err)
				}
			}
		}
	})
}

// held is a limiter whose server is stopped, with two calls in flight, so that
// later ones gather.
type held struct {
	l      *ratelimit.Limiter
	direct *redis.Client // past the proxy
	proxy  *redistest.Proxy
	runs   int    // scripts run before
	resume func() // lets the server go on and waits for the two calls
}

func hold(t *testing.T, cfg ratelimit.Config, policies ...ratelimit.Policy) *held {
	t.Helper()
	s := redistest.Start(t, redistest.TCP())
	proxy := redistest.NewProxy(t, "tcp", s.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ContextTimeoutEnabled: true})
	t.Cleanup(func() { rdb.Close() })
	cfg.Timeout = time.Minute
	h := &held{l: newLimiter(t, rdb, cfg, policies...), direct: s.Client(), proxy: proxy}
	// Two connections, and the script.
	if _, err := h.l.Allow(t.Context(), "warm"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for delay := 20 * time.Millisecond; rdb.PoolStats().TotalConns < 2; delay *= 2 {
		proxy.Set(redistest.Fault{Match: "evalsha", DelayReply: delay})
		for i := range 2 {
			wg.Go(func() {
				if _, err := h.l.Peek(context.Background(), fmt.Sprint("warm", i)); err != nil {
					t.Errorf("Peek: %v", err)
				}
			})
		}
		wg.Wait()
	}
	h.runs = scriptRuns(t, h.direct)
	proxy.Set(redistest.Fault{Match: "evalsha", DelayReply: time.Nanosecond}) // to count
	s.Pause()
	for i := range 2 {
		wg.Go(func() {
			if _, err := h.l.Allow(context.Background(), fmt.Sprint("first", i)); err != nil {
				t.Errorf("Allow: %v", err)
			}
		})
	}
	h.resume = func() {
		s.Resume()
		wg.Wait()
	}
	waitFor(t, "two flights", func() bool { return proxy.Hits() == 2 })
	return h
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after a minute", what)
		}
	}
}

// scriptRuns returns how many scripts a server has run.
func scriptRuns(t *testing.T, rdb *redis.Client) (n int) {
	t.Helper()
	info, err := rdb.InfoMap(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range info {
		if v, ok := section["cmdstat_evalsha"]; ok {
			fmt.Sscanf(v, "calls=%d", &n)
		}
	}
	return n
}

func TestCallsLeaveInOneScriptRun(t *testing.T) {
	for name, key := range map[string]func(i int) string{
		"one key":      func(int) string { return "hot" },
		"fifty keys":   func(i int) string { return fmt.Sprint("k", i) },
		"several each": func(i int) string { return fmt.Sprint("k", i%7) },
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, ratelimit.Config{}, ratelimit.SlidingLog("p", 20, time.Minute))
			var wg sync.WaitGroup
			var admitted, asked atomic.Int64
			for i := range 50 {
				wg.Go(func() {
					asked.Add(1)
					r, err := h.l.Allow(context.Background(), key(i))
					if err != nil {
						t.Errorf("Allow: %v", err)
					}
					admitted.Add(r.Granted)
				})
			}
			waitFor(t, "fifty calls", func() bool { return asked.Load() == 50 })
			time.Sleep(20 * time.Millisecond) // they only have to queue now
			h.resume()
			wg.Wait()
			if n := scriptRuns(t, h.direct) - h.runs - 2; n > 2 {
				t.Errorf("50 calls took %d script runs; want 1, or 2 if one came late", n)
			}
			want := int64(50)
			if name == "one key" {
				want = 20
			}
			if admitted.Load() != want {
				t.Errorf("admitted %d of 50; want %d", admitted.Load(), want)
			}
		})
	}
}

// Who leaves before take-off is not charged; who leaves later is, unless the
// option says otherwise.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	p := ratelimit.FixedWindow("p", 10, time.Minute)
	t.Run("before take-off", func(t *testing.T) {
		h := hold(t, ratelimit.Config{}, p)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		r, err := h.l.Allow(ctx, "k")
		if !errors.Is(err, context.DeadlineExceeded) || r.Allowed {
			t.Errorf("Allow = %+v, %v; want a deadline", r, err)
		}
		h.resume()
		if got := remaining(t, h.l, "k"); got != 10 {
			t.Errorf("remaining = %d; want 10, the call had left", got)
		}
	})
	for _, refund := range []bool{false, true} {
		t.Run(fmt.Sprint("after take-off, refund ", refund), func(t *testing.T) {
			h := hold(t, ratelimit.Config{RefundAbandoned: refund}, p)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				_, err := h.l.AllowN(ctx, "k", 3)
				done <- err
			}()
			time.Sleep(50 * time.Millisecond) // it only has to queue
			h.proxy.Set(redistest.Fault{Match: "evalsha", DelayReply: 300 * time.Millisecond, Times: 1})
			h.resume()
			waitFor(t, "third flight", func() bool { return scriptRuns(t, h.direct) > h.runs+2 })
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("AllowN = %v; want context.Canceled", err)
			}
			want := int64(7)
			if refund {
				want = 10
			}
			waitFor(t, "settled charge", func() bool { return remaining(t, h.l, "k") == want })
			if !refund {
				time.Sleep(50 * time.Millisecond)
				if got := remaining(t, h.l, "k"); got != want {
					t.Errorf("remaining = %d; want %d", got, want)
				}
			}
		})
	}
}

// On a cluster the calls on one key still share script runs, and keys of
// different slots never meet in one.
func TestManySlots(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, ratelimit.SlidingLog("a", 5, time.Minute), ratelimit.TokenBucket("b", 1, time.Minute, 5))
		var admitted atomic.Int64
		n := redistest.Count(t, rdb, func() {
			var wg sync.WaitGroup
			for i := range 400 {
				wg.Go(func() {
					r, err := l.Allow(context.Background(), fmt.Sprint("k", i%20))
					if err != nil || r.Err != nil {
						t.Errorf("Allow = %+v, %v", r, err)
					}
					admitted.Add(r.Granted)
				})
			}
			wg.Wait()
		})
		if admitted.Load() != 100 {
			t.Errorf("admitted %d of 400 calls on 20 keys of limit 5; want 100", admitted.Load())
		}
		if n.By["evalsha"]+n.By["eval"] >= 300 {
			t.Errorf("400 calls on 20 keys took %v; want them merged", n)
		}
		keys, err := rdb.Keys(t.Context(), "*").Result()
		if err != nil || len(keys) != 40 || !strings.HasPrefix(keys[0], ratelimit.DefaultPrefix+"{") {
			t.Errorf("keys %v, %v; want 40", keys, err)
		}
	})
}
