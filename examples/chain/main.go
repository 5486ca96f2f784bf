// Chain puts everything redporch has around a plain http.Handler, in the
// recommended order.
//
//	REDIS_URL=redis://localhost:6379 go run -C examples ./chain
package main

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

func main() {
	opts, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://localhost:6379"))
	if err != nil { // it quotes the URL, which may hold a password
		log.Fatal("REDIS_URL: want it such as redis://user:password@localhost:6379/0")
	}
	h, err := handler(redis.NewClient(opts), app(), slog.Default(), 0)
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Addr: "localhost:8080", Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.ListenAndServe())
}

// app is what was there before: it knows of sessions and of nothing else.
func app() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r)
		visits, _ := s.Values["visits"].(int)
		s.Values["visits"] = visits + 1
		fmt.Fprintf(w, "visit %d\n", visits+1)
	})
	mux.HandleFunc("GET /panic", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["visits"] = 1000 // is not saved
		panic("a bug")
	})
	mux.HandleFunc("POST /leave", func(w http.ResponseWriter, r *http.Request) {
		if err := middleware.Destroy(r); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
		}
	})
	return mux
}

// handler wraps app. timeout bounds each call to Redis; 0 means the packages'
// defaults.
func handler(rdb redis.UniversalClient, app http.Handler, logger *slog.Logger, timeout time.Duration) (http.Handler, error) {
	sessions, err1 := session.New(rdb, session.Config{
		IdleTimeout: 30 * time.Minute,
		Timeout:     timeout,
		Cookie:      session.Cookie{InsecureHTTP: true}, // without HTTPS only
	})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{Timeout: timeout},
		ratelimit.TokenBucket("steady", 5, time.Second, 20),
		ratelimit.FixedWindow("daily", 10_000, 24*time.Hour))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return middleware.Chain( // first is outermost
		middleware.Recover(middleware.RecoverConfig{Logger: logger}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{Logger: logger}),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: logger}),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{Logger: logger}),
		middleware.Sessions(sessions, "sid", middleware.SessionsConfig{Logger: logger}),
		http.NewCrossOriginProtection().Handler, // anything that wraps a handler fits
	)(app), nil
}
