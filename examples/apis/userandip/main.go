// Userandip limits an API twice: each address, before anything is done for it,
// and each user, once it is known who asks.
//
//	REDIS_URL=redis://localhost:6379 go run -C examples ./apis/userandip
//	curl -H 'Authorization: Bearer ada-key' localhost:8080/
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
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
	h, err := handler(redis.NewClient(opts), ratelimit.Config{}, map[string]string{"ada-key": "ada", "grace-key": "grace"})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Addr: "localhost:8080", Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.ListenAndServe())
}

func handler(rdb redis.UniversalClient, cfg ratelimit.Config, users map[string]string) (http.Handler, error) {
	// An office behind one address has many users, so an address gets more than
	// one of them.
	byAddress, err1 := ratelimit.New(rdb, cfg, ratelimit.SlidingWindow("address", 100, time.Minute))
	byUser, err2 := ratelimit.New(rdb, cfg, ratelimit.SlidingWindow("user", 20, time.Minute))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", userOf(r))
	})
	return middleware.Chain(
		// Guessing keys costs the address, which is why this is the first.
		middleware.RateLimit(byAddress, middleware.ClientIP(), middleware.RateLimitConfig{}),
		authenticate(users),
		middleware.RateLimit(byUser, middleware.User(userOf), middleware.RateLimitConfig{}),
	)(api), nil
}

type userKey struct{}

func userOf(r *http.Request) string {
	user, _ := r.Context().Value(userKey{}).(string)
	return user
}

// authenticate is your own middleware: anything of this shape fits into a chain.
func authenticate(users map[string]string) middleware.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			user, ok := users[key]
			if !ok {
				w.Header().Set("WWW-Authenticate", "Bearer")
				http.Error(w, "unknown key", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
		})
	}
}
