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

func TestUserAndIP(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		users := map[string]string{}
		for i := range 10 {
			users[fmt.Sprintf("key%d", i)] = fmt.Sprintf("user%d", i)
		}
		h, err := handler(rdb, ratelimit.Config{Timeout: 10 * time.Second}, users)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(addr, key string) *http.Response {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = addr + ":1234"
			r.Header.Set("Authorization", "Bearer "+key)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Result()
		}
		count := func(n int, addr, key string) map[int]int {
			got := map[int]int{}
			for range n {
				got[ask(addr, key).StatusCode]++
			}
			return got
		}

		// A user has 20, wherever they come from.
		if got := count(15, "192.0.2.1", "key0"); got[200] != 15 {
			t.Errorf("15 requests: %v; want all allowed", got)
		}
		if got := count(10, "198.51.100.1", "key0"); got[200] != 5 || got[429] != 5 {
			t.Errorf("10 more from elsewhere: %v; want 5 allowed and 5 denied", got)
		}
		// Another user at the first address is not affected, and both limits are told.
		res := ask("192.0.2.1", "key1")
		if h := strings.Join(res.Header.Values("RateLimit"), ", "); res.StatusCode != 200 || !strings.Contains(h, `"address"`) || !strings.Contains(h, `"user"`) {
			t.Errorf("another user: %s, RateLimit %q; want 200 and both limits", res.Status, h)
		}
		// Who guesses keys uses up the address.
		got := count(120, "203.0.113.9", "wrong")
		if got[401] != 100 || got[429] != 20 {
			t.Errorf("120 wrong keys: %v; want 100 times 401 and then 429", got)
		}
		if res := ask("203.0.113.9", "key2"); res.StatusCode != 429 {
			t.Errorf("a right key from there: %s; want 429", res.Status)
		}
	})
}
