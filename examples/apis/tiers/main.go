// Tiers gives paying customers more, and lets expensive requests cost more.
//
//	REDIS_URL=redis://localhost:6379 go run -C examples ./apis/tiers
//	curl -i -H 'X-Api-Key: free-1' localhost:8080/report
package main

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

func main() {
	opts, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://localhost:6379"))
	if err != nil { // it quotes the URL, which may hold a password
		log.Fatal("REDIS_URL: want it such as redis://user:password@localhost:6379/0")
	}
	h, err := handler(redis.NewClient(opts), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Addr: "localhost:8080", Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.ListenAndServe())
}

// costs of the routes, in units; every other costs 1.
var costs = map[string]int64{
	"GET /report": 10,
	"GET /status": 0, // looks at the limit and is not charged
}

func handler(rdb redis.UniversalClient, cfg ratelimit.Config) (http.Handler, error) {
	// Policies of one name and algorithm share their state, so a customer who
	// upgrades takes along what was used, and has the rest of the larger limit.
	free, err1 := ratelimit.New(rdb, cfg, ratelimit.SlidingLog("units", 30, time.Minute))
	if err1 != nil {
		return nil, err1
	}
	pro, err2 := free.With(
		ratelimit.SlidingLog("units", 300, time.Minute),
		ratelimit.FixedWindow("day", 10_000, 24*time.Hour).Aligned(0))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /item", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "an item") })
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "a report") })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "fine") })

	// The limit is the customer's, whom the key names. A key that nobody has is refused,
	// for a small limit of the address: who invents keys gets no account by each.
	strangers, err := free.With(ratelimit.SlidingLog("strangers", 10, time.Minute))
	if err != nil {
		return nil, err
	}
	refuse := middleware.RateLimit(strangers, middleware.ClientIP(), middleware.RateLimitConfig{})(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "unknown API key", http.StatusUnauthorized)
		}))
	limit := middleware.RateLimit(free, middleware.User(func(r *http.Request) string { return customers[r.Header.Get("X-Api-Key")].name }), middleware.RateLimitConfig{
		Tier: func(r *http.Request) *ratelimit.Limiter {
			if customers[r.Header.Get("X-Api-Key")].pays {
				return pro
			}
			return free
		},
		Cost: func(r *http.Request) int64 {
			_, pattern := mux.Handler(r)
			if c, ok := costs[pattern]; ok {
				return c
			}
			return 1
		},
		QuotaUnit: "units",
	})(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, known := customers[r.Header.Get("X-Api-Key")]; !known {
			refuse.ServeHTTP(w, r)
			return
		}
		limit.ServeHTTP(w, r)
	}), nil
}

type customer struct {
	name string
	pays bool
}

// customers are known by their API keys. Yours are in a database, by the digests of the
// keys, behind a cache.
var customers = map[string]customer{
	"free-1": {"ann", false},
	"free-2": {"bob", false},
	"free-3": {"eve", false},
	"pro-1":  {"cyd", true},
	"pro-2":  {"dan", true},
}
