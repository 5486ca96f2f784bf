// Login slows down whoever guesses passwords: few wrong guesses for one account
// from one address, not many for all accounts together, from an address or from its
// network, and a hundred a day for one account from everywhere. Whoever knows the
// password is not counted. A browser that has signed in before has an account of its
// own for the last limit, so that nobody can lock the owner out of it.
//
//	REDIS_URL=redis://localhost:6379 go run -C examples ./apis/login
//	curl -d user=ada -d password=wrong localhost:8080/login
package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
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
	byNetwork, err3 := ratelimit.New(rdb, cfg,
		ratelimit.SlidingWindow("network", 200, time.Hour))
	everywhere, err4 := ratelimit.New(rdb, cfg,
		ratelimit.SlidingWindow("everywhere", 100, 24*time.Hour))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}

	address, network := middleware.ClientIP(), middleware.ClientNetwork(24, 48)
	device := func(r *http.Request) string { return deviceOf(r, user(r)) }
	login := middleware.Chain(
		limit(byNetwork, network),
		limit(byAddress, address),
		limit(byAccount, func(r *http.Request) string { return ratelimit.Join(user(r), address(r)) }),
		// All guesses at one account together are few, from wherever they come. So that
		// they don't lock out the owner, a browser that has signed in before is counted by
		// itself.
		limit(everywhere, middleware.First(
			func(r *http.Request) string {
				if d := device(r); d != "" {
					return "device:" + d
				}
				return ""
			},
			func(r *http.Request) string { return "account:" + user(r) })),
	)
	mux := http.NewServeMux()
	mux.Handle("POST /login", http.MaxBytesHandler(login(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !check(user(r), r.PostFormValue("password")) {
			http.Error(w, "wrong user or password", http.StatusUnauthorized)
			return
		}
		middleware.SetOutcome(r, "signed in")
		http.SetCookie(w, newDevice(user(r)))
		fmt.Fprintln(w, "welcome") // and here: middleware.Regenerate, Bind
	})), 4<<10))
	return mux, nil
}

// limit charges a guess before the password is looked at, so that a thousand guesses at once
// are not a way around. The right one is paid back. The handler says which it was: its
// status need not.
func limit(l *ratelimit.Limiter, key middleware.KeyFunc) middleware.Middleware {
	return middleware.RateLimit(l, key, middleware.RateLimitConfig{
		RefundIf: func(o middleware.Outcome) bool { return o.Said == "signed in" },
		Headers:  middleware.NoHeaders,
	})
}

// deviceKey signs device cookies. Yours comes from the configuration, the same in all
// processes, so that devices stay known.
var deviceKey = []byte(rand.Text() + rand.Text())

// newDevice returns the cookie of a browser in which user has signed in: a random name,
// signed for this user alone (OWASP, "Device cookies").
func newDevice(user string) *http.Cookie {
	id := rand.Text()
	return &http.Cookie{Name: "__Host-device", Value: id + "." + sign(id, user), Path: "/", MaxAge: 180 * 24 * 3600,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
}

// deviceOf returns the device's name if r has a cookie for user, or "".
func deviceOf(r *http.Request, user string) string {
	c, err := r.Cookie("__Host-device")
	if err != nil {
		return ""
	}
	id, sum, _ := strings.Cut(c.Value, ".")
	if !hmac.Equal([]byte(sum), []byte(sign(id, user))) {
		return ""
	}
	return id
}

func sign(id, user string) string {
	mac := hmac.New(sha256.New, deviceKey)
	fmt.Fprintf(mac, "device %q %q", id, user)
	return hex.EncodeToString(mac.Sum(nil))
}

// user is the account a request is about; ADA and ada are one.
func user(r *http.Request) string {
	return strings.ToLower(strings.TrimSpace(r.PostFormValue("user")))
}
