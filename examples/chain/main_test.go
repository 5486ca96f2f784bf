package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestChain(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var log strings.Builder
		h, err := handler(rdb, app(), slog.New(slog.NewTextHandler(&log, nil)), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(h)
		defer srv.Close()
		jar, _ := cookiejar.New(nil)
		c := &http.Client{Jar: jar}
		ask := func(method, path string, header ...string) (*http.Response, string) {
			t.Helper()
			req, _ := http.NewRequest(method, srv.URL+path, nil)
			if len(header) == 2 {
				req.Header.Set(header[0], header[1])
			}
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			return res, string(body)
		}

		res, body := ask("GET", "/")
		if body != "visit 1\n" || res.Header.Get("X-Request-Id") == "" || res.Header.Get("RateLimit") == "" {
			t.Errorf("first visit = %q with %v; want visit 1, an id and the limit", body, res.Header)
		}
		if res, _ := ask("GET", "/panic"); res.StatusCode != 500 {
			t.Errorf("a panic is answered with %s; want 500", res.Status)
		}
		if _, body := ask("GET", "/"); body != "visit 2\n" {
			t.Errorf("after the panic: %q; want visit 2", body)
		}
		if res, _ := ask("POST", "/leave", "Sec-Fetch-Site", "cross-site"); res.StatusCode != 403 {
			t.Errorf("a POST from another site is answered with %s; want 403", res.Status)
		}
		ask("POST", "/leave")
		if _, body := ask("GET", "/"); body != "visit 1\n" {
			t.Errorf("after leaving: %q; want a new session", body)
		}
		srv.Close()
		for _, want := range []string{`route="GET /{$}"`, "status=500", "panic=true", "request_id=", "limit=allowed", "session="} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %s:\n%s", want, log.String())
			}
		}
	})
}
