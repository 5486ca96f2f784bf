package middleware_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// visitor is a value of sessions, with its type.
const visitor = session.Key[string]("visitor")

// routes are what the server does, without a word on how requests get there.
func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r)
		visitor.Set(s, r.FormValue("user")) // and a password, in earnest
		err := errors.Join(middleware.StoreOf(r).Bind(s, r.FormValue("user")), middleware.Regenerate(r))
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "signed in")
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello ", visitor.Or(middleware.Session(r), "stranger"))
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := middleware.Destroy(r); err != nil {
			http.Error(w, "still signed in, try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "signed out")
	})
	return mux
}

// porch is what requests pass on the way.
func porch(rdb redis.UniversalClient) (middleware.Middleware, error) {
	sessions, err1 := session.New(rdb, session.Config{
		Keys:   [][]byte{[]byte("32 random bytes of your own, not these")},
		Cookie: session.Cookie{InsecureHTTP: true}, // the test server has no HTTPS
	})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.SlidingLog("client", 5, time.Minute))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return middleware.Chain( // the first is outermost
		middleware.Recover(middleware.RecoverConfig{}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(sessions, "sid", middleware.SessionsConfig{}),
		http.NewCrossOriginProtection().Handler,
	), nil
}

// A whole server: sessions, a limit for each client, protection against CSRF.
func Example_server() {
	inside, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer inside.Close()
	inside.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: inside.Addr()})
	defer rdb.Close()
	wrap, err := porch(rdb)
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(wrap(routes()))
	defer server.Close()

	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar}
	show := func(resp *http.Response, err error) {
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		var body [64]byte
		n, _ := resp.Body.Read(body[:])
		if resp.StatusCode != http.StatusOK {
			fmt.Println(resp.Status)
			return
		}
		fmt.Println(string(body[:n]))
	}
	show(browser.Get(server.URL))
	show(browser.PostForm(server.URL+"/login", url.Values{"user": {"ada"}}))
	show(browser.Get(server.URL))
	show(browser.PostForm(server.URL+"/logout", nil))
	show(browser.Get(server.URL))
	show(browser.Get(server.URL)) // the sixth request in a minute
	// Output:
	// hello stranger
	// signed in
	// hello ada
	// signed out
	// hello stranger
	// 429 Too Many Requests
}
