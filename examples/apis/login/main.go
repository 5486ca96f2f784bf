// Login slows down whoever guesses passwords: few wrong guesses for one account
// from one address, and not many for all accounts together. Whoever knows the
// password is not counted, so nobody can lock an account for its owner.
//
//	REDIS_URL=redis://localhost:6379 go run -C examples ./apis/login
//	curl -d user=ada -d password=wrong localhost:8080/login
package main

import (
	"cmp"
	"crypto/subtle"
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
	h, err := handler(redis.NewClient(opts), ratelimit.Config{}, func(user, password string) bool {
		// Yours compares with argon2id or the like, which is slow on purpose.
		return user == "ada" && subtle.ConstantTimeCompare([]byte(password), []byte("lovelace")) == 1
	})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Addr: "localhost:8080", Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.ListenAndServe())
}

func handler(rdb redis.UniversalClient, cfg ratelimit.Config, check func(user, password string) bool) (http.Handler, error) {
	// While Redis is away this process counts by itself: open would invite
	// guessing, and closed would let nobody in.
	cfg.OnUnavailable = ratelimit.Local
	byAccount, err1 := ratelimit.New(rdb, cfg,
		ratelimit.TokenBucket("account", 5, 15*time.Minute, 5))
	byAddress, err2 := ratelimit.New(rdb, cfg,
		ratelimit.SlidingWindow("address", 50, time.Hour))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}

	// A guess is paid before the password is looked at, so a thousand guesses at
	// once are not a way around; the right one is paid back.
	right := func(status int) bool { return status == http.StatusOK }
	address := middleware.ClientIP()
	account := func(r *http.Request) string {
		return ratelimit.Join(user(r), address(r))
	}
	limits := middleware.Chain(
		middleware.RateLimit(byAddress, address, middleware.RateLimitConfig{RefundIf: right, Headers: middleware.NoHeaders}),
		middleware.RateLimit(byAccount, account, middleware.RateLimitConfig{RefundIf: right, Headers: middleware.NoHeaders}),
	)
	mux := http.NewServeMux()
	mux.Handle("POST /login", http.MaxBytesHandler(limits(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !check(user(r), r.PostFormValue("password")) {
			http.Error(w, "wrong user or password", http.StatusUnauthorized)
			return
		}
		fmt.Fprintln(w, "welcome") // and here: middleware.Regenerate, Bind
	})), 4<<10))
	return mux, nil
}

// user is the account a request is about; ADA and ada are one.
func user(r *http.Request) string {
	return strings.ToLower(strings.TrimSpace(r.PostFormValue("user")))
}
