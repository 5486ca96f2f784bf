package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestTiers(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		h, err := handler(rdb, ratelimit.Config{Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(key, path string) *http.Response {
			r := httptest.NewRequest("GET", path, nil)
			if key != "" {
				r.Header.Set("X-Api-Key", key)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Result()
		}
		// count asks until it is denied, n times at most.
		count := func(n int, key, path string) (allowed int) {
			for range n {
				if ask(key, path).StatusCode != 200 {
					return allowed
				}
				allowed++
			}
			return allowed
		}

		if n := count(10, "free-1", "/report"); n != 3 {
			t.Errorf("free: %d reports; want 3 of 10 units each", n)
		}
		if res := ask("free-1", "/item"); res.StatusCode != 429 {
			t.Errorf("free, used up: %s; want 429", res.Status)
		}
		if n := count(40, "free-2", "/item"); n != 30 {
			t.Errorf("free: %d items; want 30", n)
		}
		if n := count(40, "pro-1", "/report"); n != 30 {
			t.Errorf("pro: %d reports; want 30", n)
		}
		for range 5 {
			if res := ask("free-3", "/status"); res.StatusCode != 200 {
				t.Fatalf("status: %s; want 200", res.Status)
			}
		}
		if n := count(40, "free-3", "/item"); n != 30 {
			t.Errorf("after looking at the status: %d items; want all 30", n)
		}
		if res := ask("pro-2", "/item"); !strings.Contains(res.Header.Get("RateLimit-Policy"), `"units";q=300;`) ||
			!strings.Contains(res.Header.Get("RateLimit-Policy"), `"day"`) {
			t.Errorf("RateLimit-Policy = %q; want both of pro's, in units", res.Header.Get("RateLimit-Policy"))
		}
		if res := ask("", "/item"); res.StatusCode != 401 {
			t.Errorf("without a key: %s; want 401", res.Status)
		}
		statuses := map[int]int{}
		for i := range 30 {
			statuses[ask(fmt.Sprint("pro-invented-", i), "/report").StatusCode]++
		}
		if statuses[401] != 9 || statuses[429] != 21 {
			t.Errorf("30 invented keys from one address = %v; want 9 of 401, since one was used, and 429 from then on", statuses)
		}
	})
}
