package middleware_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// TestHangingUpIsNotFree: RefundIf learns how a handler has ended, and a client that goes
// away is no failure of the server, also behind a ReverseProxy, which answers 502 then.
func TestHangingUpIsNotFree(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, proto := range protocols {
			l := newLimiter(t, rdb, ratelimit.Config{Prefix: proto}, ratelimit.FixedWindow("api", 1000, time.Hour))
			began, outcomes := make(chan struct{}, 1), make(chan middleware.Outcome, 1)
			proxy := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/midway" {
					_, _ = io.WriteString(w, "x")
					_ = http.NewResponseController(w).Flush()
				}
				if r.URL.Path == "/hang" {
					began <- struct{}{}
				}
				<-r.Context().Done()
			})
			proxy.FlushInterval = -1
			h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: discard(),
				RefundIf: func(o middleware.Outcome) bool { outcomes <- o; return o.Status >= 500 || o.Said == "free" },
			})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/hang", "/midway":
					proxy.ServeHTTP(w, r)
				case "/torn":
					_, _ = io.WriteString(w, "x")
					_ = http.NewResponseController(w).Flush()
					panic("after the first byte")
				case "/panic":
					panic("x")
				case "/abort":
					panic(http.ErrAbortHandler)
				case "/500":
					w.WriteHeader(500)
				case "/free":
					middleware.SetOutcome(r, "free")
				}
			}))
			s := newSite(t, proto, h)
			left := func() int64 {
				res, err := l.Peek(context.Background(), "ip:127.0.0.1")
				if err != nil {
					t.Fatal(err)
				}
				return res.Remaining
			}
			for _, c := range []struct {
				path string
				want middleware.Outcome
				free bool
			}{
				{"/ok", middleware.Outcome{Status: 200}, false},
				{"/500", middleware.Outcome{Status: 500}, true},
				{"/free", middleware.Outcome{Status: 200, Said: "free"}, true},
				{"/panic", middleware.Outcome{Status: 500, Panicked: true}, true},
				{"/abort", middleware.Outcome{Status: 499}, false},
				{"/torn", middleware.Outcome{Status: 200, Panicked: true}, false},
				{"/hang", middleware.Outcome{Status: 499, Gone: true}, false},
				{"/midway", middleware.Outcome{Status: 200}, false},
			} {
				before := left()
				ctx, cancel := context.WithCancel(context.Background())
				req, _ := http.NewRequestWithContext(ctx, "POST", s.URL+c.path, nil) // GET would be tried again
				if c.path == "/hang" {
					go func() {
						<-began
						cancel()
					}()
				}
				if res, err := s.client.Do(req); err == nil {
					if c.path == "/midway" {
						cancel() // when the status is here
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				if got := <-outcomes; got != c.want {
					t.Errorf("%s %s: outcome = %+v; want %+v", proto, c.path, got, c.want)
				}
				cancel()
				want := before - 1
				if c.free {
					want = before
				}
				for left() != want { // it is settled after the answer
					if left() < before-1 {
						break
					}
					runtime.Gosched()
				}
				if got := left(); got != want {
					t.Errorf("%s %s: %d units left of %d; want %d", proto, c.path, got, before, want)
				}
			}
		}
	})
}

// TestConcurrencyHeld: a handler that runs for longer than the lease keeps its unit, and
// gives it back at its end.
func TestConcurrencyHeld(t *testing.T) {
	_, mini := redistest.Mini(t)
	real := redistest.Start(t).Client(nil)
	for name, rdb := range map[string]redis.UniversalClient{"miniredis": mini, "server": real} {
		const lease = 600 * time.Millisecond
		renewals := new(commandCount)
		rdb.AddHook(renewals)
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: time.Nanosecond}, ratelimit.Concurrency("conns", 1, lease))
		leave, inside := make(chan struct{}), make(chan struct{})
		h := middleware.RateLimit(l, middleware.Fixed("x"), middleware.RateLimitConfig{Logger: discard()})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Stay") != "" {
				close(inside)
				<-leave
			}
		}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			ask(h, "203.0.113.9:1", "Stay", "1")
		}()
		<-inside
		// Six renewals are two leases.
		for before := renewals.n.Load(); renewals.n.Load() < before+6; time.Sleep(time.Millisecond) {
		}
		w := ask(h, "203.0.113.9:1")
		if w.Code != 429 {
			t.Errorf("%s: second handler beside one that runs longer than its lease = %d; want 429", name, w.Code)
		}
		if got := w.Header().Get("Retry-After"); got != "1" {
			t.Errorf("%s: Retry-After = %q; want 1", name, got)
		}
		if got := w.Header().Get("RateLimit-Policy") + " " + w.Header().Get("RateLimit"); got != `"conns";q=1;qu="concurrent-requests" "conns";r=0` {
			t.Errorf("%s: fields = %s", name, got)
		}
		close(leave)
		<-done
		if w := ask(h, "203.0.113.9:1"); w.Code != 200 {
			t.Errorf("%s: after it = %d; want 200", name, w.Code)
		}
	}
}

// commandCount counts what was sent.
type commandCount struct{ n atomic.Int64 }

func (c *commandCount) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *commandCount) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		c.n.Add(1)
		return err
	}
}
func (c *commandCount) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		c.n.Add(1)
		return err
	}
}

// TestLeaseLost: a lease that could not be kept is told.
func TestLeaseLost(t *testing.T) {
	_, rdb := redistest.Mini(t)
	out, logger := newLogs()
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.Concurrency("conns", 1, 150*time.Millisecond))
	h := middleware.RateLimit(l, middleware.Fixed("x"), middleware.RateLimitConfig{Logger: logger})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if err := rdb.FlushAll(context.Background()).Err(); err != nil {
			t.Error(err)
		}
		for out.count("lease has ended") == 0 {
			time.Sleep(time.Millisecond)
		}
	}))
	ask(h, "203.0.113.9:1")
	if n := out.count("lease has ended"); n != 1 {
		t.Errorf("%d lines; want one", n)
	}
}

// TestSeveralLimits: limits of one RateLimit are charged together, or none is.
func TestSeveralLimits(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		perIP := newLimiter(t, rdb, ratelimit.Config{Prefix: "ip"}, ratelimit.FixedWindow("ip", 10, time.Hour))
		perUser := newLimiter(t, rdb, ratelimit.Config{Prefix: "user"}, ratelimit.FixedWindow("user", 2, time.Hour))
		user := middleware.User(func(r *http.Request) string { return r.Header.Get("U") })
		ran := 0
		h := middleware.RateLimit(perIP, middleware.ClientIP(), middleware.RateLimitConfig{
			Also:  []middleware.Limit{{Limiter: perUser, Key: user}},
			NoKey: middleware.NoKeySkip, Logger: discard(),
			RefundIf: func(o middleware.Outcome) bool { return o.Said == "free" },
		})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ran++
			middleware.SetOutcome(r, r.Header.Get("Say"))
			if n := len(middleware.Decisions(r)); n != 2 && r.Header.Get("U") != "" {
				t.Errorf("%d decisions; want 2", n)
			}
		}))
		left := func(l *ratelimit.Limiter, key string) int64 {
			res, err := l.Peek(context.Background(), key)
			if err != nil {
				t.Fatal(err)
			}
			return res.Remaining
		}
		for i := range 10 {
			w := ask(h, "203.0.113.9:1", "U", "ann")
			want := 200
			if i >= 2 {
				want = 429
			}
			if w.Code != want || want == 429 && !strings.Contains(w.Body.String(), `"user"`) {
				t.Errorf("request %d = %d %s; want %d by user", i, w.Code, w.Body, want)
			}
			if i == 0 && len(w.Header().Values("RateLimit")) != 2 {
				t.Errorf("RateLimit = %q; want both", w.Header().Values("RateLimit"))
			}
		}
		if got := left(perIP, "ip:203.0.113.9"); got != 8 || ran != 2 {
			t.Errorf("after 2 admitted and 8 denied by the user's limit the address has %d of 10, %d ran; want 8 and 2", got, ran)
		}
		if w := ask(h, "203.0.113.9:1", "U", "bob"); w.Code != 200 {
			t.Errorf("another user at the address = %d; want 200", w.Code)
		}
		ask(h, "203.0.113.9:1", "U", "bob", "Say", "free")
		if ip, bob := left(perIP, "ip:203.0.113.9"), left(perUser, "user:bob"); ip != 7 || bob != 1 {
			t.Errorf("after a refund %d and %d left; want 7 and 1", ip, bob)
		}
		if w := ask(h, "203.0.113.9:1"); w.Code != 200 || left(perIP, "ip:203.0.113.9") != 6 {
			t.Errorf("without a user = %d; want 200, charged to the address alone", w.Code)
		}
	})
}

// TestLongKeys: what a client sends does not decide how much is kept of it.
func TestLongKeys(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer dead.Close()
	l := newLimiter(t, dead, ratelimit.Config{OnUnavailable: ratelimit.Local, Timeout: ratelimit.DefaultTimeout}, ratelimit.FixedWindow("api", 4, time.Hour))
	h := middleware.RateLimit(l, middleware.Header("X-Api-Key"), middleware.RateLimitConfig{Logger: discard()})(ok)
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var codes []int
	for i := range 200 {
		codes = append(codes, ask(h, "203.0.113.9:1", "X-Api-Key", strings.Repeat("k", 1<<18)+string(rune('a'+i%100))).Code)
	}
	if grown := heap() - before; grown > 10<<20 {
		t.Errorf("200 keys of 256 kB leave %d MB; want next to nothing", grown>>20)
	}
	if codes[0] != 200 || codes[100] != 429 {
		t.Errorf("first and second request by a long key = %d, %d; want 200 and, of a half, 429", codes[0], codes[100])
	}
	runtime.KeepAlive(l)
}

// TestFieldsRoundUp: a window is never told shorter than it is.
func TestFieldsRoundUp(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for window, want := range map[time.Duration]string{500 * time.Millisecond: `"f";q=1;w=1`, 1500 * time.Millisecond: `"f";q=1;w=2`, time.Minute: `"f";q=1;w=60`} {
		l := newLimiter(t, rdb, ratelimit.Config{Prefix: window.String()}, ratelimit.FixedWindow("f", 1, window))
		w := httptest.NewRecorder()
		middleware.RateLimit(l, middleware.Fixed("x"), middleware.RateLimitConfig{})(ok).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if got := w.Header().Get("RateLimit-Policy"); got != want {
			t.Errorf("window %v is told as %s; want %s", window, got, want)
		}
	}
}
