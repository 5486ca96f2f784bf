package middleware_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

func newLimiter(t testing.TB, rdb redis.UniversalClient, cfg ratelimit.Config, ps ...ratelimit.Policy) *ratelimit.Limiter {
	t.Helper()
	if cfg.Timeout == 0 { // a machine that is busy with tests is no dead Redis
		cfg.Timeout = 10 * time.Second
	}
	l, err := ratelimit.New(rdb, cfg, ps...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })

// ask sends one request through h, from the peer address.
func ask(h http.Handler, peer string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = peer
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestRateLimitDenies(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 2, time.Minute), ratelimit.FixedWindow("daily", 100, 24*time.Hour))
		h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: discard()})(ok)
		for i := range 2 {
			w := ask(h, "203.0.113.9:1")
			if w.Code != 200 || w.Body.String() != "ok" {
				t.Fatalf("request %d = %d %q; want 200 ok", i+1, w.Code, w.Body)
			}
			want := fmt.Sprintf(`"api";r=%d;t=60, "daily";r=%d;t=86400`, 1-i, 99-i)
			if got := w.Header().Get("RateLimit"); got != want {
				t.Errorf("RateLimit = %s; want %s", got, want)
			}
			if got := w.Header().Get("RateLimit-Policy"); got != `"api";q=2;w=60, "daily";q=100;w=86400` {
				t.Errorf("RateLimit-Policy = %s", got)
			}
			if got := w.Header().Get("Retry-After"); got != "" {
				t.Errorf("Retry-After of an admitted request = %s; want none", got)
			}
		}
		w := ask(h, "203.0.113.9:2")
		if w.Code != 429 {
			t.Fatalf("third request = %d; want 429", w.Code)
		}
		// The day's quota becomes available after Retry-After, so its t, which must
		// not be later, is left out.
		if got := w.Header().Get("RateLimit"); got != `"api";r=0;t=60, "daily";r=98` {
			t.Errorf("RateLimit = %s", got)
		}
		if got := w.Header().Get("Retry-After"); got != "60" {
			t.Errorf("Retry-After = %s; want 60", got)
		}
		if got := w.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control = %s; want no-store", got)
		}
		if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("Content-Type = %s", got)
		}
		var problem struct {
			Type, Title, Detail string
			Status              int
			Violated            []string `json:"violated-policies"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
			t.Fatalf("body %s: %v", w.Body, err)
		}
		if problem.Type != "https://iana.org/assignments/http-problem-types#quota-exceeded" || problem.Status != 429 ||
			!slices.Equal(problem.Violated, []string{"api"}) || problem.Title == "" || problem.Detail == "" {
			t.Errorf("problem = %+v", problem)
		}
		if w := ask(h, "203.0.113.10:1"); w.Code != 200 {
			t.Errorf("another client = %d; want 200", w.Code)
		}
	})
}

// TestRetryAfterRoundsUp: a client that waits exactly Retry-After is admitted; it is
// never told 0, nor more than a second too much.
func TestRetryAfterRoundsUp(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, window := range []time.Duration{time.Millisecond, 300 * time.Millisecond, time.Second, 1500 * time.Millisecond, time.Minute} {
			l := newLimiter(t, rdb, ratelimit.Config{Prefix: window.String()}, ratelimit.FixedWindow("api", 1, window))
			var exact time.Duration
			h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{
				Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					exact = middleware.Decisions(r)[0].Result.RetryAfter
					w.WriteHeader(http.StatusTooManyRequests)
				}),
			})(ok)
			var w *httptest.ResponseRecorder
			for range 1000 { // a short window may end between two requests
				if w = ask(h, "203.0.113.9:1"); w.Code == 429 {
					break
				}
			}
			if w.Code != 429 {
				if window < 10*time.Millisecond {
					continue // a round trip takes longer
				}
				t.Fatalf("window %v: nothing was denied", window)
			}
			seconds, err := strconv.Atoi(w.Header().Get("Retry-After"))
			told := time.Duration(seconds) * time.Second
			if err != nil || told < exact || told <= 0 || told >= max(exact, time.Microsecond)+time.Second {
				t.Errorf("window %v: Retry-After %q for %v; want it rounded up to a second", window, w.Header().Get("Retry-After"), exact)
			}
		}
	})

	m, rdb := redistest.Mini(t)
	now := time.Now()
	m.SetTime(now)
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 1, 300*time.Millisecond))
	h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{})(ok)
	if w := ask(h, "203.0.113.9:1"); w.Code != 200 {
		t.Fatalf("first request = %d; want 200", w.Code)
	}
	if w := ask(h, "203.0.113.9:1"); w.Code != 429 || w.Header().Get("Retry-After") != "1" {
		t.Fatalf("second request = %d, Retry-After %q; want 429 and 1", w.Code, w.Header().Get("Retry-After"))
	}
	m.SetTime(now.Add(time.Second))
	fresh := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 1, 300*time.Millisecond)) // the denial is kept by our own clock
	if w := ask(middleware.RateLimit(fresh, middleware.ClientIP(), middleware.RateLimitConfig{})(ok), "203.0.113.9:1"); w.Code != 200 {
		t.Errorf("after Retry-After = %d; want 200", w.Code)
	}
}

func TestDeniedFormats(t *testing.T) {
	_, rdb := redistest.Mini(t)
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 1, time.Minute))
	h := middleware.RateLimit(l, middleware.Fixed("all"), middleware.RateLimitConfig{})(ok)
	ask(h, "203.0.113.9:1")
	for accept, want := range map[string]string{
		"":                                 "application/problem+json",
		"*/*":                              "application/problem+json",
		"application/json":                 "application/problem+json",
		"application/problem+json":         "application/problem+json",
		"text/html,application/json;q=0.9": "application/problem+json",
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/plain; charset=utf-8",
		"text/plain": "text/plain; charset=utf-8",
	} {
		w := ask(h, "203.0.113.9:1", "Accept", accept)
		if got := w.Header().Get("Content-Type"); w.Code != 429 || got != want {
			t.Errorf("Accept %q: %d %s; want 429 %s", accept, w.Code, got, want)
		}
		if w.Body.Len() == 0 {
			t.Errorf("Accept %q: no body", accept)
		}
	}
	own := middleware.RateLimit(l, middleware.Fixed("all"), middleware.RateLimitConfig{
		Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = fmt.Fprint(w, middleware.Decisions(r)[0].Result.Policy)
		}),
	})(ok)
	if w := ask(own, "203.0.113.9:1"); w.Code != 418 || w.Body.String() != "api" || w.Header().Get("Retry-After") == "" {
		t.Errorf("own answer = %d %q, headers %v; want 418 api with Retry-After", w.Code, w.Body, w.Header())
	}
}

func TestRateLimitImpossibleCost(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 5, time.Minute))
		h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{
			Logger: discard(),
			Cost:   func(r *http.Request) int64 { n, _ := strconv.ParseInt(r.Header.Get("Cost"), 10, 64); return n },
		})(ok)
		if w := ask(h, "203.0.113.9:1", "Cost", "6"); w.Code != 429 || w.Header().Get("Retry-After") != "" {
			t.Errorf("cost above the limit = %d, Retry-After %q; want 429 without", w.Code, w.Header().Get("Retry-After"))
		}
		if w := ask(h, "203.0.113.9:1", "Cost", "3"); w.Code != 200 || !strings.HasPrefix(w.Header().Get("RateLimit"), `"api";r=2;`) {
			t.Errorf("cost 3 = %d, RateLimit %s; want 200 and 2 left", w.Code, w.Header().Get("RateLimit"))
		}
		if w := ask(h, "203.0.113.9:1", "Cost", "0"); w.Code != 200 || !strings.HasPrefix(w.Header().Get("RateLimit"), `"api";r=2;`) {
			t.Errorf("cost 0 = %d, RateLimit %s; want 200 and still 2 left", w.Code, w.Header().Get("RateLimit"))
		}
		if w := ask(h, "203.0.113.9:1", "Cost", "-1"); w.Code != 500 {
			t.Errorf("negative cost = %d; want 500", w.Code)
		}
		if w := ask(h, "203.0.113.9:1", "Cost", "2"); w.Code != 200 {
			t.Errorf("cost 2 of 2 left = %d; want 200", w.Code)
		}
		if w := ask(h, "203.0.113.9:1", "Cost", "0"); w.Code != 429 {
			t.Errorf("cost 0 with nothing left = %d; want 429", w.Code)
		}
	})
}

func TestRateLimitBanned(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 5, time.Minute))
		h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{})(ok)
		if err := l.Ban(context.Background(), "ip:203.0.113.9", time.Minute); err != nil {
			t.Fatal(err)
		}
		w := ask(h, "203.0.113.9:1")
		if w.Code != 429 || !strings.Contains(w.Body.String(), "#abnormal-usage-detected") || w.Header().Get("Retry-After") != "60" {
			t.Errorf("banned = %d %s Retry-After %s; want 429 abnormal-usage-detected, 60", w.Code, w.Body, w.Header().Get("Retry-After"))
		}
	})
}

func TestRateLimitTiersSkipShadow(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("free", 1, time.Minute))
		gold, err := l.With(ratelimit.FixedWindow("gold", 3, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		var outcomes []string
		cfg := middleware.RateLimitConfig{
			Tier: func(r *http.Request) *ratelimit.Limiter {
				if r.Header.Get("Tier") == "gold" {
					return gold
				}
				return nil
			},
			Skip: func(r *http.Request) bool { return r.Header.Get("Health") != "" },
		}
		h := middleware.RateLimit(l, middleware.ClientIP(), cfg)(ok)
		codes := func(h http.Handler, n int, header ...string) (codes []int) {
			for range n {
				codes = append(codes, ask(h, "203.0.113.9:1", header...).Code)
			}
			return codes
		}
		if got := codes(h, 2); !slices.Equal(got, []int{200, 429}) {
			t.Errorf("free tier = %v; want 200, 429", got)
		}
		if got := codes(h, 4, "Tier", "gold"); !slices.Equal(got, []int{200, 200, 200, 429}) {
			t.Errorf("gold tier = %v; want three times 200, 429", got)
		}
		if got := codes(h, 3, "Health", "1"); !slices.Equal(got, []int{200, 200, 200}) {
			t.Errorf("skipped = %v; want 200", got)
		}
		cfg.Shadow = true
		h = middleware.Observe(func(ev middleware.Event) {
			if ev.Op == "ratelimit" {
				outcomes = append(outcomes, ev.Outcome)
			}
		})(middleware.RateLimit(l, middleware.ClientIP(), cfg)(ok))
		if w := ask(h, "203.0.113.9:1"); w.Code != 200 || w.Header().Get("RateLimit") != "" {
			t.Errorf("shadow = %d, RateLimit %q; want 200 and no header", w.Code, w.Header().Get("RateLimit"))
		}
		if !slices.Equal(outcomes, []string{"shadow"}) {
			t.Errorf("outcomes = %v; want shadow", outcomes)
		}
	})
}

// TestShadowPolicy: a single policy in shadow is reported, not enforced, and not
// told to clients.
func TestShadowPolicy(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 9, time.Minute), ratelimit.FixedWindow("planned", 1, time.Minute).Shadow())
		var outcomes []string
		h := middleware.Observe(func(ev middleware.Event) {
			if ev.Op == "ratelimit" {
				outcomes = append(outcomes, ev.Outcome)
			}
		})(middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{})(ok))
		ask(h, "203.0.113.9:1")
		w := ask(h, "203.0.113.9:1")
		if w.Code != 200 || strings.Contains(fmt.Sprint(w.Header()), "planned") {
			t.Errorf("response = %d %v; want 200 without a word of the shadow", w.Code, w.Header())
		}
		if !slices.Equal(outcomes, []string{"allowed", "shadow"}) {
			t.Errorf("outcomes = %v; want allowed, shadow", outcomes)
		}
	})
}

func TestRateLimitRefund(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("login", 2, time.Minute))
		left := func() int64 {
			res, err := l.Peek(context.Background(), "ip:203.0.113.9")
			if err != nil {
				t.Fatal(err)
			}
			return res.Remaining
		}
		h := middleware.Chain(
			middleware.Recover(middleware.RecoverConfig{Logger: discard()}),
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{
				RefundIf: func(o middleware.Outcome) bool { return o.Status == 204 || o.Status >= 500 },
			}),
		)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.Header.Get("Do") {
			case "204":
				w.WriteHeader(204)
			case "panic":
				panic("x")
			case "401":
				w.WriteHeader(401)
			}
		}))
		for _, c := range []struct {
			do   string
			code int
			left int64
		}{{"204", 204, 2}, {"panic", 500, 2}, {"401", 401, 1}, {"204", 204, 1}, {"", 200, 0}, {"204", 429, 0}} {
			if w := ask(h, "203.0.113.9:1", "Do", c.do); w.Code != c.code {
				t.Errorf("%q = %d; want %d", c.do, w.Code, c.code)
			}
			if got := left(); got != c.left {
				t.Errorf("after %q %d left; want %d", c.do, got, c.left)
			}
		}
	})
}

// TestRateLimitConcurrency: units are held while the handler runs, and given back
// when it returns or panics.
func TestRateLimitConcurrency(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{MaxStale: time.Nanosecond}, ratelimit.Concurrency("inflight", 1, time.Minute))
		inside, leave := make(chan struct{}), make(chan struct{})
		h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: discard()})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			switch r.Header.Get("Do") {
			case "stay":
				inside <- struct{}{}
				<-leave
			case "panic":
				panic(http.ErrAbortHandler)
			}
		}))
		var wg sync.WaitGroup
		wg.Go(func() { ask(h, "203.0.113.9:1", "Do", "stay") })
		<-inside
		if w := ask(h, "203.0.113.9:1"); w.Code != 429 {
			t.Errorf("second at the same time = %d; want 429", w.Code)
		}
		close(leave)
		wg.Wait()
		if w := ask(h, "203.0.113.9:1"); w.Code != 200 {
			t.Errorf("after the first has gone = %d; want 200", w.Code)
		}
		func() {
			defer func() { _ = recover() }()
			ask(h, "203.0.113.9:1", "Do", "panic")
		}()
		if w := ask(h, "203.0.113.9:1"); w.Code != 200 {
			t.Errorf("after a panic = %d; want 200", w.Code)
		}
	})
}

// TestRateLimitRedisDown: each failure policy answers as it should, soon.
func TestRateLimitRedisDown(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer dead.Close()
	for _, c := range []struct {
		policy ratelimit.FailurePolicy
		codes  []int
		kind   string
	}{
		{ratelimit.FailOpen, []int{200, 200, 200}, ""},
		{ratelimit.FailClosed, []int{503, 503, 503}, "#temporary-reduced-capacity"},
		{ratelimit.Local, []int{200, 429, 429}, "#quota-exceeded"},
	} {
		l := newLimiter(t, dead, ratelimit.Config{OnUnavailable: c.policy, Timeout: ratelimit.DefaultTimeout}, ratelimit.FixedWindow("api", 4, time.Minute))
		h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: discard()})(ok)
		var codes []int
		var last *httptest.ResponseRecorder
		for range 3 {
			last = ask(h, "203.0.113.9:1")
			codes = append(codes, last.Code)
		}
		if !slices.Equal(codes, c.codes) {
			t.Errorf("policy %d = %v; want %v", c.policy, codes, c.codes)
		}
		if !strings.Contains(last.Body.String(), c.kind) {
			t.Errorf("policy %d answers %s; want %s", c.policy, last.Body, c.kind)
		}
		if last.Code == 503 && last.Header().Get("Retry-After") == "" {
			t.Errorf("policy %d: 503 without Retry-After", c.policy)
		}
	}
}

// TestRateLimitClientGone: a client that hangs up while the limiter is asked is
// no error of the program, and its handler does not run.
func TestRateLimitClientGone(t *testing.T) {
	_, rdb := redistest.Mini(t)
	out, logger := newLogs()
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 4, time.Minute))
	h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: logger})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler ran")
	}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 499 || out.String() != "" {
		t.Errorf("answer = %d, log %s; want 499 and nothing", w.Code, out)
	}
}

func TestRateLimitNested(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		byIP := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("ip", 100, time.Hour))
		byUser := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("user", 3, time.Minute))
		cfg := middleware.RateLimitConfig{Headers: middleware.Draft11 | middleware.XRateLimit, Logger: discard()}
		h := middleware.Chain(
			middleware.RateLimit(byIP, middleware.ClientIP(), cfg),
			middleware.RateLimit(byUser, middleware.User(func(*http.Request) string { return "ada" }), cfg),
		)(ok)
		w := ask(h, "203.0.113.9:1")
		list, err := httpsfv.UnmarshalList(w.Header()["Ratelimit"])
		if err != nil || len(list) != 2 {
			t.Errorf("RateLimit = %q (%v); want a list of two", w.Header()["Ratelimit"], err)
		}
		if got := w.Header()["X-Ratelimit-Limit"]; !slices.Equal(got, []string{"3"}) {
			t.Errorf("X-RateLimit-Limit = %q; want the tighter one, 3", got)
		}
	})
}

func TestPartitionKey(t *testing.T) {
	_, rdb := redistest.Mini(t)
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 9, time.Minute))
	h := middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{PartitionSecret: sessionKey})(ok)
	key := func(peer string) []byte {
		list, err := httpsfv.UnmarshalList(ask(h, peer).Header()["Ratelimit"])
		if err != nil {
			t.Fatal(err)
		}
		pk, _ := list[0].(httpsfv.Item).Params.Get("pk")
		return pk.([]byte)
	}
	a, again, b := key("203.0.113.9:1"), key("203.0.113.9:2"), key("203.0.113.10:1")
	if len(a) != 12 || !slices.Equal(a, again) || slices.Equal(a, b) {
		t.Errorf("partition keys = %x, %x, %x; want the first two equal, 12 bytes", a, again, b)
	}
}

func TestNoKey(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for _, c := range []struct {
		policy middleware.NoKey
		codes  []int
	}{
		{middleware.NoKeyClientIP, []int{200, 429}},
		{middleware.NoKeySkip, []int{200, 200}},
		{middleware.NoKeyDeny, []int{400, 400}},
	} {
		l := newLimiter(t, rdb, ratelimit.Config{Prefix: fmt.Sprint("p", c.policy)}, ratelimit.FixedWindow("api", 1, time.Minute))
		h := middleware.RateLimit(l, middleware.Header("X-Api-Key"), middleware.RateLimitConfig{NoKey: c.policy, Logger: discard()})(ok)
		codes := []int{ask(h, "203.0.113.9:1").Code, ask(h, "203.0.113.9:1").Code}
		if !slices.Equal(codes, c.codes) {
			t.Errorf("policy %d without a key = %v; want %v", c.policy, codes, c.codes)
		}
		if w := ask(h, "203.0.113.9:1", "X-Api-Key", "k"); w.Code != 200 {
			t.Errorf("policy %d with a key = %d; want 200", c.policy, w.Code)
		}
	}
}

func TestKeys(t *testing.T) {
	r := httptest.NewRequest("GET", "/item/7", nil)
	r.RemoteAddr = "203.0.113.9:1"
	r.Header.Set("X-Api-Key", "secret")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(http.ResponseWriter, *http.Request) {})
	nobody := middleware.User(func(*http.Request) string { return "" })
	ada := middleware.User(func(*http.Request) string { return "ada" })
	for _, c := range []struct {
		name string
		key  middleware.KeyFunc
		want string
	}{
		{"ClientIP", middleware.ClientIP(), "ip:203.0.113.9"},
		{"Header", middleware.Header("x-api-key"), "header:x-api-key:secret"},
		{"missing Header", middleware.Header("Other"), ""},
		{"User", ada, "user:ada"},
		{"nobody", nobody, ""},
		{"Route of a mux", middleware.Route(mux), "route:GET /item/{id}"},
		{"Route unmatched", middleware.Route(nil), "route:"},
		{"Fixed", middleware.Fixed("all"), "fixed:all"},
		{"First", middleware.First(nobody, middleware.ClientIP()), "ip:203.0.113.9"},
		{"First of none", middleware.First(nobody), ""},
		{"Join", middleware.Join(ada, middleware.Fixed("x")), "8:user:ada7:fixed:x"},
		{"Join without one", middleware.Join(ada, nobody), ""},
		{"SessionKey without Sessions", middleware.SessionKey(), ""},
	} {
		if got := c.key(r); got != c.want {
			t.Errorf("%s = %q; want %q", c.name, got, c.want)
		}
	}
}

// FuzzJoin: different lists of keys never join to the same one.
func FuzzJoin(f *testing.F) {
	f.Add("a", "b", "ab", "")
	f.Add("1:a", "1:b", "1:a1:b", "")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		join := func(parts ...string) string {
			var keys []middleware.KeyFunc
			for _, p := range parts {
				keys = append(keys, func(*http.Request) string { return p })
			}
			return middleware.Join(keys...)(nil)
		}
		lists := [][]string{{a}, {b}, {a, b}, {c, d}, {a + b}, {a, b, c}, {a + ":" + b, c}}
		seen := make(map[string][]string)
		for _, l := range lists {
			key := join(l...)
			if before, ok := seen[key]; ok && key != "" && !slices.Equal(before, l) {
				t.Errorf("%q and %q both join to %q", before, l, key)
			}
			seen[key] = l
		}
	})
}

func TestRateLimitPanicsOnMistakes(t *testing.T) {
	_, rdb := redistest.Mini(t)
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 1, time.Minute))
	for name, f := range map[string]func(){
		"nil limiter": func() { middleware.RateLimit(nil, middleware.ClientIP(), middleware.RateLimitConfig{}) },
		"nil key":     func() { middleware.RateLimit(l, nil, middleware.RateLimitConfig{}) },
		"contradicting headers": func() {
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Headers: middleware.Draft7 | middleware.Draft11})
		},
		"short secret": func() {
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{PartitionSecret: []byte("x")})
		},
		"bad prefix length": func() { middleware.ClientNetwork(33, 64) },
		"nil store":         func() { middleware.Sessions(nil, "sid", middleware.SessionsConfig{}) },
		"bad cookie name":   func() { middleware.Sessions(newStore(t, rdb), "my session", middleware.SessionsConfig{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
