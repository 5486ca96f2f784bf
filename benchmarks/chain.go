package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/go-redis/cache/v9"
	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// chain is what a page costs that knows its visitor: a limiter by address, the
// session, and the visitor's profile, which is cached in process and in Redis.
// Nothing is changed, so nothing is saved.
//
// The peers have no such chain; an application puts one together. "stack" is of
// the quickest peers in this program, "stack-go-redis" of those that share
// go-redis with the application.
var chain = op{
	name:  "chain",
	title: "chain: limiter, session, cached profile",
	subjects: []subject{
		{"redporch", redporchChain},
		{"stack", stack(rueidisLimiter, aside)},
		{"stack-go-redis", stack(redisRate, goRedisCache(func() cache.LocalCache { return cache.NewTinyLFU(2*population, time.Minute) }))},
	},
}

func loadProfile(_ context.Context, user int) (profile, error) { return profileOf(user), nil }

// warm reads all profiles twice, since some caches fill their local level with
// what they read from Redis.
func warm[T any](get func(context.Context, int) (T, error)) error {
	for i := range 2 * population {
		if _, err := get(context.Background(), userOf(i%population)); err != nil {
			return err
		}
	}
	return nil
}

func page(w http.ResponseWriter, p *profile) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello %s <%s>, %s since %d\n", p.Name, p.Email, p.Plan, p.Since)
}

// redporchChain is the chain of the quick start, on one client, with the session asked for
// while the limiter decides, as docs/middleware.md advises for pages that always read it.
func redporchChain(h *harness) (body, error) {
	rdb := h.goRedis()
	store, err := redporchStore(rdb)
	if err != nil {
		return body{}, err
	}
	limiter, err := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.TokenBucket("api", int64(plenty), time.Minute, int64(plenty)))
	if err != nil {
		return body{}, err
	}
	users, err := cacheaside.New(rdb, "user", loadProfile, cacheaside.Config{TTL: cacheTTL})
	if err != nil {
		return body{}, err
	}
	h.later(func() { users.Close() })
	if err := warm(users.Get); err != nil {
		return body{}, err
	}
	v, err := seed(store)
	handler := middleware.Chain(
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(store, cookieName, middleware.SessionsConfig{Eager: true}),
	)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, ok := middleware.Session(r).Values["user"].(int)
		if !ok {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		p, err := users.Get(r.Context(), user)
		if err != nil {
			http.Error(w, "profile", http.StatusInternalServerError)
			return
		}
		page(w, &p)
	}))
	return body{handled(v, handler)}, err
}

// stack is the same by hand, with redisstore for the sessions.
func stack(limit func(*harness, quota) (take, error), cache cacheMaker) func(h *harness) (body, error) {
	return func(h *harness) (body, error) {
		store, err := redisstoreSessions(h)
		if err != nil {
			return body{}, err
		}
		take, err := limit(h, plenty)
		if err != nil {
			return body{}, err
		}
		get, err := cache(h, loadProfile)
		if err != nil {
			return body{}, err
		}
		if err := warm(get); err != nil {
			return body{}, err
		}
		v, err := seed(store)
		handler := limited(take, withUser(store, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, err := get(r.Context(), r.Context().Value(userKey{}).(int))
			if err != nil {
				http.Error(w, "profile", http.StatusInternalServerError)
				return
			}
			page(w, p)
		})))
		return body{handled(v, handler)}, err
	}
}

func limited(take take, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, "address", http.StatusInternalServerError)
			return
		}
		ok, err := take(r.Context(), nil, host)
		if err != nil {
			http.Error(w, "limiter", http.StatusInternalServerError)
			return
		}
		w.Header().Set("X-RateLimit-Limit", strconv.Itoa(int(plenty)))
		if !ok {
			w.Header().Set("Retry-After", "60")
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r)
	})
}

type userKey struct{}

func withUser(store sessions.Store, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, cookieName)
		if err != nil {
			http.Error(w, "session", http.StatusInternalServerError)
			return
		}
		user, ok := s.Values["user"].(int)
		if !ok {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
	})
}
