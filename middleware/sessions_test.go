package middleware_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
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
		gone := make(chan error, 1)
		s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{}, func(_ http.ResponseWriter, r *http.Request) {
			middleware.Session(r)
			<-r.Context().Done()
			gone <- middleware.Destroy(r)
		}))
		s.get(t, "/set?k=v")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
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

// TestSessionHijack: data is saved before the connection is handed over; the
// cookie goes with a 101 that the handler sends by WriteHeader, and is reported
// missing otherwise.
func TestSessionHijack(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		out, logger := newLogs()
		st := newStore(t, rdb)
		finish := make(chan struct{})
		ended := make(chan struct{}, 3)
		over := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next.ServeHTTP(w, r)
				if r.URL.Path == "/do" {
					ended <- struct{}{}
				}
			})
		}
		s := newSite(t, "HTTP/1.1", middleware.Chain(over, middleware.AccessLog(middleware.AccessLogConfig{Logger: logger}))(
			withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
				session := middleware.Session(r)
				session.Values["k"] = "handshake"
				if r.FormValue("how") == "101" {
					w.Header().Set("Connection", "Upgrade")
					w.Header().Set("Upgrade", "echo")
					w.WriteHeader(http.StatusSwitchingProtocols)
				}
				var conn net.Conn
				var rw *bufio.ReadWriter
				var err error
				if r.FormValue("by") == "assertion" {
					conn, rw, err = w.(http.Hijacker).Hijack()
				} else {
					conn, rw, err = http.NewResponseController(w).Hijack()
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if r.FormValue("how") != "101" {
					_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				}
				line, _ := rw.ReadString('\n')
				_, _ = rw.WriteString(line)
				_ = rw.Flush()
				<-finish
				session.Values["k"] = "closed"
			})))
		upgrade := func(query, cookie string) (*http.Response, net.Conn) {
			conn, err := tls.Dial("tcp", s.Listener.Addr().String(), s.tlsConfig())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintf(conn, "GET /do?%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nCookie: %s\r\n\r\nping\n", query, cookie)
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			br := bufio.NewReader(conn)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if line, err := br.ReadString('\n'); line != "ping\n" {
				t.Errorf("echo = %q, %v; want ping", line, err)
			}
			return res, conn
		}

		res, conn := upgrade("how=101", "")
		if res.StatusCode != 101 || len(res.Cookies()) != 1 {
			t.Fatalf("handshake = %d with cookies %v; want 101 with one", res.StatusCode, res.Cookies())
		}
		cookie := res.Cookies()[0].String()
		read := func() string { return s.get(t, "/get", "Cookie", cookie).body }
		if got := read(); got != "handshake" {
			t.Errorf("during the connection the session holds %q; want handshake", got)
		}
		finish <- struct{}{}
		<-ended
		conn.Close()
		if got := read(); got != "closed" {
			t.Errorf("after it the session holds %q; want closed", got)
		}

		s.get(t, "/set?k=again", "Cookie", cookie)
		_, conn = upgrade("by=assertion", cookie)
		if got := read(); got != "handshake" {
			t.Errorf("an existing session holds %q during a hijacked connection; want handshake", got)
		}
		finish <- struct{}{}
		<-ended
		conn.Close()

		if out.count("headers-sent") != 0 {
			t.Errorf("log = %s; want no headers-sent yet", out)
		}
		before, _ := st.Len(context.Background())
		res, conn = upgrade("by=controller", "")
		finish <- struct{}{}
		<-ended
		conn.Close()
		if len(res.Cookies()) != 0 || out.count("headers-sent") == 0 {
			t.Errorf("new session in a handler's own handshake: cookies %v, log %s; want none, and headers-sent", res.Cookies(), out)
		}
		if after, _ := st.Len(context.Background()); after != before {
			t.Errorf("sessions = %d; want %d as before", after, before)
		}
		if out.count("status=101") != 3 {
			t.Errorf("log = %s; want three requests with status 101", out)
		}
	})
}

// TestSessionCommitFails: when nothing was sent yet the client learns of it.
func TestSessionCommitFails(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		type unregistered struct{ X int }
		var cfg middleware.SessionsConfig
		out, logger := newLogs()
		cfg.Logger = logger
		handler := func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = unregistered{1}
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Content-Length", "5")
			switch r.FormValue("how") {
			case "redirect":
				http.Redirect(w, r, "/get", 303)
			case "write":
				if _, err := io.WriteString(w, "hello"); !errors.Is(err, middleware.ErrReplaced) {
					t.Errorf("write into a replaced response = %v; want ErrReplaced", err)
				}
			case "flush":
				if err := http.NewResponseController(w).Flush(); !errors.Is(err, middleware.ErrReplaced) {
					t.Errorf("flush of a replaced response = %v; want ErrReplaced", err)
				}
			case "hijack":
				if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
					t.Error("the connection of a replaced response could be hijacked")
				}
			}
		}
		for _, how := range []string{"", "redirect", "write", "flush"} {
			s := newSite(t, proto, withSession(newStore(t, rdb), cfg, handler))
			res := s.get(t, "/do?how="+how)
			if res.StatusCode != 500 || len(res.Cookies()) > 0 || res.Header.Get("Location") != "" {
				t.Errorf("%q = %d %v; want 500 without cookie or Location", how, res.StatusCode, res.Header)
			}
			if res.Header.Get("Cache-Control") != "no-store" || res.body != "Internal Server Error\n" {
				t.Errorf("%q = %q, Cache-Control %q", how, res.body, res.Header.Get("Cache-Control"))
			}
		}
		if out.count("session could not be saved") != 4 {
			t.Errorf("log = %s; want four errors", out)
		}
		own := cfg
		own.Error = func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, session.ErrUnsupported) {
				t.Errorf("Error got %v; want ErrUnsupported", err)
			}
			w.WriteHeader(418)
		}
		if res := newSite(t, proto, withSession(newStore(t, rdb), own, handler)).get(t, "/do?how=write"); res.StatusCode != 418 {
			t.Errorf("own answer = %d; want 418", res.StatusCode)
		}
		lax := cfg
		lax.ServeUnsaved = true
		s := newSite(t, proto, withSession(newStore(t, rdb), lax, func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = unregistered{1}
			_, _ = io.WriteString(w, "hello")
		}))
		if res := s.get(t, "/do"); res.StatusCode != 200 || res.body != "hello" {
			t.Errorf("ServeUnsaved = %d %q; want 200 hello", res.StatusCode, res.body)
		}
	})
}

// TestSessionRedisDown: a handler gets a usable session and an error, and a
// response that would pretend to have saved something becomes 503, soon.
func TestSessionRedisDown(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer dead.Close()
	_, live := redistest.Mini(t)
	good := newSite(t, "HTTP/1.1", withSession(newStore(t, live), middleware.SessionsConfig{}, ok))
	cookie := good.get(t, "/set?k=v").Cookies()[0].String()
	for _, eager := range []bool{false, true} {
		st, err := session.New(dead, session.Config{Keys: [][]byte{sessionKey}})
		if err != nil {
			t.Fatal(err)
		}
		s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Eager: eager}, func(w http.ResponseWriter, r *http.Request) {
			s, err := middleware.LoadSession(r)
			if s == nil || !errors.Is(err, session.ErrUnavailable) || session.Loaded(s) {
				t.Errorf("LoadSession = %v, %v; want a session that is not loaded, and ErrUnavailable", s, err)
			}
			if r.FormValue("change") != "" {
				s.Values["k"] = "w"
			}
			_, _ = io.WriteString(w, "hello")
		}))
		start := time.Now()
		if res := s.get(t, "/do", "Cookie", cookie); res.StatusCode != 200 || len(res.Cookies()) > 0 {
			t.Errorf("reading = %d with cookies %v; want 200 without", res.StatusCode, res.Cookies())
		}
		if res := s.get(t, "/do?change=1", "Cookie", cookie); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("changing = %d, Retry-After %q; want 503 with it", res.StatusCode, res.Header.Get("Retry-After"))
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("both took %v", took)
		}
	}
}

// TestSessionGone: a session that was destroyed meanwhile is no error for the
// client.
func TestSessionGone(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		out, logger := newLogs()
		s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
			s := middleware.Session(r)
			if _, err := st.Clear(r.Context()); err != nil {
				t.Error(err)
			}
			s.Values["k"] = "back"
			_, _ = io.WriteString(w, "hello")
		}))
		s.get(t, "/set?k=v")
		if res := s.get(t, "/do"); res.StatusCode != 200 || len(res.Cookies()) > 0 {
			t.Errorf("response = %d, cookies %v; want 200 without", res.StatusCode, res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "" {
			t.Errorf("the session is back and holds %q", got)
		}
		if out.count("session was gone") != 1 {
			t.Errorf("log = %s; want one line", out)
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
			http.Redirect(w, r, "/get", 303)
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
			deadline := time.Now().Add(5 * time.Second)
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

// TestSessionSharedWithGorilla: middleware.Session, store.Get and
// sessions.GetRegistry give the same session, and an explicit Save sends the cookie
// once.
func TestSessionSharedWithGorilla(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := newStore(t, rdb)
	s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
		var a, b *sessions.Session
		if r.FormValue("first") == "gorilla" {
			a, _ = st.Get(r, "sid")
			b = middleware.Session(r)
		} else {
			b = middleware.Session(r)
			a, _ = st.Get(r, "sid")
		}
		if a != b {
			t.Errorf("first=%s: store.Get and middleware.Session give different sessions", r.FormValue("first"))
		}
		a.Values["k"] = "one"
		if err := a.Save(r, w); err != nil {
			t.Error(err)
		}
		b.Values["k"] = "two"
	}))
	for _, first := range []string{"gorilla", "middleware"} {
		s.client = newBrowser(t, s.Server)
		if res := s.get(t, "/do?first="+first); len(res.Header["Set-Cookie"]) != 1 {
			t.Errorf("first=%s: Set-Cookie = %q; want one", first, res.Header["Set-Cookie"])
		}
		if got := s.get(t, "/get").body; got != "two" {
			t.Errorf("first=%s: session holds %q; want two", first, got)
		}
	}
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

// TestSessionHijackCommitFails: a connection is not handed over when the session
// could not be saved; the client gets the error.
func TestSessionHijackCommitFails(t *testing.T) {
	type unregistered struct{ X int }
	_, rdb := redistest.Mini(t)
	s := newSite(t, "HTTP/1.1", withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["k"] = unregistered{1}
		if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, middleware.ErrReplaced) {
			t.Errorf("Hijack = %v; want ErrReplaced", err)
		}
	}))
	s.get(t, "/set?k=v")
	if res := s.get(t, "/do"); res.StatusCode != 500 {
		t.Errorf("response = %d; want 500", res.StatusCode)
	}
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
