package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/httprate"
	httprateredis "github.com/go-chi/httprate-redis"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis/rueidislimiter"
	"github.com/throttled/throttled/v2"
	throttledstore "github.com/throttled/throttled/v2/store/goredisstore.v9"
	"github.com/ulule/limiter/v3"
	ululestore "github.com/ulule/limiter/v3/drivers/store/redis"
)

// quota is a limit that all subjects get alike: so many a minute, with as large
// a burst where there is one.
type quota int

const (
	// plenty is never used up: a million a second.
	plenty quota = 60_000_000
	// scarce is used up by the first calls and stays so: a token comes back
	// after 15 s where tokens come back at all.
	scarce quota = 4
)

var limitKeys = op{
	name:     "limit-keys",
	title:    "limiter: one of 1,024 keys, allowed",
	subjects: append(limiters(population), rawLimits(population)...),
}

var limitHot = op{
	name:     "limit-hot",
	title:    "limiter: one hot key, allowed",
	subjects: append(limiters(1), rawLimits(1)...),
}

var limitDenied = op{
	name:     "limit-denied",
	title:    "limiter: one key, denied again",
	subjects: deniers(),
}

// take asks for one call and says whether it may go on.
type take func(ctx context.Context, c *caller, key string) (allowed bool, err error)

// limiterMakers make each library's limiter for a quota.
var limiterMakers = []struct {
	name string
	make func(h *harness, q quota) (take, error)
}{
	{"redporch", redporchLimiter},
	{"redis_rate", redisRate},
	{"ulule", ulule},
	{"throttled", throttledGCRA},
	{"httprate-redis", httprateRedis},
	{"rueidislimiter", rueidisLimiter},
}

var limiterNames = func() (names [population]string) {
	for i := range names {
		names[i] = "client-" + strconv.Itoa(i)
	}
	return names
}()

var (
	errDenied  = errors.New("denied, though there is plenty left")
	errAllowed = errors.New("allowed, though nothing is left")
)

// limiters are the subjects of calls on keys that are never used up.
func limiters(keys int) (subjects []subject) {
	for _, m := range limiterMakers {
		subjects = append(subjects, subject{m.name, func(h *harness) (body, error) {
			ctx := context.Background()
			take, err := m.make(h, plenty)
			return body{func(c *caller) error {
				ok, err := take(ctx, c, limiterNames[c.pick(keys)])
				if err == nil && !ok {
					err = errDenied
				}
				return err
			}}, err
		}})
	}
	return subjects
}

// deniers are the subjects of calls on a key that is used up.
func deniers() (subjects []subject) {
	for _, m := range limiterMakers {
		subjects = append(subjects, subject{m.name, func(h *harness) (body, error) {
			ctx := context.Background()
			take, err := m.make(h, scarce)
			if err != nil {
				return body{}, err
			}
			const key = "greedy"
			first := newCallers(1)[0]
			allowed := 0
			for range 2 * int(scarce) {
				ok, err := take(ctx, first, key)
				if err != nil {
					return body{}, err
				}
				if ok {
					allowed++
				}
			}
			if allowed != int(scarce) {
				return body{}, fmt.Errorf("allowed %d of %d", allowed, scarce)
			}
			// Tokens that come back are taken again and not held against anybody.
			var window = time.Now()
			return body{func(c *caller) error {
				ok, err := take(ctx, c, key)
				if err == nil && ok && time.Since(window) < 10*time.Second {
					err = errAllowed
				}
				return err
			}}, nil
		}})
	}
	return subjects
}

func rawLimits(keys int) []subject {
	return []subject{
		{"raw-direct", rawDirect(incrCommand(keys))},
		{"raw-autopipeline", rawAutopipeline(incrCommand(keys))},
		{"raw-rueidis", rawRueidisIncr(keys)},
	}
}

func redisRate(h *harness, q quota) (take, error) {
	l := redis_rate.NewLimiter(h.goRedis())
	limit := redis_rate.PerMinute(int(q))
	return func(ctx context.Context, _ *caller, key string) (bool, error) {
		res, err := l.Allow(ctx, key, limit)
		return err == nil && res.Allowed == 1, err
	}, nil
}

func ulule(h *harness, q quota) (take, error) {
	store, err := ululestore.NewStore(h.goRedis())
	if err != nil {
		return nil, err
	}
	l := limiter.New(store, limiter.Rate{Period: time.Minute, Limit: int64(q)})
	return func(ctx context.Context, _ *caller, key string) (bool, error) {
		res, err := l.Get(ctx, key)
		return err == nil && !res.Reached, err
	}, nil
}

func throttledGCRA(h *harness, q quota) (take, error) {
	store, err := throttledstore.NewCtx(h.goRedis(), "throttled:"+strconv.Itoa(int(q))+":")
	if err != nil {
		return nil, err
	}
	l, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerMin(int(q)), MaxBurst: int(q) - 1})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ *caller, key string) (bool, error) {
		limited, _, err := l.RateLimitCtx(ctx, key, 1)
		return err == nil && !limited, err
	}, nil
}

// httprateRedis has the client that the library makes from a Host and a Port, but
// dialled by the harness.
func httprateRedis(h *harness, q quota) (take, error) {
	const timeout = 250 * time.Millisecond
	client := h.goRedis(func(o *redis.Options) {
		o.DisableIdentity = true
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = 2*timeout, timeout, timeout
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns = 10, 1, 5
		o.MaxRetries = -1
	})
	counter, err := httprateredis.NewRedisLimitCounter(&httprateredis.Config{
		Client:       client,
		WindowLength: time.Minute,
		PrefixKey:    "httprate:" + strconv.Itoa(int(q)),
	})
	if err != nil {
		return nil, err
	}
	l := httprate.NewRateLimiter(int(q), time.Minute, httprate.WithLimitCounter(counter))
	return func(ctx context.Context, c *caller, key string) (bool, error) {
		w := c.answer()
		limited := l.OnLimit(w, anonymous, key)
		if counter.IsFallbackActivated() {
			return false, errors.New("fell back to a counter in memory")
		}
		return !limited, nil
	}, nil
}

// anonymous is a request without anything. Nobody changes it.
var anonymous, _ = http.NewRequest(http.MethodGet, "https://porch.example/", nil)

func rueidisLimiter(h *harness, q quota) (take, error) {
	client, err := h.rueidis()
	if err != nil {
		return nil, err
	}
	l, err := rueidislimiter.NewRateLimiter(rueidislimiter.RateLimiterOption{
		ClientBuilder: shared(client),
		KeyPrefix:     "rueidislimiter:" + strconv.Itoa(int(q)),
		Limit:         int(q),
		Window:        time.Minute,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ *caller, key string) (bool, error) {
		res, err := l.Allow(ctx, key)
		return res.Allowed, err
	}, nil
}
