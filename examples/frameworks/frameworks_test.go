package frameworks_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/examples/frameworks"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// lines collects log records.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// request waits for the record of the n-th request and returns it: it is written
// after the client has its answer.
func (l *lines) request(t *testing.T, n int) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		text := l.buf.String()
		l.mu.Unlock()
		seen := 0
		for line := range strings.Lines(text) {
			var rec map[string]any
			if json.Unmarshal([]byte(line), &rec) == nil && rec["msg"] == "request" {
				if seen++; seen == n {
					return rec
				}
			}
		}
	}
	t.Fatalf("no record of request %d", n)
	return nil
}

// TestFrameworks: a late cookie, a 429, the route in the log, and a recovered panic,
// the same in every router, on HTTP/1.1 and HTTP/2.
func TestFrameworks(t *testing.T) {
	for _, f := range []struct {
		name  string
		build func(*frameworks.App) http.Handler
		route string
	}{
		{"stdlib", frameworks.Stdlib, "GET /item/{id}"},
		{"chi", frameworks.Chi, "/item/{id}"},
		{"gorilla mux", frameworks.GorillaMux, "/item/{id}"},
		{"echo", frameworks.Echo, "/item/:id"},
		{"gin", frameworks.Gin, "/item/:id"},
	} {
		t.Run(f.name, func(t *testing.T) {
			redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
				for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
					t.Run(proto, func(t *testing.T) { body(t, f.build, f.route, proto, rdb) })
				}
			})
		})
	}
}

func body(t *testing.T, build func(*frameworks.App) http.Handler, route, proto string, rdb redis.UniversalClient) {
	store, err := session.New(rdb, session.Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Prefix: proto, Timeout: 5 * time.Second}, ratelimit.FixedWindow("two", 2, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	log := new(lines)
	srv := httptest.NewUnstartedServer(build(&frameworks.App{Store: store, Limiter: limiter, Logger: slog.New(slog.NewJSONHandler(log, nil))}))
	srv.EnableHTTP2 = proto == "HTTP/2.0"
	srv.StartTLS()
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.Jar, _ = cookiejar.New(nil)
	requests := 0
	get := func(path string) (*http.Response, string, map[string]any) {
		t.Helper()
		res, err := client.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.Proto != proto {
			t.Fatalf("protocol = %s; want %s", res.Proto, proto)
		}
		b, _ := io.ReadAll(res.Body)
		requests++
		return res, string(b), log.request(t, requests)
	}

	res, text, rec := get("/item/7")
	if res.StatusCode != 200 || text != "item 7, visit 1" || len(res.Cookies()) != 1 {
		t.Errorf("first visit = %d %q with cookies %v; want visit 1 and one cookie", res.StatusCode, text, res.Cookies())
	}
	if rec["route"] != route || rec["status"] != 200.0 || rec["session"] == nil {
		t.Errorf("record = %v; want route %s, status 200 and a session", rec, route)
	}
	if res, text, _ := get("/item/8"); text != "item 8, visit 2" || len(res.Cookies()) != 0 {
		t.Errorf("second visit = %q with cookies %v; want visit 2 and none", text, res.Cookies())
	}

	for i, want := range []int{200, 200, 429} {
		res, text, rec := get("/limited")
		if res.StatusCode != want || rec["status"] != float64(want) || rec["route"] == "" {
			t.Errorf("request %d = %d, record %v; want %d", i+1, res.StatusCode, rec, want)
		}
		if want == 429 && (res.Header.Get("Retry-After") == "" || !strings.Contains(text, "quota-exceeded")) {
			t.Errorf("429 = %q %v; want a problem document with Retry-After", text, res.Header)
		}
		if res.Header.Get("RateLimit") == "" {
			t.Errorf("request %d has no RateLimit: %v", i+1, res.Header)
		}
	}

	if res, _, rec := get("/boom"); res.StatusCode != 500 || rec["panic"] != true {
		t.Errorf("panic = %d, record %v; want 500", res.StatusCode, rec)
	}
	if res, _, rec := get("/nowhere"); res.StatusCode != 404 || rec["status"] != 404.0 {
		t.Errorf("unknown route = %d, record %v; want 404", res.StatusCode, rec)
	}
}
