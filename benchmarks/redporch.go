package main

import (
	"context"
	"net/http"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// redporchSessions is the quick start's store, with signed cookies.
func redporchSessions(h *harness) (sessions.Store, error) {
	store, err := redporchStore(h.goRedis())
	if err != nil {
		return nil, err // a nil *session.Store is no nil sessions.Store
	}
	return store, nil
}

func redporchStore(rdb redis.UniversalClient) (*session.Store, error) {
	return session.New(rdb, session.Config{Keys: [][]byte{[]byte("benchmarks-secret-key-32-bytes..")}})
}

// redporchHandler is a handler behind Sessions, which saves what it changed.
func redporchHandler(h *harness) (body, error) {
	store, err := redporchStore(h.goRedis())
	if err != nil {
		return body{}, err
	}
	v, err := seed(store)
	handler := middleware.Sessions(store, cookieName, middleware.SessionsConfig{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		greet(w, middleware.Session(r).Values, func() error { return nil })
	}))
	return body{handled(v, handler)}, err
}

// redporchLimiter is a token bucket, as redis_rate and throttled are.
func redporchLimiter(h *harness, q quota) (take, error) {
	l, err := ratelimit.New(h.goRedis(), ratelimit.Config{}, ratelimit.TokenBucket("api", int64(q), time.Minute, int64(q)))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ *caller, key string) (bool, error) {
		res, err := l.Allow(ctx, key)
		if err == nil {
			err = res.Err
		}
		return res.Allowed, err
	}, nil
}

// redporchCache is the default configuration, with or without its first level.
func redporchCache(local bool) cacheMaker {
	return func(h *harness, load loader) (get, error) {
		cfg := cacheaside.Config{TTL: cacheTTL}
		if !local {
			cfg.L1Entries = -1
		}
		c, err := cacheaside.New(h.goRedis(), "profile", func(ctx context.Context, i int) (*profile, error) {
			p, err := load(ctx, i)
			return &p, err
		}, cfg)
		if err != nil {
			return nil, err
		}
		h.later(func() { c.Close() })
		return c.Get, nil
	}
}
