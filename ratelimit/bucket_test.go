package ratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// A bucket's writes mostly leave its TTL as it is. Whoever wrote before, under whatever
// limits and together with whatever other policies, the key outlives what it holds for
// the limiter that wrote last.
func TestBucketKeysOutliveWhatTheyHold(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var limiters []*ratelimit.Limiter
		cfg := ratelimit.Config{NoDenialCache: true, PlainKeys: true}
		for _, n := range []int64{1, 10, 1000, 100_000} {
			for _, window := range []time.Duration{time.Second, time.Minute, 24 * time.Hour} {
				bucket := ratelimit.TokenBucket("b", n, window, 50)
				limiters = append(limiters,
					newLimiter(t, rdb, cfg, bucket),
					newLimiter(t, rdb, cfg, bucket, ratelimit.FixedWindow("w", 1e6, time.Hour)))
			}
		}
		admitted := 0
		for i := range 1000 {
			key := fmt.Sprint("k", i%8)
			l := limiters[rand.IntN(len(limiters))]
			began := time.Now()
			r, err := l.AllowN(t.Context(), key, 1+rand.Int64N(3))
			if err != nil {
				t.Fatal(err)
			}
			if !r.Allowed {
				if i%3 == 0 {
					if err := l.Refund(t.Context(), key, 1); err != nil {
						t.Fatal(err)
					}
				}
				continue
			}
			admitted++
			ttl, err := rdb.PTTL(t.Context(), "redporch:limit:{"+key+"}:b:b").Result()
			if err != nil {
				t.Fatal(err)
			}
			if must := r.Policies[0].ResetAfter - time.Since(began) - 5*time.Millisecond; ttl < must {
				t.Fatalf("call %d under %v: a TTL of %v; want %v or more", i, l.Policies(), ttl, must)
			}
		}
		if admitted < 100 {
			t.Errorf("%d of 1,000 calls were admitted; want enough to tell", admitted)
		}
	})
}

// On a server that can read numbers out of strings, that is.
func TestBucketsLeaveTheTTL(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, ratelimit.TokenBucket("b", 100, time.Minute, 100))
		ends := make(map[int64]bool)
		for range 90 {
			if r, err := l.Allow(t.Context(), "k"); err != nil || !r.Allowed {
				t.Fatalf("Allow = %+v, %v; want allowed", r, err)
			}
			ttl, err := rdb.PTTL(t.Context(), "redporch:limit:{k}:b:b").Result()
			if err != nil {
				t.Fatal(err)
			}
			ends[time.Now().Add(ttl).UnixMilli()/500] = true
		}
		if len(ends) > 45 {
			t.Errorf("90 calls set a TTL about %d times; want it left alone mostly", len(ends))
		}
	})
}
