package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// TestSessionLateChange: what changes after the headers is saved if the session
// exists, and is reported and not stored if it would need a cookie.
func TestSessionLateChange(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		out, logger := newLogs()
		st := newStore(t, rdb)
		s := newSite(t, proto, withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
			session := middleware.Session(r)
			_, _ = io.WriteString(w, "x")
			session.Values["k"] = "late"
		}))
		stored, _ := st.Len(context.Background())
		if res := s.get(t, "/do"); len(res.Cookies()) > 0 {
			t.Errorf("cookies = %v; want none after the first byte", res.Cookies())
		}
		if n, err := st.Len(context.Background()); n != stored || err != nil {
			t.Errorf("stored sessions = %d, %v; want %d, none that nobody has a cookie for", n, err, stored)
		}
		if out.count("headers-sent") != 1 {
			t.Errorf("log = %s; want headers-sent once", out)
		}
		s.get(t, "/set?k=early")
		s.get(t, "/do")
		if got := s.get(t, "/get").body; got != "late" {
			t.Errorf("existing session holds %q; want late", got)
		}
		if out.count("headers-sent") != 1 {
			t.Errorf("log = %s; want nothing more for an existing session", out)
		}
	})
}

// TestSessionPanic: a panic saves nothing and reaches those outside, and
// ErrAbortHandler reaches net/http.
func TestSessionPanic(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		out, logger := newLogs()
		h := withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "half-made"
			switch r.FormValue("how") {
			case "abort":
				panic(http.ErrAbortHandler)
			case "torn":
				_, _ = io.WriteString(w, "torn")
				_ = http.NewResponseController(w).Flush()
			}
			panic("boom")
		})
		s := newSite(t, proto, middleware.Recover(middleware.RecoverConfig{Logger: logger})(h))
		s.get(t, "/set?k=before")

		res := s.get(t, "/do")
		if res.StatusCode != 500 || len(res.Cookies()) > 0 {
			t.Errorf("panic = %d with cookies %v; want 500 and none", res.StatusCode, res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "before" {
			t.Errorf("after a panic the session holds %q; want before", got)
		}
		if out.count("boom") == 0 {
			t.Errorf("log = %q; want the panic", out)
		}
		before := out.count("handler panicked")
		if res := s.do(t, "GET", "/do?how=abort"); res.err == nil {
			t.Errorf("ErrAbortHandler = %d; want a broken connection", res.StatusCode)
		}
		if out.count("handler panicked") != before {
			t.Errorf("ErrAbortHandler was logged: %s", out)
		}
		if got := s.get(t, "/get").body; got != "before" {
			t.Errorf("after ErrAbortHandler the session holds %q; want before", got)
		}
		if res := s.do(t, "GET", "/do?how=torn"); res.err == nil {
			t.Errorf("panic after the first byte = %d %q; want a broken connection, not a whole response", res.StatusCode, res.body)
		}
	})
}

// TestSessionTimeoutHandler: when a handler is given up, nothing it did is saved,
// and nothing races with what it goes on doing.
func TestSessionTimeoutHandler(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		answered, done := make(chan struct{}), make(chan struct{})
		slow := http.TimeoutHandler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			defer close(done)
			s := middleware.Session(r)
			for i := 0; ; i++ {
				s.Values["k"] = fmt.Sprint(i)
				select {
				case <-answered:
					if err := middleware.Regenerate(r); !errors.Is(err, session.ErrHeadersSent) {
						t.Errorf("Regenerate after the answer = %v; want ErrHeadersSent", err)
					}
					return
				default:
				}
			}
		}), 30*time.Millisecond, "too slow")
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, slow.ServeHTTP))
		s.get(t, "/set?k=before")
		res := s.get(t, "/do")
		close(answered)
		<-done
		if res.StatusCode != 503 || res.body != "too slow" || len(res.Cookies()) > 0 {
			t.Errorf("response = %d %q %v; want 503 too slow without cookie", res.StatusCode, res.body, res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "before" {
			t.Errorf("the session holds %q; want before", got)
		}
	})
}

// TestSessionOwnTimeout: a handler that ends its own context in time, as chi's
// Timeout middleware does, is not taken for one that was given up.
func TestSessionOwnTimeout(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for _, writes := range []bool{false, true} {
		s := newSite(t, "HTTP/1.1", withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
			defer cancel()
			middleware.Session(r.WithContext(ctx)).Values["k"] = "v"
			if writes {
				_, _ = io.WriteString(w, "x")
			}
		}))
		s.get(t, "/do")
		if got := s.get(t, "/get").body; got != "v" {
			t.Errorf("writes=%v: the session holds %q; want v", writes, got)
		}
	}
}

// TestSessionClientGone: what a handler did is saved although nobody waits for
// the answer any more.
func TestSessionClientGone(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		started, gone := make(chan struct{}), make(chan struct{})
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "saved"
			close(started)
			<-r.Context().Done()
			_, _ = io.WriteString(w, "x")
			defer close(gone)
		}))
		s.get(t, "/set?k=before")
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/do", nil)
		go func() {
			<-started
			cancel()
		}()
		if res, err := s.client.Do(req); err == nil {
			res.Body.Close()
		}
		<-gone
		if got := s.get(t, "/get").body; got != "saved" {
			t.Errorf("the session holds %q; want saved", got)
		}
	})
}

// TestSessionDestroyClientGone: a logout happens though the client hangs up.
func TestSessionDestroyClientGone(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		gone, started := make(chan error, 1), make(chan struct{})
		s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{}, func(_ http.ResponseWriter, r *http.Request) {
			middleware.Session(r)
			close(started)
			<-r.Context().Done()
			gone <- middleware.Destroy(r)
		}))
		s.get(t, "/set?k=v")
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-started
			cancel()
		}()
		req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/do", nil)
		if res, err := s.client.Do(req); err == nil {
			res.Body.Close()
		}
		if err := <-gone; err != nil {
			t.Errorf("Destroy = %v", err)
		}
		if got := s.get(t, "/get").body; got != "" {
			t.Errorf("after the logout the session holds %q; want nothing", got)
		}
	})
}

// TestSessionRegenerate: a login gives a new id in one response with one cookie,
// and the old one is dead.
func TestSessionRegenerate(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			if err := middleware.Regenerate(r); err != nil {
				t.Error(err)
			}
			middleware.Session(r).Values["user"] = "ada"
			http.Redirect(w, r, "/get", http.StatusSeeOther)
		}))
		old := s.get(t, "/set?k=v").Cookies()[0].String()
		res := s.get(t, "/do")
		if len(res.Cookies()) != 1 || res.Cookies()[0].String() == old {
			t.Fatalf("cookies = %v; want one that differs from the old", res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "v" {
			t.Errorf("new id reads %q; want v", got)
		}
		s.client = newBrowser(t, s.Server)
		if got := s.get(t, "/get", "Cookie", old).body; got != "" {
			t.Errorf("old id reads %q; want nothing", got)
		}
	})
}

// TestSessionDestroy: the session is gone and the cookie deleted, once; a new one
// may be begun in the same request.
func TestSessionDestroy(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		s := newSite(t, proto, withSession(st, middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("late") != "" {
				_ = http.NewResponseController(w).Flush()
			}
			if err := middleware.Destroy(r); err != nil {
				t.Error(err)
			}
		}))
		for _, late := range []string{"", "1"} {
			s.get(t, "/set?k=v")
			if n, _ := st.Len(context.Background()); n != 1 {
				t.Fatalf("sessions = %d; want 1", n)
			}
			res := s.get(t, "/do?late="+late)
			if late == "" && (len(res.Cookies()) != 1 || res.Cookies()[0].MaxAge >= 0) {
				t.Errorf("cookies = %v; want one that deletes", res.Cookies())
			}
			if n, _ := st.Len(context.Background()); n != 0 {
				t.Errorf("late=%q: sessions = %d; want 0", late, n)
			}
		}
	})
}

// TestSessionEager: loading overlaps what comes before the handler asks, and
// costs nothing without a cookie.
func TestSessionEager(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Eager: true}, func(w http.ResponseWriter, r *http.Request) {
			deadline := time.Now().Add(time.Minute) // of a machine that is stuck
			before := r.FormValue("loads")
			for fmt.Sprint(st.Stats().Loads) == before && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if fmt.Sprint(st.Stats().Loads) == before {
				t.Error("nothing was loaded before the handler asked")
			}
			a, err := st.Get(r, "sid")
			if r.FormValue("gorilla") != "" && err != nil {
				t.Error(err)
			}
			if b := middleware.Session(r); r.FormValue("gorilla") == "" && b.Values["k"] != "v" || b == nil || b.Store() != sessions.Store(st) {
				t.Errorf("session = %v of %v; want k=v of the store", b.Values, b.Store())
			}
			_ = a
		}))
		count := redistest.Count(t, rdb, func() { s.get(t, "/get") })
		if count.Total != 1 && count.Total != 0 {
			t.Errorf("without a cookie commands = %v; want none", count)
		}
		s.get(t, "/set?k=v")
		s.get(t, "/do?loads="+fmt.Sprint(st.Stats().Loads))
		count = redistest.Count(t, rdb, func() {
			if got := s.get(t, "/get").body; got != "v" {
				t.Errorf("body = %q; want v", got)
			}
		})
		if count.RoundTrips != 1 {
			t.Errorf("round trips = %d; want 1", count.RoundTrips)
		}
	})
}

// TestTwoSessions: two cookies, two stores, one response.
func TestTwoSessions(t *testing.T) {
	_, rdb := redistest.Mini(t)
	login, prefs := newStore(t, rdb), newStore(t, rdb)
	h := middleware.Chain(
		middleware.Sessions(login, "login", middleware.SessionsConfig{Logger: discard()}),
		middleware.Sessions(prefs, "prefs", middleware.SessionsConfig{Logger: discard()}),
	)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/get" {
			_, _ = fmt.Fprint(w, middleware.SessionNamed(r, "login").Values["k"], middleware.SessionNamed(r, "prefs").Values["k"])
			return
		}
		middleware.SessionNamed(r, "login").Values["k"] = "ada"
		middleware.Session(r).Values["k"] = "dark"
		if middleware.Session(r).Name() != "prefs" || middleware.StoreOf(r) != prefs {
			t.Error("Session and StoreOf are not those of the innermost Sessions")
		}
	}))
	s := newSite(t, "HTTP/1.1", h)
	names := s.get(t, "/").cookieNames()
	slices.Sort(names)
	if !slices.Equal(names, []string{"login", "prefs"}) {
		t.Errorf("cookies = %q; want login and prefs", names)
	}
	if got := s.get(t, "/get").body; got != "adadark" && got != "ada dark" {
		t.Errorf("both hold %q; want ada and dark", got)
	}
}

func TestSessionWithoutMiddleware(t *testing.T) {
	defer func() {
		if p := fmt.Sprint(recover()); !strings.Contains(p, "wrap the handler with middleware.Sessions") {
			t.Errorf("panic = %q; want one that says what to do", p)
		}
	}()
	middleware.Session(httptest.NewRequest("GET", "/", nil))
}

// TestSessionCacheControl: responses that depend on the session stay out of
// shared caches, whatever the handler says.
func TestSessionCacheControl(t *testing.T) {
	_, rdb := redistest.Mini(t)
	out, logger := newLogs()
	s := newSite(t, "HTTP/1.1", withSession(newStore(t, rdb), middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r)
		if cc := r.FormValue("cc"); cc != "" {
			w.Header().Set("Cache-Control", cc)
		}
		if v := r.FormValue("vary"); v != "" {
			w.Header().Set("Vary", v)
		}
	}))
	for _, c := range []struct{ set, want string }{
		{"", "private"},
		{"no-store", "no-store"},
		{"private, max-age=60", "private, max-age=60"},
		{"max-age=60", "max-age=60, private"},
		{"public, max-age=60", "max-age=60, private"},
		{"s-maxage=60", "private"},
		{"No-Store", "No-Store"},
	} {
		res := s.get(t, "/do?cc="+strings.ReplaceAll(c.set, " ", "+"))
		if got := res.Header.Get("Cache-Control"); got != c.want {
			t.Errorf("Cache-Control %q became %q; want %q", c.set, got, c.want)
		}
	}
	if out.count("public-session-response") != 1 {
		t.Errorf("log = %s; want public-session-response once", out)
	}
	for _, c := range []struct{ set, want string }{{"Accept", "Accept|Cookie"}, {"*", "*"}, {"accept,cookie", "accept,cookie"}} {
		res := s.get(t, "/do?vary="+c.set)
		if got := strings.Join(res.Header.Values("Vary"), "|"); got != c.want {
			t.Errorf("Vary %q became %q; want %q", c.set, got, c.want)
		}
	}
}

// TestPatternReachesOutside: what the mux inside matched is seen outside, through
// every layer that copies the request.
func TestPatternReachesOutside(t *testing.T) {
	_, rdb := redistest.Mini(t)
	l := newLimiter(t, rdb, ratelimit.Config{}, limits()...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["k"] = r.PathValue("id")
		if r.PathValue("id") == "panic" {
			panic(http.ErrAbortHandler)
		}
	})
	var seen string
	outside := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { seen = r.Pattern }()
			next.ServeHTTP(w, r)
		})
	}
	var events []string
	for name, chain := range map[string]middleware.Middleware{
		"Sessions alone":  middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: discard()}),
		"RateLimit alone": middleware.Chain(middleware.RateLimit(l, middleware.Fixed("x"), middleware.RateLimitConfig{}), middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: discard()})),
		"the whole chain": middleware.Chain(
			middleware.Recover(middleware.RecoverConfig{Logger: discard()}),
			middleware.RequestID(middleware.RequestIDConfig{}),
			middleware.ClientAddr(middleware.ClientAddrConfig{}),
			middleware.Observe(func(ev middleware.Event) {
				if ev.Op == "request" {
					events = append(events, ev.Name)
				}
			}),
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{}),
			middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: discard()}),
			func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "") },
		),
	} {
		for _, path := range []string{"/item/7", "/item/panic"} {
			seen = ""
			func() {
				defer func() { _ = recover() }()
				h := chain(mux)
				if name == "the whole chain" { // TimeoutHandler copies the request without copying back
					h = chain(middleware.RateLimit(l, middleware.Fixed("y"), middleware.RateLimitConfig{})(mux))
				}
				outside(h).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
			}()
			if name != "the whole chain" && seen != "GET /item/{id}" {
				t.Errorf("%s, %s: pattern outside = %q; want GET /item/{id}", name, path, seen)
			}
		}
	}
	if !slices.Equal(events, []string{"GET /item/{id}", "GET /item/{id}"}) {
		t.Errorf("routes observed through a TimeoutHandler = %q; want GET /item/{id} twice", events)
	}
}

// TestSessionConcurrentRequests: one browser, many requests at once, each with its
// own value: none is lost.
func TestSessionConcurrentRequests(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			if v := r.FormValue("v"); v != "" {
				middleware.Session(r).Values["v"+v] = true
				return
			}
			_, _ = fmt.Fprint(w, len(middleware.Session(r).Values))
		}))
		s.get(t, "/set?k=v")
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { s.get(t, fmt.Sprint("/do?v=", i)) })
		}
		wg.Wait()
		if got := s.get(t, "/do").body; got != "21" {
			t.Errorf("values = %s; want 21", got)
		}
	})
}

// TestSessionAskedAfterTimeout: a handler that first asks for the session after
// it was given up changes nothing, and is not raced with.
func TestSessionAskedAfterTimeout(t *testing.T) {
	_, rdb := redistest.Mini(t)
	asked, stop, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := newSite(t, "HTTP/1.1", withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Nanosecond)
		defer cancel()
		<-ctx.Done()
		w.WriteHeader(503)
		go func() {
			defer close(done)
			s := middleware.Session(r.WithContext(ctx))
			close(asked)
			for i := 0; ; i++ {
				s.Values["k"] = fmt.Sprint(i)
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		<-asked
	}))
	s.get(t, "/set?k=before")
	s.get(t, "/do")
	close(stop)
	<-done
	if got := s.get(t, "/get").body; got != "before" {
		t.Errorf("the session holds %q; want before", got)
	}
}

// A request commits once, and again only for what changed after the headers.
func TestCommitsOnce(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		commits := 0
		late := false
		h := middleware.Chain(
			middleware.Observe(func(ev middleware.Event) {
				if ev.Op == "commit" {
					commits++
				}
			}),
			middleware.Sessions(newStore(t, rdb), "sid", middleware.SessionsConfig{Logger: discard()}),
		)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s := middleware.Session(r)
			if s.IsNew {
				s.Values["k"] = 1
			}
			w.WriteHeader(http.StatusOK)
			if late {
				s.Values["k"] = 2
			}
		}))
		r := httptest.NewRequest("GET", "/", nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		r.AddCookie(w.Result().Cookies()[0])
		for _, c := range []struct {
			late bool
			want int
		}{{false, 1}, {true, 2}} {
			commits, late = 0, c.late
			h.ServeHTTP(httptest.NewRecorder(), r.Clone(t.Context()))
			if commits != c.want {
				t.Errorf("with a late change %v: %d commits; want %d", c.late, commits, c.want)
			}
		}
	})
}
