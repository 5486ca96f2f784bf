package middleware_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

// matrix lists the ways in which a handler can begin its response. In each the
// session is changed before, so the cookie must be there, and the value saved.
var matrix = []struct {
	name   string
	proto  string // empty: both
	method string
	status int
	body   string
	serve  func(w http.ResponseWriter, r *http.Request) error
}{
	{"return without a byte", "", "", 200, "", func(http.ResponseWriter, *http.Request) error { return nil }},
	{"WriteHeader", "", "", 201, "", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(201); return nil }},
	{"204", "", "", 204, "", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(204); return nil }},
	{"304", "", "", 304, "", func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(304); return nil }},
	{"Write", "", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write([]byte("x")); return err }},
	{"Write of nothing", "", "", 200, "", func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write(nil); return err }},
	{"WriteString", "", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := w.(io.StringWriter).WriteString("x")
		return err
	}},
	{"ReadFrom", "HTTP/1.1", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("x"))
		return err
	}},
	{"io.Copy", "", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.Copy(w, io.LimitReader(strings.NewReader("x"), 9))
		return err
	}},
	{"Flush of a ResponseController", "", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
		_, err := w.Write([]byte("x"))
		return err
	}},
	{"Flusher", "", "", 200, "x", func(w http.ResponseWriter, _ *http.Request) error {
		w.(http.Flusher).Flush()
		_, err := w.Write([]byte("x"))
		return err
	}},
	{"FlushError", "", "", 200, "", func(w http.ResponseWriter, _ *http.Request) error {
		return w.(interface{ FlushError() error }).FlushError()
	}},
	{"Flush only", "", "", 200, "", func(w http.ResponseWriter, _ *http.Request) error {
		return http.NewResponseController(w).Flush()
	}},
	{"redirect", "", "", 303, "", func(w http.ResponseWriter, r *http.Request) error {
		http.Redirect(w, r, "/get", http.StatusSeeOther)
		return nil
	}},
	{"HEAD", "", "HEAD", 200, "", func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write([]byte("x")); return err }},
	{"ServeFile", "", "", 200, "file", func(w http.ResponseWriter, r *http.Request) error {
		http.ServeFile(w, r, r.Context().Value(fileKey{}).(string))
		return nil
	}},
	{"TimeoutHandler in time", "", "", 200, "x", func(w http.ResponseWriter, r *http.Request) error {
		http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["k"] = "v"
			_, _ = w.Write([]byte("x"))
		}), time.Minute, "").ServeHTTP(w, r)
		return nil
	}},
	{"deadlines", "", "", 200, "", func(w http.ResponseWriter, _ *http.Request) error {
		rc := http.NewResponseController(w)
		return errors.Join(rc.SetReadDeadline(time.Now().Add(time.Minute)), rc.SetWriteDeadline(time.Now().Add(time.Minute)))
	}},
	{"full duplex", "HTTP/1.1", "", 200, "", func(w http.ResponseWriter, _ *http.Request) error {
		return http.NewResponseController(w).EnableFullDuplex()
	}},
}

type fileKey struct{}

// eachProtocol runs f for HTTP/1.1 and HTTP/2, on every Redis.
func eachProtocol(t *testing.T, f func(t *testing.T, proto string, rdb redis.UniversalClient)) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, proto := range protocols {
			t.Run(proto, func(t *testing.T) { f(t, proto, rdb) })
		}
	})
}

func TestSessionBeforeFirstByte(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.txt")
	if err := os.WriteFile(file, []byte("file"), 0o600); err != nil {
		t.Fatal(err)
	}
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		for _, row := range matrix {
			if row.proto != "" && row.proto != proto {
				continue
			}
			for _, outer := range []string{"alone", "in a chain"} {
				t.Run(row.name+" "+outer, func(t *testing.T) {
					h := withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
						middleware.Session(r).Values["k"] = "v"
						if err := row.serve(w, r.WithContext(context.WithValue(r.Context(), fileKey{}, file))); err != nil {
							t.Error(err)
						}
					})
					if outer == "in a chain" {
						h = middleware.Chain(
							middleware.Recover(middleware.RecoverConfig{Logger: discard()}),
							middleware.AccessLog(middleware.AccessLogConfig{Logger: discard()}),
						)(h)
					}
					s := newSite(t, proto, h)
					method := row.method
					if method == "" {
						method = "GET"
					}
					res := s.do(t, method, "/do")
					if res.err != nil {
						t.Fatal(res.err)
					}
					if res.Proto != proto {
						t.Fatalf("protocol = %s; want %s", res.Proto, proto)
					}
					if res.StatusCode != row.status || res.body != row.body && row.status == 200 {
						t.Errorf("response = %d %q; want %d %q", res.StatusCode, res.body, row.status, row.body)
					}
					if got := res.cookieNames(); !slices.Equal(got, []string{"sid"}) {
						t.Errorf("cookies = %q; want one sid", got)
					}
					if got := res.Header.Values("Vary"); !slices.Contains(got, "Cookie") {
						t.Errorf("Vary = %q; want Cookie among them", got)
					}
					if got := res.Header.Get("Cache-Control"); got != "no-store" {
						t.Errorf("Cache-Control of a response with the cookie = %q; want no-store", got)
					}
					if got := s.get(t, "/get").body; got != "v" {
						t.Errorf("next request reads %q; want v", got)
					}
				})
			}
		}
	})
}

// TestSessionUntouched: a handler that does not ask for the session gets no
// header, no cookie and costs no command.
func TestSessionUntouched(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "x")
		}))
		s.get(t, "/set?k=v")
		var res reply
		count := redistest.Count(t, rdb, func() { res = s.get(t, "/do") })
		if len(res.Cookies()) > 0 || res.Header.Get("Vary") != "" || res.Header.Get("Cache-Control") != "" {
			t.Errorf("headers = %v; want no cookie, Vary or Cache-Control", res.Header)
		}
		if count.Total != 0 {
			t.Errorf("commands = %v; want none", count)
		}
	})
}

// TestSessionUnchanged: reading costs one round trip and sends no cookie.
func TestSessionUnchanged(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(http.ResponseWriter, *http.Request) {}))
		if res := s.get(t, "/get"); len(res.Cookies()) > 0 {
			t.Errorf("an empty new session set %q; want no cookie", res.Cookies())
		}
		s.get(t, "/set?k=v")
		var res reply
		count := redistest.Count(t, rdb, func() { res = s.get(t, "/get") })
		if res.body != "v" {
			t.Errorf("body = %q; want v", res.body)
		}
		if len(res.Cookies()) > 0 {
			t.Errorf("unchanged session set %q; want no cookie", res.Cookies())
		}
		if !slices.Contains(res.Header.Values("Vary"), "Cookie") || res.Header.Get("Cache-Control") != "private" {
			t.Errorf("headers = %v; want Vary: Cookie and Cache-Control: private", res.Header)
		}
		if count.RoundTrips != 1 {
			t.Errorf("round trips = %d; want 1", count.RoundTrips)
		}
	})
}

// TestSessionEarlyHints: a 103 neither carries the cookie nor ends the time for
// changes.
func TestSessionEarlyHints(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		s := newSite(t, proto, withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			session := middleware.Session(r)
			session.Values["k"] = "early"
			w.Header().Set("Link", "</style.css>; rel=preload; as=style")
			w.WriteHeader(http.StatusEarlyHints)
			session.Values["k"] = "late"
			w.WriteHeader(http.StatusProcessing)
			_, _ = w.Write([]byte("x"))
		}))
		var hints []int
		var leaked []string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, code)
			leaked = append(leaked, h["Set-Cookie"]...)
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/do", nil)
		res, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if !slices.Equal(hints, []int{103, 102}) || len(leaked) > 0 {
			t.Errorf("1xx responses = %v with cookies %q; want 103 and 102 without", hints, leaked)
		}
		if len(res.Cookies()) != 1 {
			t.Errorf("cookies of the final response = %v; want one", res.Cookies())
		}
		if got := s.get(t, "/get").body; got != "late" {
			t.Errorf("next request reads %q; want what was set after the 103", got)
		}
	})
}

// TestSessionInterfaces: the wrapped writer has exactly the optional interfaces
// of the one net/http gave.
func TestSessionInterfaces(t *testing.T) {
	set := func(w http.ResponseWriter) string {
		var has []string
		add := func(ok bool, name string) {
			if ok {
				has = append(has, name)
			}
		}
		_, ok := w.(http.Flusher)
		add(ok, "Flusher")
		_, ok = w.(interface{ FlushError() error })
		add(ok, "FlushError")
		_, ok = w.(http.Hijacker)
		add(ok, "Hijacker")
		_, ok = w.(io.ReaderFrom)
		add(ok, "ReaderFrom")
		_, ok = w.(io.StringWriter)
		add(ok, "StringWriter")
		_, ok = w.(http.Pusher)
		add(ok, "Pusher")
		_, ok = w.(interface{ EnableFullDuplex() error })
		add(ok, "EnableFullDuplex")
		_, ok = w.(interface{ SetWriteDeadline(time.Time) error })
		add(ok, "SetWriteDeadline")
		//lint:ignore SA1019 it is part of what handlers may still find
		_, ok = w.(http.CloseNotifier)
		add(ok, "CloseNotifier")
		return strings.Join(has, " ")
	}
	_, rdb := redistest.Mini(t)
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			var bare string
			inner := withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, _ *http.Request) {
				_, _ = fmt.Fprint(w, set(w))
			})
			s := newSite(t, proto, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				bare = set(w)
				inner.ServeHTTP(w, r)
			}))
			if got := s.get(t, "/do").body; got != bare {
				t.Errorf("interfaces = %s\nwant         %s", got, bare)
			}
		})
	}
}

// TestSessionStream: an event stream arrives while its handler runs, with the
// cookie, and what the handler changes later is saved.
func TestSessionStream(t *testing.T) {
	eachProtocol(t, func(t *testing.T, proto string, rdb redis.UniversalClient) {
		next := make(chan struct{})
		s := newSite(t, proto, middleware.AccessLog(middleware.AccessLogConfig{Logger: discard()})(
			withSession(newStore(t, rdb), middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
				session := middleware.Session(r)
				session.Values["k"] = "begun"
				w.Header().Set("Content-Type", "text/event-stream")
				rc := http.NewResponseController(w)
				for i := range 3 {
					_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
					if err := rc.Flush(); err != nil {
						t.Error(err)
					}
					<-next
				}
				session.Values["k"] = "ended"
			})))
		res, err := s.client.Get(s.URL + "/do")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if len(res.Cookies()) != 1 {
			t.Errorf("cookies = %v; want one", res.Cookies())
		}
		body := bufio.NewReader(res.Body)
		for i := range 3 {
			line, err := body.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("line = %q, %v; want event %d while the handler runs", line, err, i)
			}
			_, _ = body.ReadString('\n')
			if got := s.get(t, "/get").body; got != "begun" {
				t.Errorf("meanwhile the session holds %q; want begun", got)
			}
			next <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, body)
		if got := s.get(t, "/get").body; got != "ended" {
			t.Errorf("after the stream the session holds %q; want ended", got)
		}
	})
}
