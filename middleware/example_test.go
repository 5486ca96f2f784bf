package middleware_test

import (
	"context"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// exampleRedis stands for your Redis.
func exampleRedis() (redis.UniversalClient, func()) {
	m, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	return rdb, func() { rdb.Close(); m.Close() }
}

// request sends one request through h as a browser with the given cookies would.
func request(h http.Handler, path string, cookies ...*http.Cookie) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "203.0.113.9:50000"
	for _, c := range cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// plainLog logs without what changes from run to run.
func plainLog() *slog.Logger {
	drop := []string{slog.TimeKey, "duration_ms", "request_id", "session", "docs", "stack"}
	return slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if slices.Contains(drop, a.Key) {
			return slog.Attr{}
		}
		return a
	}}))
}

// Example puts the whole chain around a mux, in the recommended order.
func Example() {
	rdb, stop := exampleRedis()
	defer stop()
	sessions, err := session.New(rdb, session.Config{Keys: [][]byte{[]byte("32 random bytes from your config")}, Timeout: 5 * time.Second})
	if err != nil {
		panic(err)
	}
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second}, ratelimit.SlidingLog("api", 2, time.Minute))
	if err != nil {
		panic(err)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r)
		visits, _ := s.Values["visits"].(int)
		s.Values["visits"] = visits + 1 // saved by the middleware
		fmt.Fprintf(w, "Hello %s, visit %d", r.PathValue("name"), visits+1)
	})

	h := middleware.Chain( // the first is outermost
		middleware.Recover(middleware.RecoverConfig{}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{}),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: plainLog()}),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(sessions, "__Host-sid", middleware.SessionsConfig{}),
	)(mux)

	first := request(h, "/hello/ada")
	fmt.Println(first.Body)
	fmt.Println(request(h, "/hello/ada", first.Result().Cookies()...).Body)
	third := request(h, "/hello/ada")
	fmt.Println(third.Code, third.Header().Get("Retry-After"))
	// Output:
	// level=INFO msg=request method=GET route="GET /hello/{name}" status=200 bytes=18 client=203.0.113.9 limit=allowed limit_policy=api
	// Hello ada, visit 1
	// level=INFO msg=request method=GET route="GET /hello/{name}" status=200 bytes=18 client=203.0.113.9 limit=allowed limit_policy=api
	// Hello ada, visit 2
	// level=INFO msg=request method=GET route="" status=429 bytes=176 client=203.0.113.9 limit=denied limit_policy=api
	// 429 60
}

// A login gives the session a new id, so that one that somebody planted before is
// worthless; a logout ends it at once.
func ExampleSessions() {
	rdb, stop := exampleRedis()
	defer stop()
	store, _ := session.New(rdb, session.Config{Keys: [][]byte{[]byte("32 random bytes from your config")}, Timeout: 5 * time.Second})
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := middleware.Regenerate(r); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		middleware.Session(r).Values["user"] = "ada"
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := middleware.Destroy(r); err != nil {
			http.Error(w, "you are still signed in, try again", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		user, signedIn := middleware.Session(r).Values["user"].(string)
		fmt.Fprintln(w, user, signedIn)
	})
	h := middleware.Sessions(store, "__Host-sid", middleware.SessionsConfig{})(mux)

	cookies := request(h, "/login").Result().Cookies()
	fmt.Print(request(h, "/", cookies...).Body)
	request(h, "/logout", cookies...)
	fmt.Print(request(h, "/", cookies...).Body)
	// Output:
	// ada true
	//  false
}

// Per client 100 requests a minute, and three failed logins: a login that succeeds
// gives its unit back.
func ExampleRateLimit() {
	rdb, stop := exampleRedis()
	defer stop()
	api, _ := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second}, ratelimit.SlidingLog("api", 100, time.Minute))
	failures, _ := api.With(ratelimit.FixedWindow("login", 3, 15*time.Minute))

	login := middleware.RateLimit(failures, middleware.Join(middleware.Fixed("login"), middleware.ClientIP()), middleware.RateLimitConfig{
		RefundIf: func(o middleware.Outcome) bool { return o.Said == "signed in" },
	})
	mux := http.NewServeMux()
	mux.Handle("/login", login(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") != "correct" {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return
		}
		middleware.SetOutcome(r, "signed in")
	})))
	h := middleware.RateLimit(api, middleware.ClientIP(), middleware.RateLimitConfig{Headers: middleware.Draft11 | middleware.XRateLimit})(mux)

	for _, password := range []string{"correct", "a", "b", "correct", "c", "d"} {
		w := request(h, "/login?password="+password)
		fmt.Println(password, w.Code, w.Header()["Ratelimit"])
	}
	// Output:
	// correct 200 ["api";r=99;t=60 "login";r=2;t=900]
	// a 401 ["api";r=98;t=60 "login";r=2;t=900]
	// b 401 ["api";r=97;t=60 "login";r=1;t=900]
	// correct 200 ["api";r=96;t=60 "login";r=0;t=900]
	// c 401 ["api";r=95;t=60 "login";r=0;t=900]
	// d 429 ["api";r=94;t=60 "login";r=0;t=900]
}

// Paying customers have another limit.
func ExampleRateLimit_tiers() {
	rdb, stop := exampleRedis()
	defer stop()
	free, _ := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second}, ratelimit.FixedWindow("free", 1, time.Minute))
	gold, _ := free.With(ratelimit.FixedWindow("gold", 1000, time.Minute)) // once, not for each request
	account := func(r *http.Request) string { return r.FormValue("account") }

	h := middleware.RateLimit(free, middleware.First(middleware.User(account), middleware.ClientIP()), middleware.RateLimitConfig{
		Tier: func(r *http.Request) *ratelimit.Limiter {
			if account(r) == "bigcorp" {
				return gold
			}
			return nil
		},
	})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, path := range []string{"/", "/", "/?account=bigcorp", "/?account=bigcorp"} {
		w := request(h, path)
		fmt.Println(path, w.Code, w.Header().Get("RateLimit-Policy"))
	}
	// Output:
	// / 200 "free";q=1;w=60
	// / 429 "free";q=1;w=60
	// /?account=bigcorp 200 "gold";q=1000;w=60
	// /?account=bigcorp 200 "gold";q=1000;w=60
}

// Behind a load balancer in 10/8, its word counts, and nobody else's.
func ExampleClientAddr() {
	h := middleware.ClientAddr(middleware.ClientAddrConfig{
		Trusted: middleware.Prefixes("10.0.0.0/8"),
	})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, middleware.ClientAddrOf(r))
	}))
	ask := func(peer, forwardedFor string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = peer
		r.Header.Set("X-Forwarded-For", forwardedFor)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(w.Body)
	}
	ask("10.0.0.1:443", "6.6.6.6, 203.0.113.9") // the client forged 6.6.6.6, the balancer appended 203.0.113.9
	ask("198.51.100.7:50000", "6.6.6.6")        // not through the balancer
	// Output:
	// 203.0.113.9
	// 198.51.100.7
}

func ExampleRecover() {
	h := middleware.Recover(middleware.RecoverConfig{Logger: plainLog()})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic("a bug")
	}))
	fmt.Println(request(h, "/").Code)
	// Output:
	// level=ERROR msg="handler panicked" panic="a bug" method=GET route=""
	// 500
}

func ExampleRequestID() {
	h := middleware.RequestID(middleware.RequestIDConfig{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, middleware.RequestIDOf(r))
	}))
	w := request(h, "/")
	fmt.Println(len(w.Body.String()), w.Body.String() == w.Header().Get("X-Request-Id"))
	// Output: 26 true
}

func ExampleAccessLog() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /item/{id}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "an item") })
	h := middleware.AccessLog(middleware.AccessLogConfig{Logger: plainLog()})(mux)
	request(h, "/item/7?token=secret")
	// Output:
	// level=INFO msg=request method=GET route="GET /item/{id}" status=200 bytes=7 client=203.0.113.9
}

// A value of the cache as JSON: a client that has it already is answered without
// a body.
func ExampleCached() {
	rdb, stop := exampleRedis()
	defer stop()
	type user struct{ Name string }
	users, err := cacheaside.New(rdb, "user", func(_ context.Context, id string) (user, error) {
		fmt.Println("asking the database for", id)
		return user{"Ada"}, nil
	}, cacheaside.Config{TTL: 5 * time.Minute, Timeout: 5 * time.Second})
	if err != nil {
		panic(err)
	}
	defer users.Close()
	mux := http.NewServeMux()
	mux.Handle("GET /user/{id}", middleware.Cached(users,
		func(r *http.Request) (string, error) { return r.PathValue("id"), nil },
		middleware.CachedConfig[user]{}))

	w := request(mux, "/user/42")
	fmt.Print(w.Code, " ", w.Body)
	r := httptest.NewRequest("GET", "/user/42", nil)
	r.Header.Set("If-None-Match", w.Header().Get("ETag"))
	w = httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body.Len())
	// Output:
	// asking the database for 42
	// 200 {"Name":"Ada"}
	// 304 0
}

// One observer counts what the middlewares and the cores do.
func ExampleObserve() {
	rdb, stop := exampleRedis()
	defer stop()
	counts := new(expvar.Map) // in a program: expvar.NewMap("redporch")
	observer := middleware.ExpvarObserver(counts)
	limiter, _ := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second, Hooks: middleware.RateLimitHooks(observer)},
		ratelimit.FixedWindow("api", 2, time.Minute))
	h := middleware.Chain(
		middleware.Observe(observer),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
	)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 3 {
		request(h, "/")
	}
	for _, name := range []string{"http.request.ok", "http.status.2xx", "http.status.4xx", "ratelimit.decide.allowed", "ratelimit.decide.denied"} {
		fmt.Println(name, counts.Get(name))
	}
	// Output:
	// http.request.ok 3
	// http.status.2xx 2
	// http.status.4xx 1
	// ratelimit.decide.allowed 2
	// ratelimit.decide.denied 1
}

func ExampleCheck() {
	rdb, stop := exampleRedis()
	defer stop()
	// Once, when the program starts. What it finds is in the log as well.
	findings, err := middleware.Check(context.Background(), rdb, middleware.CheckConfig{})
	fmt.Println(len(findings), err)
	// Output: 0 <nil>
}

// This order is wrong: the limiter stands outside of what finds out who the
// client is, so behind a proxy it would count the proxy. Chain says so.
func ExampleChain_incorrect() {
	rdb, stop := exampleRedis()
	defer stop()
	limiter, _ := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 100, time.Minute))
	old := slog.Default()
	slog.SetDefault(plainLog())
	defer slog.SetDefault(old)

	middleware.Chain(
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("10.0.0.0/8")}),
	)(http.NotFoundHandler())
	// Output:
	// level=WARN msg="redporch: RateLimit by client address stands outside ClientAddr: it counts proxies instead of clients" code=limiter-before-client-addr
}
