package main

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/dtm-labs/rockscache"
	"github.com/go-redis/cache/v9"
	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
)

// profile is the value that all caches hold, in Redis as about 90 bytes.
type profile struct {
	ID    int64  `json:"id"`
	Name  string `json:"name"`
	Email string `json:"email"`
	Plan  string `json:"plan"`
	Since int    `json:"since"`
}

func profileOf(i int) profile {
	return profile{ID: int64(i), Name: userName, Email: "ada@porch.example", Plan: "analytical", Since: 1815}
}

var errWrongProfile = errors.New("not the profile of that key")

// cacheTTL outlives every run.
const cacheTTL = time.Hour

var cacheRedis = op{
	name:  "cache-redis",
	title: "cache: hit in Redis, decoded",
	subjects: []subject{
		{"redporch", cached(redporchCache(false), false)},
		{"go-redis-cache", cached(goRedisCache(nil), false)},
		{"rockscache", cached(rocks, false)},
		{"raw-direct", rawDirect(getCommand)},
		{"raw-autopipeline", rawAutopipeline(getCommand)},
		{"raw-rueidis", rawRueidisGet},
	},
}

var cacheLocal = op{
	name:  "cache-local",
	title: "cache: hit in process",
	subjects: []subject{
		{"redporch", cached(redporchCache(true), true)},
		{"go-redis-cache", cached(goRedisCache(func() cache.LocalCache { return cache.NewTinyLFU(2*population, time.Minute) }), true)},
		{"rueidisaside", cached(aside, true)},
		{"go-redis-csc", cached(tracking, true)},
		{"otter", cached(otterAlone, true)},
	},
}

var cacheStampede = op{
	name:  "cache-stampede",
	title: "cache: a cold key that all callers want, loaded in 2 ms",
	full:  true,
	subjects: []subject{
		{"redporch", stampede(redporchCache(false))},
		{"go-redis-cache", stampede(goRedisCache(nil))},
		{"rockscache", stampede(rocks)},
		{"rueidisaside", stampede(aside)},
	},
}

// loader is the source behind a cache.
type loader func(ctx context.Context, i int) (profile, error)

// get returns the cached profile i.
type get func(ctx context.Context, i int) (*profile, error)

type cacheMaker func(h *harness, load loader) (get, error)

// cached is the subject of hits: everything is loaded once before.
func cached(make cacheMaker, twice bool) func(*harness) (body, error) {
	return func(h *harness) (body, error) {
		ctx := context.Background()
		var warm atomic.Bool
		get, err := make(h, func(_ context.Context, i int) (profile, error) {
			if warm.Load() {
				return profile{}, errors.New("loaded, though it was cached")
			}
			return profileOf(i), nil
		})
		if err != nil {
			return body{}, err
		}
		for range 2 { // the second time fills the local level of those that fill it by reading
			for i := range population {
				if _, err := get(ctx, i); err != nil {
					return body{}, err
				}
			}
			if !twice {
				break
			}
		}
		warm.Store(true)
		return body{func(c *caller) error {
			i := c.pick(population)
			p, err := get(ctx, i)
			if err == nil && (p.ID != int64(i) || p.Since != 1815) {
				err = errWrongProfile
			}
			return err
		}}, nil
	}
}

// stampede is the subject of misses: callers walk over the same cold keys, so
// that those in step want the same one.
func stampede(make cacheMaker) func(*harness) (body, error) {
	return func(h *harness) (body, error) {
		ctx := context.Background()
		get, err := make(h, func(_ context.Context, i int) (profile, error) {
			time.Sleep(2 * time.Millisecond)
			return profileOf(i), nil
		})
		return body{func(c *caller) error {
			i := population + c.n
			p, err := get(ctx, i)
			if err == nil && p.ID != int64(i) {
				err = errWrongProfile
			}
			return err
		}}, err
	}
}

// goRedisCache is the advanced use of the library's README.
func goRedisCache(local func() cache.LocalCache) cacheMaker {
	return func(h *harness, load loader) (get, error) {
		o := &cache.Options{Redis: h.goRedis()}
		prefix := "go-redis-cache:"
		if local != nil {
			o.LocalCache = local()
			prefix += "local:"
		}
		store := cache.New(o)
		return func(ctx context.Context, i int) (*profile, error) {
			p := new(profile)
			err := store.Once(&cache.Item{
				Ctx: ctx, Key: prefix + strconv.Itoa(i), Value: p, TTL: cacheTTL,
				Do: func(*cache.Item) (any, error) { return load(ctx, i) },
			})
			return p, err
		}, nil
	}
}

// rocks is the library's default mode; it stores strings, which applications
// encode.
func rocks(h *harness, load loader) (get, error) {
	rc := rockscache.NewClient(h.goRedis(), rockscache.NewDefaultOptions())
	return func(ctx context.Context, i int) (*profile, error) {
		s, err := rc.Fetch2(ctx, "rockscache:"+strconv.Itoa(i), cacheTTL, func() (string, error) {
			p, err := load(ctx, i)
			if err != nil {
				return "", err
			}
			b, err := json.Marshal(p)
			return string(b), err
		})
		if err != nil {
			return nil, err
		}
		p := new(profile)
		return p, json.Unmarshal([]byte(s), p)
	}, nil
}

// aside is the typed client of the library's README.
func aside(h *harness, load loader) (get, error) {
	client, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: h.rueidisOption()})
	if err != nil {
		return nil, err
	}
	h.later(client.Close)
	typed := rueidisaside.NewTypedCacheAsideClient(client,
		func(p *profile) (string, error) {
			b, err := json.Marshal(p)
			return string(b), err
		},
		func(s string) (*profile, error) {
			p := new(profile)
			return p, json.Unmarshal([]byte(s), p)
		})
	return func(ctx context.Context, i int) (*profile, error) {
		return typed.Get(ctx, cacheTTL, "rueidisaside:"+strconv.Itoa(i), func(ctx context.Context, _ string) (*profile, error) {
			p, err := load(ctx, i)
			return &p, err
		})
	}, nil
}

// tracking is go-redis' own client-side cache. It caches replies, so a hit is
// decoded each time.
func tracking(h *harness, load loader) (get, error) {
	rdb := h.goRedis(func(o *redis.Options) {
		o.Protocol = 3
		o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{MaxEntries: 10_000}
	})
	return func(ctx context.Context, i int) (*profile, error) {
		key := "go-redis-csc:" + strconv.Itoa(i)
		b, err := rdb.Get(ctx, key).Bytes()
		p := new(profile)
		if err == redis.Nil {
			if *p, err = load(ctx, i); err != nil {
				return nil, err
			}
			if b, err = json.Marshal(p); err != nil {
				return nil, err
			}
			return p, rdb.Set(ctx, key, b, cacheTTL).Err()
		}
		if err != nil {
			return nil, err
		}
		return p, json.Unmarshal(b, p)
	}, nil
}

// otterAlone is the limit of any local level: a cache without a Redis.
func otterAlone(_ *harness, load loader) (get, error) {
	store, err := otter.New(&otter.Options[int, *profile]{MaximumSize: 10_000})
	if err != nil {
		return nil, err
	}
	loading := otter.LoaderFunc[int, *profile](func(ctx context.Context, i int) (*profile, error) {
		p, err := load(ctx, i)
		return &p, err
	})
	return func(ctx context.Context, i int) (*profile, error) {
		return store.Get(ctx, i, loading)
	}, nil
}

// shared makes a library use a client that exists.
func shared(client rueidis.Client) func(rueidis.ClientOption) (rueidis.Client, error) {
	return func(rueidis.ClientOption) (rueidis.Client, error) { return client, nil }
}
