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
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// TestSessionHijack: data is saved before the connection is handed over; the
// cookie goes with a 101 that the handler sends by WriteHeader, and is warned about
// where the handler must send it.
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
		// It was stored: a handler that sends the headers it finds needs it.
		if after, _ := st.Len(context.Background()); after != before+1 {
			t.Errorf("sessions = %d; want %d", after, before+1)
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
				http.Redirect(w, r, "/get", http.StatusSeeOther)
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
// response that would pretend to have saved something becomes 503.
func TestSessionRedisDown(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
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
		if res := s.get(t, "/do", "Cookie", cookie); res.StatusCode != 200 || len(res.Cookies()) > 0 {
			t.Errorf("reading = %d with cookies %v; want 200 without", res.StatusCode, res.Cookies())
		}
		if res := s.get(t, "/do?change=1", "Cookie", cookie); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("changing = %d, Retry-After %q; want 503 with it", res.StatusCode, res.Header.Get("Retry-After"))
		}
	}
}

// TestSessionNotReplicated: a session that its store wants on a replica, and that
// is on the master alone, is not passed off as saved.
func TestSessionNotReplicated(t *testing.T) {
	st, err := session.New(redistest.Start(t).Client(), session.Config{Keys: [][]byte{sessionKey}, Replicas: 1, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Logger: discard()}, ok))
	if res := s.get(t, "/set?k=v"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a session without a replica = %d, Retry-After %q; want 503 with it", res.StatusCode, res.Header.Get("Retry-After"))
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

// TestSessionCookieOutlivesTheAnswer: a new id and a logout have taken effect, so their
// cookies go with the answer that replaces the handler's: after a panic, and when the rest
// of the session can't be saved.
func TestSessionCookieOutlivesTheAnswer(t *testing.T) {
	type unregistered struct{ X int }
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		_, logger := newLogs()
		st := newStore(t, rdb)
		h := middleware.Recover(middleware.RecoverConfig{Logger: logger})(withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "other", Value: "x"})
			var err error
			if r.FormValue("do") == "destroy" {
				err = middleware.Destroy(r)
			} else {
				err = middleware.Regenerate(r)
			}
			if err != nil {
				t.Error(err)
			}
			if r.FormValue("how") == "panic" {
				panic("boom")
			}
			middleware.Session(r).Values["k"] = unregistered{1}
		}))
		for _, how := range []string{"panic", "unsaved"} {
			s := newSite(t, proto, h)
			s.get(t, "/set?k=v")
			res := s.get(t, "/do?how="+how)
			if c := res.Cookies(); res.StatusCode != 500 || len(c) != 1 || c[0].Value == "" || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("Regenerate, %s: %d with %v; want 500 with the new cookie alone", how, res.StatusCode, res.Header)
			}
			if got := s.get(t, "/get").body; got != "v" {
				t.Errorf("Regenerate, %s: the session holds %q; want v", how, got)
			}
			res = s.get(t, "/do?do=destroy&how="+how)
			if c := res.Cookies(); res.StatusCode != 500 || len(c) != 1 || c[0].MaxAge >= 0 {
				t.Errorf("Destroy, %s: %d with %v; want 500 and the cookie deleted", how, res.StatusCode, c)
			}
		}
	})
}

// TestSessionSuperseded: a change of a session that got a new id meanwhile is not passed
// off as saved, sends no cookie over the new one, and works when it is repeated.
func TestSessionSuperseded(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := newStore(t, rdb)
		out, logger := newLogs()
		var s *site
		renew := true
		s = newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{Logger: logger}, func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("renew") != "" {
				if err := middleware.Regenerate(r); err != nil {
					t.Error(err)
				}
				return
			}
			own := middleware.Session(r)
			if renew {
				renew = false
				s.get(t, "/do?renew=1")
			}
			own.Values["k"] = "added"
			_, _ = io.WriteString(w, "hello")
		}))
		s.get(t, "/set?k=v")
		if res := s.get(t, "/do"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || len(res.Cookies()) > 0 {
			t.Errorf("response = %d %v; want 503 with Retry-After and no cookie", res.StatusCode, res.Header)
		}
		if got := s.get(t, "/get").body; got != "v" {
			t.Errorf("the session holds %q; want v under its new id", got)
		}
		if res := s.get(t, "/do"); res.StatusCode != 200 || s.get(t, "/get").body != "added" {
			t.Errorf("the repetition = %d; want it saved", res.StatusCode)
		}
		if out.count("level=WARN") != 1 {
			t.Errorf("log = %s; want one warning", out)
		}
	})
}
