package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestLogin(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var checked atomic.Int32
		h, err := handler(rdb, ratelimit.Config{Timeout: 10 * time.Second}, func(user, password string) bool {
			checked.Add(1)
			return user == "ada" && password == "lovelace"
		})
		if err != nil {
			t.Fatal(err)
		}
		login := func(addr, user, password string) *http.Response {
			form := url.Values{"user": {user}, "password": {password}}
			r := httptest.NewRequest("POST", "/login", strings.NewReader(form.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.RemoteAddr = addr + ":1234"
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Result()
		}
		want := func(addr, user, password string, status int) *http.Response {
			t.Helper()
			res := login(addr, user, password)
			if res.StatusCode != status {
				t.Errorf("%s logs in from %s with %s: %s; want %d", user, addr, password, res.Status, status)
			}
			return res
		}

		// Who knows the password may come as often as they like.
		for range 20 {
			want("192.0.2.1", "ada", "lovelace", 200)
		}
		// Who guesses may not, in whatever spelling.
		for i := range 5 {
			want("192.0.2.1", []string{"ada", "ADA", " Ada"}[i%3], "guess", 401)
		}
		if res := want("192.0.2.1", "ada", "lovelace", 429); res.Header.Get("Retry-After") == "" {
			t.Error("a denial has no Retry-After")
		}
		// The owner, elsewhere, is not locked out.
		want("192.0.2.2", "ada", "lovelace", 200)

		// Many guesses at once are not a way around.
		checked.Store(0)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { login("192.0.2.3", "ada", "guess") })
		}
		wg.Wait()
		if n := checked.Load(); n != 5 {
			t.Errorf("100 guesses at once: %d were checked; want 5", n)
		}

		// Nor are many accounts.
		checked.Store(0)
		for i := range 60 {
			login("192.0.2.4", "user"+string(rune('a'+i%26))+string(rune('a'+i/26)), "guess")
		}
		if n := checked.Load(); n != 50 {
			t.Errorf("60 accounts from one address: %d were checked; want 50", n)
		}
	})
}
