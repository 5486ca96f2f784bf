package middleware_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// upstream returns a proxy to a server that runs h.
func upstream(t *testing.T, h http.HandlerFunc) *httputil.ReverseProxy {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ErrorLog = quiet()
	return proxy
}

// TestReplacedAnswerArrives: the answer in place of a response whose session could not
// be saved gets to the client whatever the handler does when its write fails.
func TestReplacedAnswerArrives(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer dead.Close()
	store, err := session.New(dead, session.Config{Keys: [][]byte{sessionKey}})
	if err != nil {
		t.Fatal(err)
	}
	proxy := upstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 100_000)) })
	handlers := map[string]http.HandlerFunc{
		"returns": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
		"panics": func(w http.ResponseWriter, _ *http.Request) {
			if _, err := io.WriteString(w, "hello"); err != nil {
				panic(err)
			}
		},
		"aborts": func(w http.ResponseWriter, _ *http.Request) {
			if _, err := io.WriteString(w, "hello"); err != nil {
				panic(http.ErrAbortHandler)
			}
		},
		"proxy": proxy.ServeHTTP,
	}
	for _, proto := range protocols {
		for _, recovers := range []bool{true, false} {
			for name, handle := range handlers {
				out, logger := newLogs()
				var around middleware.Middleware
				if recovers {
					around = middleware.Recover(middleware.RecoverConfig{Logger: logger})
				}
				s := newSite(t, proto, middleware.Chain(around, middleware.Sessions(store, "sid", middleware.SessionsConfig{Logger: logger}))(
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						middleware.Session(r).Values["k"] = "v"
						handle(w, r)
					})))
				res := s.do(t, "GET", "/")
				if res.err != nil || res.StatusCode != 503 || res.body != "Service Unavailable\n" {
					t.Errorf("%s, %s, Recover %t: %v; want 503, whole", proto, name, recovers, res)
				}
				want := 0
				if name == "panics" {
					want = 1
				}
				if got := out.count("handler panicked"); got != want {
					t.Errorf("%s, %s, Recover %t: %d panics in the log; want %d:\n%s", proto, name, recovers, got, want, out)
				}
			}
		}
	}
}

// TestRouteBehindCopies: the route is known outside of what copies the request, and
// nothing that a client chooses is taken for one.
func TestRouteBehindCopies(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/files/{id}/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /panic/{id}", func(http.ResponseWriter, *http.Request) { panic("x") })
	mux.HandleFunc("GET /slow/{id}", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	api := http.NewServeMux()
	api.Handle("/api/v1/", http.StripPrefix("/api/v1", middleware.Routed(mux)))
	api.Handle("/deep/", http.StripPrefix("/deep", middleware.RequestID(middleware.RequestIDConfig{})(api)))
	copies := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(r.Context()).Clone(r.Context()))
		})
	}
	limit := func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 1000) }
	timeout := func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "late") }
	at := func(d time.Duration) middleware.Middleware {
		return func(next http.Handler) http.Handler { return http.TimeoutHandler(next, d, "late") }
	}
	for _, c := range []struct {
		name         string
		method, path string
		h            http.Handler
		want         string
	}{
		{"nothing between", "GET", "/item/1", mux, "GET /item/{id}"},
		{"copied", "GET", "/item/1", middleware.Chain(copies, middleware.Routed)(mux), "GET /item/{id}"},
		{"MaxBytesHandler", "GET", "/item/1", middleware.Chain(limit, middleware.Routed)(mux), "GET /item/{id}"},
		{"TimeoutHandler", "GET", "/item/1", middleware.Chain(timeout, middleware.Routed)(mux), "GET /item/{id}"},
		{"TimeoutHandler in time out", "GET", "/slow/1", middleware.Chain(at(30*time.Millisecond), middleware.Routed)(mux), "GET /slow/{id}"},
		{"CrossOriginProtection", "GET", "/item/1", middleware.Chain(http.NewCrossOriginProtection().Handler, middleware.Routed)(mux), "GET /item/{id}"},
		{"StripPrefix", "GET", "/api/v1/item/1", api, "GET /api/v1/item/{id}"},
		{"StripPrefix twice", "GET", "/deep/api/v1/item/1", api, "GET /deep/api/v1/item/{id}"},
		{"all", "GET", "/api/v1/item/1", middleware.Chain(copies, limit, timeout, middleware.Routed)(api), "GET /api/v1/item/{id}"},
		{"not found", "GET", "/nowhere/1", middleware.Chain(copies, middleware.Routed)(mux), ""},
		{"redirect", "GET", "/files/secret", mux, "/files/{id}/"},
		{"CONNECT", "CONNECT", "/files/secret", mux, ""},

		{"CONNECT like a pattern", "CONNECT", "/files/%7Bx%7D", mux, ""},
		{"CONNECT in place", "CONNECT", "/files/secret/", mux, "/files/{id}/"},
		{"set", "GET", "/x", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			middleware.SetRoute(r.Clone(r.Context()), "/by/{hand}")
		}), "/by/{hand}"},
		{"panic", "GET", "/panic/1", mux, "GET /panic/{id}"},
		{"panic behind copies", "GET", "/panic/1", middleware.Chain(copies, middleware.Routed)(mux), "GET /panic/{id}"},
	} {
		var observed, outside string
		out, logger := newLogs()
		over := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { outside = r.Pattern }()
				next.ServeHTTP(w, r)
			})
		}
		h := middleware.Chain(over, middleware.Recover(middleware.RecoverConfig{Logger: logger}), middleware.Observe(func(ev middleware.Event) { observed = ev.Name }),
			middleware.AccessLog(middleware.AccessLogConfig{Logger: logger}))(c.h)
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(c.method, c.path, nil))
		if observed != c.want || outside != c.want {
			t.Errorf("%s: observed %q, Pattern outside %q; want %q", c.name, observed, outside, c.want)
		}
		quoted := fmt.Sprintf("route=%q", c.want)
		if !strings.Contains(c.want, " ") && c.want != "" && !strings.ContainsAny(c.want, "{}") {
			quoted = "route=" + c.want
		}
		if n := out.count(quoted) + out.count("route="+c.want+" "); n == 0 {
			t.Errorf("%s: log = %s; want route %q", c.name, out, c.want)
		}
		if strings.HasPrefix(c.name, "panic") && out.count("handler panicked") != 1 {
			t.Errorf("%s: log = %s; want the panic", c.name, out)
		}
	}
	key := middleware.Route(mux)
	if a, b := key(httptest.NewRequest("CONNECT", "/files/a", nil)), key(httptest.NewRequest("CONNECT", "/files/b", nil)); a != b {
		t.Errorf("a client chooses the key of Route: %q, %q", a, b)
	}
}

// TestRecoverAloneRoute: Recover knows the route without others.
func TestRecoverAloneRoute(t *testing.T) {
	out, logger := newLogs()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(http.ResponseWriter, *http.Request) { panic("x") })
	middleware.Recover(middleware.RecoverConfig{Logger: logger})(mux).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/item/3", nil))
	if out.count(`route="GET /item/{id}"`) != 1 {
		t.Errorf("log = %s; want the route", out)
	}
}

// TestSharedCaches: a response that used the session is not stored by shared caches,
// whatever the handler declared, and one with its cookie by none at all.
func TestSharedCaches(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		for _, c := range []struct {
			fields []string
			read   string // Cache-Control of a response that read the session
			warns  bool
		}{
			{nil, "private", false},
			{[]string{"Cache-Control", "max-age=600"}, "max-age=600, private", false},
			{[]string{"Cache-Control", "public, max-age=600"}, "max-age=600, private", true},
			{[]string{"Cache-Control", "PUBLIC, s-maxage=5"}, "private", true},
			{[]string{"Cache-Control", "Private"}, "Private", false},
			{[]string{"Cache-Control", "no-store"}, "no-store", false},
			{[]string{"Cache-Control", `private="set-cookie", max-age=600`}, "max-age=600, private", false},
			{[]string{"Cache-Control", "PRIVATE=0, max-age=600"}, "max-age=600, private", false},
			{[]string{"Cache-Control", `no-cache="a, public", max-age=1`}, `no-cache="a, public", max-age=1, private`, false},
			{[]string{"Cache-Control", "private", "CDN-Cache-Control", "max-age=600"}, "private", true},
			{[]string{"CDN-Cache-Control", "max-age=600", "Surrogate-Control", "max-age=600", "Cloudflare-CDN-Cache-Control", "public", "X-Accel-Expires", "60"}, "private", true},
			{[]string{"CDN-Cache-Control", "no-store"}, "private", false},
		} {
			out, logger := newLogs()
			s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
				for i := 0; i < len(c.fields); i += 2 {
					w.Header().Add(c.fields[i], c.fields[i+1])
				}
				if s := middleware.Session(r); r.FormValue("new") != "" {
					s.Values["k"] = "v"
				}
				if r.FormValue("gorilla") != "" {
					if err := middleware.Session(r).Save(r, w); err != nil {
						t.Error(err)
					}
				}
				_, _ = io.WriteString(w, "x")
			}))
			check := func(res reply, want string) {
				if got := strings.Join(res.Header["Cache-Control"], " | "); got != want {
					t.Errorf("%q: Cache-Control = %q; want %q", c.fields, got, want)
				}
				for name, values := range res.Header {
					if (strings.HasSuffix(name, "-Cache-Control") && name != "Cache-Control" || name == "Surrogate-Control" || name == "X-Accel-Expires") && values[0] != "no-store" {
						t.Errorf("%q: %s = %q beside it", c.fields, name, values)
					}
				}
				if res.Header.Get("Vary") != "Cookie" {
					t.Errorf("%q: Vary = %q", c.fields, res.Header["Vary"])
				}
			}
			check(s.get(t, "/do?new=1"), "no-store")
			s.client = newBrowser(t, s.Server)
			check(s.get(t, "/do?new=1&gorilla=1"), "no-store")
			check(s.get(t, "/do"), c.read)
			if got := out.count("public-session-response"); (got > 0) != c.warns {
				t.Errorf("%q: %d warnings; want some: %t\n%s", c.fields, got, c.warns, out)
			}
		}
	})
}

// TestReadAfterFirstByte: what can't be made private any more is warned about.
func TestReadAfterFirstByte(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for _, c := range []struct {
		control string
		warns   int
	}{{"public, max-age=60", 1}, {"", 1}, {"private", 0}, {"no-store", 0}, {`private="x"`, 1}} {
		out, logger := newLogs()
		s := newSite(t, "HTTP/1.1", withSession(newStore(t, rdb), middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
			if c.control != "" {
				w.Header().Set("Cache-Control", c.control)
			}
			_, _ = io.WriteString(w, "hello ")
			_, _ = fmt.Fprint(w, middleware.Session(r).Values["k"])
		}))
		s.get(t, "/set?k=ada")
		if res := s.get(t, "/do"); res.body != "hello ada" {
			t.Errorf("body = %q", res.body)
		}
		s.Close() // waits for the handler
		if got := out.count("public-session-response"); got != c.warns {
			t.Errorf("Cache-Control %q: %d warnings; want %d:\n%s", c.control, got, c.warns, out)
		}
	}
}

// noHijack claims to be a Hijacker, as some wrappers do on HTTP/2.
type noHijack struct{ http.ResponseWriter }

func (noHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errors.New("no") }

// TestHijackFails: an answer after a Hijack that failed is one like any other.
func TestHijackFails(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		inner := withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			if _, _, err := w.(http.Hijacker).Hijack(); err == nil {
				t.Error("hijacked what has no connection")
			}
			_, _ = io.WriteString(w, "fallback")
		})
		s := newSite(t, proto, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(noHijack{w}, r) }))
		if res := s.get(t, "/do"); res.StatusCode != 200 || res.body != "fallback" || len(res.Cookies()) != 1 {
			t.Errorf("answer = %d %q with cookies %v; want fallback with one", res.StatusCode, res.body, res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "v" {
			t.Errorf("the session holds %q; want v", got)
		}
	})
}

// TestReverseProxyUpgrade: a new session's cookie goes with the 101 of an upstream.
func TestReverseProxyUpgrade(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		proxy := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_ = rw.Flush()
			line, _ := rw.ReadString('\n')
			_, _ = rw.WriteString(line)
			_ = rw.Flush()
		})
		srv := httptest.NewServer(withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			proxy.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /do HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		br := bufio.NewReader(conn)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "ping\n")
		line, err := br.ReadString('\n')
		if res.StatusCode != 101 || line != "ping\n" || len(res.Cookies()) != 1 {
			t.Fatalf("upgrade = %d, echo %q (%v), cookies %v; want 101, ping and one", res.StatusCode, line, err, res.Cookies())
		}
		req, _ := http.NewRequest("GET", srv.URL+"/get", nil)
		req.AddCookie(res.Cookies()[0])
		got, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		if b, _ := io.ReadAll(got.Body); string(b) != "v" {
			t.Errorf("the session holds %q; want v", b)
		}
	})
}

// TestReverseProxy103: an informational response of an upstream, after which
// ReverseProxy empties the headers, does not take the chain's along.
func TestReverseProxy103(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		proxy := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			for range len(r.FormValue("hints")) {
				w.Header().Set("Link", "</a.css>; rel=preload")
				w.WriteHeader(http.StatusEarlyHints)
			}
			w.Header().Del("Link")
			_, _ = io.WriteString(w, "x")
		})
		l := newLimiter(t, rdb, ratelimit.Config{Prefix: proto}, limits()...)
		s := newSite(t, proto, middleware.Chain(
			middleware.RequestID(middleware.RequestIDConfig{Header: "Trace"}),
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Headers: middleware.Draft11 | middleware.XRateLimit}),
			middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: discard()}),
		)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			proxy.ServeHTTP(w, r)
		})))
		for _, hints := range []string{"", "1", "12"} {
			s.client.Jar = nil
			res := s.get(t, "/?hints="+hints)
			for _, name := range []string{"Trace", "RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "Set-Cookie"} {
				if len(res.Header.Values(name)) != 1 {
					t.Errorf("%d hints: %s = %q; want one", len(hints), name, res.Header.Values(name))
				}
			}
			if res.Header.Get("Link") != "" {
				t.Errorf("%d hints: Link of the hints is in the response", len(hints))
			}
		}
	})
}

// TestPreflights: a preflight passes where something answers it as one, and only there.
func TestPreflights(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ask := func(h http.Handler, method string, fields ...string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, "/", nil)
			r.RemoteAddr = "203.0.113.9:1"
			for i := 0; i < len(fields); i += 2 {
				r.Header.Set(fields[i], fields[i+1])
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		pre := []string{"Origin", "https://app.example", "Access-Control-Request-Method", "PUT"}
		cors := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Add("Vary", "Origin")
				if r.Method == http.MethodOptions {
					if r.Header.Get("Origin") == "https://app.example" {
						w.Header().Set("Access-Control-Allow-Origin", "https://app.example")
					}
					w.WriteHeader(http.StatusNoContent)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
		ran := 0
		handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran++ })
		limit := func(prefix string, cfg middleware.RateLimitConfig) middleware.Middleware {
			l := newLimiter(t, rdb, ratelimit.Config{Prefix: prefix}, ratelimit.FixedWindow("api", 2, time.Minute))
			return middleware.RateLimit(l, middleware.ClientIP(), cfg)
		}

		h := middleware.Chain(limit("a", middleware.RateLimitConfig{}), cors)(handler)
		for range 5 {
			if w := ask(h, "OPTIONS", pre...); w.Code != 204 || w.Header().Get("RateLimit") != "" {
				t.Fatalf("preflight = %d %v; want 204, not charged", w.Code, w.Header())
			}
			if w := ask(h, "OPTIONS", "Origin", "https://evil.example", "Access-Control-Request-Method", "PUT"); w.Code != 204 {
				t.Fatalf("preflight of a stranger = %d; want 204", w.Code)
			}
		}
		for _, want := range []int{200, 200, 429} {
			if w := ask(h, "PUT", "Origin", "https://app.example"); w.Code != want {
				t.Errorf("request after preflights = %d; want %d", w.Code, want)
			}
		}
		if w := ask(h, "OPTIONS", pre...); w.Code != 204 {
			t.Errorf("preflight of a client over its limit = %d; want 204", w.Code)
		}
		if w := ask(h, "OPTIONS"); w.Code != 429 {
			t.Errorf("OPTIONS that is no preflight = %d; want 429", w.Code)
		}

		ran = 0
		h = limit("b", middleware.RateLimitConfig{})(handler) // takes every method
		for range 10 {
			ask(h, "OPTIONS", pre...)
		}
		if ran != 3 {
			t.Errorf("a handler that knows no CORS ran %d times by preflights; want one and the limit of 2", ran)
		}
		h = middleware.Chain(limit("c", middleware.RateLimitConfig{ChargePreflights: true}), cors)(handler)
		for _, want := range []int{204, 204, 429} {
			if w := ask(h, "OPTIONS", pre...); w.Code != want {
				t.Errorf("charged preflight = %d; want %d", w.Code, want)
			}
		}
	})
}

// TestRouteUnknown: who loses the route of every request is told.
func TestRouteUnknown(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		name  string
		h     http.Handler
		path  string
		warns int
	}{
		{"copied", http.MaxBytesHandler(mux, 1000), "/item/1", 1},
		{"routed", http.MaxBytesHandler(middleware.Routed(mux), 1000), "/item/1", 0},
		{"not found", http.MaxBytesHandler(mux, 1000), "/nowhere", 0},
	} {
		out, logger := newLogs()
		h := middleware.AccessLog(middleware.AccessLogConfig{Logger: logger})(c.h)
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", c.path, nil)) })
		}
		asking.Wait()
		if got := out.count("code=route-unknown"); got != c.warns {
			t.Errorf("%s: %d warnings; want %d", c.name, got, c.warns)
		}
	}
}
