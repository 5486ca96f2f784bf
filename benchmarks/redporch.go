package main

import (
	"context"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/ratelimit"
)

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
