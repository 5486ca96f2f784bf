package middleware_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"expvar"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/redporch/redporch/middleware"
)

// TestEventOfRequest: an event has what OpenTelemetry's conventions ask for, none of it
// chosen by the client but by name.
func TestEventOfRequest(t *testing.T) {
	type key struct{}
	for _, c := range []struct {
		route, method         string
		tls                   bool
		wantRoute, wantMethod string
	}{
		{"GET /users/{id}", "GET", false, "/users/{id}", "GET"},
		{"POST example.org/users/{id}", "POST", true, "/users/{id}", "POST"},
		{"/users/:id", "BREW", false, "/users/:id", "_OTHER"},
		{"", "HEAD", false, "", "HEAD"},
	} {
		var got middleware.Event
		h := middleware.Observe(func(ev middleware.Event) { got = ev })(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c.route != "" {
				middleware.SetRoute(r, c.route)
			}
		}))
		r := httptest.NewRequest(c.method, "/users/secret", nil)
		scheme := "http"
		if c.tls {
			r.TLS, scheme = &tls.ConnectionState{}, "https"
		}
		h.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), key{}, "of the request")))
		if got.Name != c.route || got.Route != c.wantRoute || got.Method != c.wantMethod || got.Scheme != scheme || got.Stream {
			t.Errorf("%s of %q: %+v; want the route %q, method %s, scheme %s", c.method, c.route, got, c.wantRoute, c.wantMethod, scheme)
		}
		if got.Context == nil || got.Context.Value(key{}) != "of the request" {
			t.Errorf("%s of %q: the event has not the request's context", c.method, c.route)
		}
	}
}

// TestEventOfStream: what lasts as long as somebody listens is told apart, on HTTP/1.1 and
// HTTP/2, and its duration is in no sum.
func TestEventOfStream(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for what, c := range map[string]struct {
			handler http.HandlerFunc
			stream  bool
		}{
			"an answer": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }, false},
			"events": {func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "Text/Event-Stream ; x=y")
				fmt.Fprint(w, "data: 1\n\n")
			}, true},
			"another type": {func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-streams")
				fmt.Fprint(w, "1")
			}, false},
			"other protocols": {func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Connection", "close"); hijack(t, w) }, true},
			"an error":        {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusNotImplemented) }, false},
		} {
			if what == "other protocols" && http2 {
				continue // HTTP/2 has none
			}
			told := make(chan middleware.Event, 1)
			counts := new(expvar.Map).Init()
			srv := httptest.NewUnstartedServer(middleware.Observe(middleware.Observers(middleware.ExpvarObserver(counts), func(ev middleware.Event) { told <- ev }))(c.handler))
			srv.EnableHTTP2 = http2
			srv.StartTLS()
			if res, err := srv.Client().Get(srv.URL); err == nil {
				res.Body.Close()
			}
			ev := <-told
			srv.Close()
			if ev.Stream != c.stream || ev.Scheme != "https" {
				t.Errorf("HTTP/2 %v, %s: %+v; want Stream %v", http2, what, ev, c.stream)
			}
			if summed := counts.Get("http.request.us") != nil; summed == c.stream && ev.Duration.Microseconds() > 0 {
				t.Errorf("HTTP/2 %v, %s: the duration is in the sum: %v", http2, what, summed)
			}
		}
	}
}

func hijack(t *testing.T, w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	conn.Close()
}

// TestLoggedDuration: the unit of a duration is in its name, and the number is in that unit.
func TestLoggedDuration(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&out, nil))
	var ev middleware.Event
	h := middleware.Chain(middleware.Observe(middleware.Observers(func(e middleware.Event) { ev = e }, middleware.SlogObserver(logger, slog.LevelInfo))),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: logger}))(http.NotFoundHandler())
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	var lines []map[string]any
	for d := json.NewDecoder(&out); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if len(lines) != 2 {
		t.Fatalf("%d lines; want that of the log and that of the observer", len(lines))
	}
	inner, _ := lines[0]["duration_ms"].(float64)
	outer, ok := lines[1]["duration_ms"].(float64)
	if whole := float64(ev.Duration.Microseconds()) / 1000; !ok || outer != whole || inner < 0 || inner > whole {
		t.Errorf("logged %v and %v for a request of %v", lines[0]["duration_ms"], lines[1]["duration_ms"], ev.Duration)
	}
}
