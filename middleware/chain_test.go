package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"expvar"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

func TestChainOrder(t *testing.T) {
	var order []string
	note := func(name string) middleware.Middleware {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				order = append(order, name)
				next.ServeHTTP(w, r)
			})
		}
	}
	mws := []middleware.Middleware{note("a"), nil, note("b"), note("c")}
	chain := middleware.Chain(mws...)
	mws[0] = note("changed later")
	ask(chain(ok), "203.0.113.9:1")
	if !slices.Equal(order, []string{"a", "b", "c"}) {
		t.Errorf("order = %q; want a b c", order)
	}
	if w := ask(middleware.Chain()(ok), "203.0.113.9:1"); w.Body.String() != "ok" {
		t.Errorf("empty chain = %q; want ok", w.Body)
	}
}

// captureDefault makes slog.Default log to the returned logs for the test.
func captureDefault(t *testing.T) *logs {
	out, logger := newLogs()
	old := slog.Default()
	slog.SetDefault(logger)
	t.Cleanup(func() { slog.SetDefault(old) })
	return out
}

// layers are the middlewares by the names that Order uses.
func layers(t *testing.T, rdb redis.UniversalClient, logger *slog.Logger) map[string]middleware.Middleware {
	l := newLimiter(t, rdb, ratelimit.Config{}, limits()...)
	return map[string]middleware.Middleware{
		"Recover":    middleware.Recover(middleware.RecoverConfig{Logger: logger}),
		"RequestID":  middleware.RequestID(middleware.RequestIDConfig{}),
		"ClientAddr": middleware.ClientAddr(middleware.ClientAddrConfig{Logger: logger}),
		"Observe":    middleware.Observe(nil),
		"AccessLog":  middleware.AccessLog(middleware.AccessLogConfig{Logger: logger, Level: slog.LevelDebug - 1}),
		"RateLimit":  middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: logger, Shadow: true}),
		"SessionKey": middleware.RateLimit(l, middleware.SessionKey(), middleware.RateLimitConfig{Logger: logger, NoKey: middleware.NoKeySkip}),
		"Sessions":   middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: logger}),
	}
}

// TestOrderWarnings: the recommended order is silent; each broken pair is warned
// about when Chain builds it, and when a request passes a chain nested by hand.
func TestOrderWarnings(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for _, c := range []struct {
		chain []string
		code  middleware.Code
		built bool // Chain can know
	}{
		{middleware.Order[:7], "", true},
		{[]string{"RateLimit"}, "", true},
		{[]string{"ClientAddr", "RateLimit", "Sessions", "SessionKey"}, "", true},
		{[]string{"AccessLog", "Recover"}, middleware.WarnRecoverInside, true},
		{[]string{"Sessions", "Recover"}, middleware.WarnRecoverInside, true},
		{[]string{"RateLimit", "ClientAddr"}, middleware.WarnLimiterBeforeClientAddr, true},
		{[]string{"AccessLog", "ClientAddr"}, middleware.WarnAccessLogInside, true},
		{[]string{"RateLimit", "AccessLog"}, middleware.WarnAccessLogInside, true},
		{[]string{"Sessions", "AccessLog"}, middleware.WarnAccessLogInside, true},
		{[]string{"RateLimit", "Observe"}, middleware.WarnObserveInside, true},
		{[]string{"AccessLog", "RequestID"}, middleware.WarnRequestIDInside, true},
		{[]string{"SessionKey", "Sessions"}, middleware.WarnLimiterBeforeSessions, false},
		{[]string{"Sessions", "Sessions"}, middleware.WarnSessionsTwice, false},
	} {
		name := strings.Join(c.chain, " ")
		check := func(how string, out *logs, want bool) {
			t.Helper()
			if c.code == "" || !want {
				if out.count("code=") > 0 {
					t.Errorf("%s, %s: log = %s; want nothing", name, how, out)
				}
				return
			}
			if out.count("code="+string(c.code)) != 1 || !strings.Contains(out.String(), "docs/warnings.md#"+string(c.code)) {
				t.Errorf("%s, %s: log = %s; want %s once, with its docs", name, how, out, c.code)
			}
		}
		build := func(logger *slog.Logger) (mws []middleware.Middleware) {
			all := layers(t, rdb, logger)
			for _, n := range c.chain {
				mws = append(mws, all[n])
			}
			return mws
		}
		_, silent := newLogs()
		atStart := captureDefault(t)
		middleware.Chain(build(silent)...)(ok)
		check("built", atStart, c.built)

		out := captureDefault(t) // RequestID and Observe have no logger of their own
		h := http.Handler(ok)
		for _, mw := range slices.Backward(build(nil)) {
			h = mw(h)
		}
		for range 3 {
			ask(h, "203.0.113.9:1")
		}
		check("asked", out, true)
	}
}

func TestWarnings(t *testing.T) {
	_, rdb := redistest.Mini(t)
	type env struct {
		logger *slog.Logger
		limit  *ratelimit.Limiter
	}
	for _, c := range []struct {
		code  middleware.Code
		quiet func(e env) // what must not warn
		loud  func(e env) // what must
	}{
		{middleware.WarnUntrustedForwarding,
			func(e env) {
				ask(middleware.ClientAddr(middleware.ClientAddrConfig{Logger: e.logger})(ok), "203.0.113.9:1")
				ask(middleware.ClientAddr(middleware.ClientAddrConfig{Logger: e.logger, Trusted: middleware.Prefixes("10.0.0.0/8")})(ok), "203.0.113.9:1", "X-Forwarded-For", "192.0.2.1")
			},
			func(e env) {
				h := middleware.ClientAddr(middleware.ClientAddrConfig{Logger: e.logger})(ok)
				ask(h, "203.0.113.9:1", "X-Forwarded-For", "192.0.2.1")
				ask(h, "203.0.113.9:1", "X-Forwarded-For", "192.0.2.2")
			}},
		{middleware.WarnClientAddrUnknown,
			func(e env) {
				ask(middleware.RateLimit(e.limit, middleware.Fixed("x"), middleware.RateLimitConfig{Logger: e.logger})(ok), "@")
			},
			func(e env) {
				ask(middleware.RateLimit(e.limit, middleware.ClientIP(), middleware.RateLimitConfig{Logger: e.logger})(ok), "@")
			}},
		{middleware.WarnOneKeyForAll,
			func(e env) {
				h := middleware.RateLimit(e.limit, middleware.ClientIP(), middleware.RateLimitConfig{Logger: e.logger})(ok)
				for range 120 { // one busy client
					ask(h, "203.0.113.9:1", "User-Agent", "a")
				}
				h = middleware.RateLimit(e.limit, middleware.Fixed("meant"), middleware.RateLimitConfig{Logger: e.logger})(ok)
				for i := range 120 {
					ask(h, "203.0.113.9:1", "User-Agent", string(rune('a'+i%26)))
				}
			},
			func(e env) {
				h := middleware.RateLimit(e.limit, middleware.ClientIP(), middleware.RateLimitConfig{Logger: e.logger})(ok)
				for i := range 120 { // many clients behind one proxy
					ask(h, "10.0.0.1:1", "User-Agent", string(rune('a'+i%26)))
				}
			}},
		{middleware.WarnDoubleCharge,
			func(e env) {
				cfg := middleware.RateLimitConfig{Logger: e.logger}
				other, _ := e.limit.With(ratelimit.FixedWindow("other", 9, time.Minute))
				ask(middleware.Chain(middleware.RateLimit(e.limit, middleware.ClientIP(), cfg), middleware.RateLimit(other, middleware.ClientIP(), cfg),
					middleware.RateLimit(e.limit, middleware.Fixed("x"), cfg))(ok), "203.0.113.9:1")
			},
			func(e env) {
				cfg := middleware.RateLimitConfig{Logger: e.logger}
				same := newLimiter(t, rdb, ratelimit.Config{}, limits()...)
				ask(middleware.Chain(middleware.RateLimit(e.limit, middleware.ClientIP(), cfg), middleware.RateLimit(same, middleware.ClientIP(), cfg))(ok), "203.0.113.9:1")
			}},
		{middleware.WarnInsecureCookie,
			func(e env) {
				r := httptest.NewRequest("GET", "https://example.com/", nil)
				sessionSetting(e.logger, newStore(t, rdb)).ServeHTTP(httptest.NewRecorder(), r)
				plain, _ := session.New(rdb, session.Config{Keys: [][]byte{sessionKey}, Timeout: 10 * time.Second, Cookie: session.Cookie{InsecureHTTP: true}})
				ask(sessionSetting(e.logger, plain), "203.0.113.9:1") // over plain HTTP there is no choice
			},
			func(e env) {
				plain, _ := session.New(rdb, session.Config{Keys: [][]byte{sessionKey}, Timeout: 10 * time.Second, Cookie: session.Cookie{InsecureHTTP: true}})
				r := httptest.NewRequest("GET", "https://example.com/", nil)
				sessionSetting(e.logger, plain).ServeHTTP(httptest.NewRecorder(), r)
			}},
		{middleware.WarnUnsignedSessions,
			func(e env) { ask(sessionSetting(e.logger, newStore(t, rdb)), "203.0.113.9:1") },
			func(e env) {
				unsigned, _ := session.New(rdb, session.Config{Timeout: 10 * time.Second})
				ask(sessionSetting(e.logger, unsigned), "203.0.113.9:1")
			}},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			for _, loud := range []bool{false, true} {
				out, logger := newLogs()
				e := env{logger, newLimiter(t, rdb, ratelimit.Config{}, limits()...)}
				want := 0
				if loud {
					want = 1
					c.loud(e)
					c.loud(e)
				} else {
					c.quiet(e)
				}
				if got := out.count("code=" + string(c.code)); got != want {
					t.Errorf("loud=%v: %d times in the log, want %d:\n%s", loud, got, want, out)
				}
			}
		})
	}
}

// sessionSetting is a handler behind Sessions that begins a session.
func sessionSetting(logger *slog.Logger, st *session.Store) http.Handler {
	return middleware.Sessions(st, "sid", middleware.SessionsConfig{Logger: logger})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["k"] = "v"
	}))
}

func TestRequestID(t *testing.T) {
	var inside string
	h := func(cfg middleware.RequestIDConfig) http.Handler {
		return middleware.RequestID(cfg)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { inside = middleware.RequestIDOf(r) }))
	}
	a := ask(h(middleware.RequestIDConfig{}), "x", "X-Request-Id", "forged").Header().Get("X-Request-Id")
	if a != inside || len(a) != 26 {
		t.Errorf("id = %q outside, %q inside; want 26 characters", a, inside)
	}
	if b := ask(h(middleware.RequestIDConfig{}), "x").Header().Get("X-Request-Id"); a == b {
		t.Errorf("two requests have the id %q", a)
	}
	trusting := middleware.RequestIDConfig{TrustIncoming: true, Header: "Trace"}
	for in, keep := range map[string]bool{"abc-123": true, "": false, "a b": false, "a\nb": false, "ä": false, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false} {
		if got := ask(h(trusting), "x", "Trace", in).Header().Get("Trace"); (got == in) != keep || got != inside {
			t.Errorf("incoming %q became %q, inside %q; kept = %v", in, got, inside, keep)
		}
	}
	if got := middleware.RequestIDOf(httptest.NewRequest("GET", "/", nil)); got != "" {
		t.Errorf("id without RequestID = %q", got)
	}
}

func TestRecover(t *testing.T) {
	var seen any
	var stack []byte
	h := middleware.Recover(middleware.RecoverConfig{
		OnPanic: func(_ *http.Request, v any, s []byte) { seen, stack = v, s; panic("and again") },
		Answer:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }),
	})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "7")
		w.Header().Set("Set-Cookie", "half=made")
		w.Header().Set("X-Other", "stays")
		panic("boom")
	}))
	w := ask(h, "203.0.113.9:1")
	if w.Code != 418 || seen != "boom" || !bytes.Contains(stack, []byte("TestRecover")) {
		t.Errorf("answer = %d, seen %v, stack of %d bytes; want 418, boom and the stack", w.Code, seen, len(stack))
	}
	if h := w.Header(); h.Get("Content-Length") != "" || h.Get("Set-Cookie") != "" || h.Get("Cache-Control") != "no-store" || h.Get("X-Other") != "stays" {
		t.Errorf("headers = %v; want neither length nor cookie, but X-Other and no-store", h)
	}
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("panic = %v; want ErrAbortHandler let through", p)
		}
	}()
	ask(middleware.Recover(middleware.RecoverConfig{})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })), "x")
}

func TestAccessLog(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var buf bytes.Buffer
		logger := slog.New(slog.NewJSONHandler(&buf, nil))
		st := newStore(t, rdb)
		limiter := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 3, time.Minute))
		cache, err := cacheaside.New(rdb, "names", func(_ context.Context, id string) (string, error) { return "ada", nil }, cacheaside.Config{Timeout: 10 * time.Second, TTL: time.Minute, L1Entries: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		mux := http.NewServeMux()
		mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			w.WriteHeader(201)
			_, _ = io.WriteString(w, "hello")
		})
		mux.Handle("GET /name/{id}", middleware.Cached(cache, func(r *http.Request) (string, error) { return r.PathValue("id"), nil }, middleware.CachedConfig[string]{}))
		mux.HandleFunc("GET /boom", func(http.ResponseWriter, *http.Request) { panic("boom") })
		h := middleware.Chain(
			middleware.Recover(middleware.RecoverConfig{Logger: discard()}),
			middleware.RequestID(middleware.RequestIDConfig{}),
			middleware.ClientAddr(middleware.ClientAddrConfig{}),
			middleware.AccessLog(middleware.AccessLogConfig{Logger: logger, Path: true, Attrs: func(*http.Request) []slog.Attr { return []slog.Attr{slog.Int("extra", 1)} },
				Skip: func(r *http.Request) bool { return r.URL.Path == "/health" }}),
			middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
			middleware.Sessions(st, "sid", middleware.SessionsConfig{}),
		)(mux)
		send := func(path string) map[string]any {
			buf.Reset()
			r := httptest.NewRequest("GET", path, nil)
			r.RemoteAddr = "203.0.113.9:1"
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			line := make(map[string]any)
			if buf.Len() > 0 {
				if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range w.Result().Cookies() {
				token, _, _ := strings.Cut(c.Value, ".")
				if strings.Contains(buf.String(), c.Value) || strings.Contains(buf.String(), token) {
					t.Errorf("the cookie's token is in the log: %s", buf.String())
				}
			}
			return line
		}
		has := func(line map[string]any, want map[string]any) {
			t.Helper()
			for k, v := range want {
				if line[k] != v {
					t.Errorf("%s = %v; want %v in %v", k, line[k], v, line)
				}
			}
		}
		line := send("/item/7?token=secret")
		has(line, map[string]any{"method": "GET", "route": "GET /item/{id}", "path": "/item/7", "status": 201.0, "bytes": 5.0, "client": "203.0.113.9",
			"limit": "allowed", "limit_policy": "api", "limit_source": nil, "level": "INFO", "extra": 1.0, "cache": nil, "panic": nil})
		if len(line["request_id"].(string)) != 26 || line["duration_ms"].(float64) <= 0 {
			t.Errorf("line = %v; want a request_id and a duration", line)
		}
		if id, _ := line["session"].(string); id == "" {
			t.Errorf("line = %v; want the session's public id", line)
		}
		if strings.Contains(buf.String(), "secret") {
			t.Errorf("the query is in the log: %s", buf.String())
		}
		has(send("/name/7"), map[string]any{"cache": "loader", "status": 200.0, "session": nil})
		has(send("/boom"), map[string]any{"status": 500.0, "level": "ERROR", "panic": true, "route": "GET /boom"})
		has(send("/item/7"), map[string]any{"status": 429.0, "limit": "denied", "limit_policy": "api", "route": "", "session": nil})
		if line := send("/health"); len(line) != 0 {
			t.Errorf("skipped request was logged: %v", line)
		}
	})
}

// TestObserver: one observer hears of the request, the middlewares and the three
// cores, and none of it names a key or a token.
func TestObserver(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		counts := new(expvar.Map).Init()
		out, logger := newLogs()
		seen := make(map[string]bool)
		obs := middleware.Observers(
			func(ev middleware.Event) { seen[ev.Area+"."+ev.Op+"."+ev.Outcome] = true },
			func(middleware.Event) { panic("an observer harms nobody") },
			middleware.ExpvarObserver(counts), middleware.SlogObserver(logger, slog.LevelDebug))
		st, err := session.New(rdb, session.Config{Keys: [][]byte{sessionKey}, Timeout: 10 * time.Second, Hooks: middleware.SessionHooks(obs)})
		if err != nil {
			t.Fatal(err)
		}
		l := newLimiter(t, rdb, ratelimit.Config{Hooks: middleware.RateLimitHooks(obs)}, ratelimit.FixedWindow("api", 1, time.Minute))
		cache, err := cacheaside.New(rdb, "names", func(_ context.Context, id string) (string, error) {
			if id == "nobody" {
				return "", cacheaside.ErrNotFound
			}
			return "ada", nil
		}, cacheaside.Config{Timeout: 10 * time.Second, TTL: time.Minute, Hooks: middleware.CacheHooks(obs, "names")})
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		h := middleware.Chain(
			middleware.Observe(obs),
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{}),
			middleware.Sessions(st, "sid", middleware.SessionsConfig{}),
		)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			if _, err := cache.Get(r.Context(), "7"); err != nil {
				t.Error(err)
			}
			_, _ = cache.Get(r.Context(), "nobody")
			if err := cache.Invalidate(r.Context(), "7"); err != nil {
				t.Error(err)
			}
		}))
		ask(h, "203.0.113.9:1")
		ask(h, "203.0.113.9:1")
		for _, want := range []string{
			"http.request.ok", "http.ratelimit.allowed", "http.ratelimit.denied", "http.session.new", "http.commit.ok",
			"ratelimit.decide.allowed", "ratelimit.decide.denied", "session.session.created", "session.create.ok",
			"cacheaside.load.ok", "cacheaside.load.not-found", "cacheaside.fill.accepted", "cacheaside.invalidate.ok",
		} {
			if !seen[want] {
				t.Errorf("not observed: %s; seen: %v", want, seen)
			}
		}
		if got := counts.Get("http.status.4xx"); got == nil || got.String() != "1" {
			t.Errorf("http.status.4xx = %v; want 1", got)
		}
		if got := counts.Get("http.request.ok"); got == nil || got.String() != "2" {
			t.Errorf("http.request.ok = %v; want 2", got)
		}
		if out.count("ratelimit decide") != 2 || strings.Contains(out.String(), "203.0.113.9") {
			t.Errorf("log = %s; want two decisions and no address", out)
		}
	})
}

func TestCached(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		type user struct{ Name string }
		loads := 0
		cache, err := cacheaside.New(rdb, "user", func(_ context.Context, id string) (user, error) {
			loads++
			switch id {
			case "nobody":
				return user{}, cacheaside.ErrNotFound
			case "broken":
				return user{}, io.ErrUnexpectedEOF
			}
			return user{"ada"}, nil
		}, cacheaside.Config{Timeout: 10 * time.Second, TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		key := func(r *http.Request) (string, error) {
			if r.URL.Path == "/bad" {
				return "", io.EOF
			}
			return r.URL.Path[1:], nil
		}
		h := middleware.Cached(cache, key, middleware.CachedConfig[user]{Logger: discard()})
		send := func(method, path string, header ...string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, path, nil)
			for i := 0; i < len(header); i += 2 {
				r.Header.Set(header[i], header[i+1])
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		w := send("GET", "/7")
		tag := w.Header().Get("Etag")
		if w.Code != 200 || w.Body.String() != "{\"Name\":\"ada\"}\n" || len(tag) != 24 || w.Header().Get("Cache-Control") != "private, no-cache" ||
			w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("first = %d %q %v", w.Code, w.Body, w.Header())
		}
		if w := send("GET", "/7", "If-None-Match", tag); w.Code != 304 || w.Body.Len() != 0 || w.Header().Get("Etag") != tag {
			t.Errorf("with If-None-Match = %d %q %v; want 304 and nothing", w.Code, w.Body, w.Header())
		}
		if w := send("GET", "/7", "If-None-Match", `"other"`); w.Code != 200 {
			t.Errorf("with another tag = %d; want 200", w.Code)
		}
		if w := send("HEAD", "/7"); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "15" {
			t.Errorf("HEAD = %d %q %v", w.Code, w.Body, w.Header())
		}
		if loads != 1 {
			t.Errorf("loads = %d; want 1", loads)
		}
		for _, c := range []struct {
			method, path string
			code         int
		}{{"GET", "/nobody", 404}, {"GET", "/bad", 400}, {"GET", "/broken", 500}, {"POST", "/7", 405}} {
			if w := send(c.method, c.path); w.Code != c.code || w.Header().Get("Etag") != "" {
				t.Errorf("%s %s = %d %v; want %d without Etag", c.method, c.path, w.Code, w.Header(), c.code)
			}
		}
	})
}
