// Quickstart is the program of the README.
package main

import (
	"context"
	"errors"
	"fmt"
	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
	"log"
	"net/http"
	"time"
)

func main() {
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	fromDB := func(ctx context.Context, user string) (string, error) { return "London", nil }
	sessions, err1 := session.New(rdb, session.Config{})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.SlidingLog("api", 3, time.Minute))
	cities, err3 := cacheaside.New(rdb, "city", fromDB, cacheaside.Config{TTL: 5 * time.Minute})
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r) // loaded on first use, saved before the headers go
		visits, _ := s.Values["visits"].(int)
		s.Values["visits"] = visits + 1
		if city, err := cities.GetEntry(r.Context(), "ada"); err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
		} else {
			fmt.Fprintf(w, "visit %d from %s, by %s\n", visits+1, city.Value, city.Source)
		}
	})
	limit := middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{})
	h := middleware.Chain(limit, middleware.Sessions(sessions, session.HostName("sid"), middleware.SessionsConfig{}))(hello) // first is outermost
	srv := &http.Server{Addr: "localhost:8081", Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.ListenAndServe())
}
