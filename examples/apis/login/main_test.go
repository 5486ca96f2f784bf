package main

import (
	"fmt"
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
	"github.com/redporch/redporch/middleware"
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

// TestGuessesFromEverywhere: of the guesses at one account that come from ever new networks a
// hundred reach the password. The owner, in a browser that has signed in before, is not locked
// out by them; a browser with a cookie that was made up, or is another user's, is.
func TestGuessesFromEverywhere(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		a := newApp(t, rdb)
		_, device := a.login("[2001:db8:1::1]:1234", "ada", "lovelace", "")
		_, bobs := a.login("[2001:db8:1::1]:1234", "bob", "builder", "")
		if device == "" || bobs == "" {
			t.Fatal("no device cookie after signing in")
		}
		a.checked.Store(0)
		for i := range 150 {
			a.login(fmt.Sprintf("[2001:db8:%x::1]:1234", 16+i), "ada", "guess", "")
		}
		if n := a.checked.Load(); n != 100 {
			t.Errorf("150 guesses from 150 networks: %d reach the password; want 100", n)
		}
		name, value, _ := strings.Cut(device, "=")
		id, _, _ := strings.Cut(value, ".")
		networks := 0
		for what, c := range map[string]struct {
			cookie string
			status int
		}{
			"no cookie":          {"", 429},
			"the owner's":        {device, 200},
			"another user's":     {bobs, 429},
			"without signature":  {name + "=" + id, 429},
			"of another device":  {name + "=x" + value, 429},
			"an empty signature": {name + "=" + id + ".", 429},
		} {
			// From a network of its own each, since one has few tries at an account.
			networks++
			if status, _ := a.login(fmt.Sprintf("[2001:db8:ff%02x::1]:1234", networks), "ada", "lovelace", c.cookie); status != c.status {
				t.Errorf("ada signs in with %s: %d; want %d", what, status, c.status)
			}
		}
		// The device has a cap of its own, for whoever steals its cookie.
		a.checked.Store(0)
		for i := range 150 {
			a.login(fmt.Sprintf("[2001:db8:1%03x::1]:1234", i), "ada", "guess", device)
		}
		if n := a.checked.Load(); n != 100 {
			t.Errorf("150 guesses with the device's cookie: %d reach the password; want 100", n)
		}
	})
}

// TestGuessesFromOneNetwork: the /64 networks of one /48, or the addresses of one IPv4 /24,
// are one network.
func TestGuessesFromOneNetwork(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, network := range []string{"[2001:db8:77:%x::1]:1234", "198.51.100.%d:1234"} {
			a := newApp(t, rdb)
			for i := range 250 {
				a.login(fmt.Sprintf(network, i), fmt.Sprintf("user%d", i), "guess", "")
			}
			if n := a.checked.Load(); n != 200 {
				t.Errorf("250 guesses from the network of %s: %d reach a password; want 200", fmt.Sprintf(network, 1), n)
			}
		}
	})
}

// TestSuccessIsSaid: what is paid back goes by what the handler says. A login that shows its
// form again may answer a wrong password with 200, or redirect after either.
func TestSuccessIsSaid(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, status := range []int{200, 303, 401} {
			l, err := ratelimit.New(rdb, ratelimit.Config{Prefix: fmt.Sprintf("said%d:", status), Timeout: 10 * time.Second}, ratelimit.SlidingLog("guess", 5, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			reached := 0
			h := limit(l, middleware.ClientIP())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				reached++
				if r.FormValue("password") == "right" {
					middleware.SetOutcome(r, "signed in")
				}
				w.WriteHeader(status)
			}))
			for i := range 40 {
				password := "right"
				if i >= 20 {
					password = "guess"
				}
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/?password="+password, nil))
			}
			if reached != 25 {
				t.Errorf("wrong passwords answered with %d: %d of 20 right ones and 20 guesses reach the handler; want 20 and 5", status, reached)
			}
		}
	})
}

// app is the program with two accounts, and counts what it checks.
type app struct {
	h       http.Handler
	checked atomic.Int32
}

func newApp(t *testing.T, rdb redis.UniversalClient) *app {
	t.Helper()
	a := &app{}
	h, err := handler(rdb, ratelimit.Config{Timeout: 10 * time.Second}, func(user, password string) bool {
		a.checked.Add(1)
		return user == "ada" && password == "lovelace" || user == "bob" && password == "builder"
	})
	if err != nil {
		t.Fatal(err)
	}
	a.h = h
	return a
}

// login returns the status and the cookie that came, "name=value".
func (a *app) login(addr, user, password, cookie string) (int, string) {
	form := url.Values{"user": {user}, "password": {password}}
	r := httptest.NewRequest("POST", "/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Cookie", cookie)
	r.RemoteAddr = addr
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	set, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	return w.Code, set
}
