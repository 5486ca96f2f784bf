package ratelimit_test

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// plenty admits whatever a benchmark asks for.
func plenty() []ratelimit.Policy {
	const lots = 1_000_000_000
	return []ratelimit.Policy{
		ratelimit.FixedWindow("FixedWindow", lots, time.Hour),
		ratelimit.SlidingWindow("SlidingWindow", lots, time.Hour),
		ratelimit.TokenBucket("TokenBucket", lots, time.Hour, lots),
		ratelimit.SlidingLog("SlidingLog", lots, time.Second),
	}
}

func benchClient(b *testing.B) *redis.Client {
	return redistest.Start(b).Client(func(o *redis.Options) { o.ContextTimeoutEnabled = true })
}

// spread runs f b.N times on a number of goroutines.
func spread(b *testing.B, callers int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				f(int(i))
			}
		})
	}
	wg.Wait()
}

func BenchmarkAllow(b *testing.B) {
	rdb := benchClient(b)
	ctx := context.Background()
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = "user-" + strconv.Itoa(i)
	}
	for _, policy := range plenty() {
		l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, policy)
		if err != nil {
			b.Fatal(err)
		}
		for _, callers := range []int{1, 64, 256} {
			for _, n := range []int{1, 1024} {
				b.Run(policy.Name()+"/callers="+strconv.Itoa(callers)+"/keys="+strconv.Itoa(n), func(b *testing.B) {
					spread(b, callers, func(i int) {
						if r, err := l.Allow(ctx, keys[i%n]); err != nil || !r.Allowed || r.Err != nil {
							b.Errorf("Allow = %+v, %v", r, err)
						}
					})
				})
			}
		}
	}
}

func BenchmarkDeniedAgain(b *testing.B) {
	rdb := benchClient(b)
	ctx := context.Background()
	l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, MaxStale: -1}, ratelimit.SlidingLog("api", 1, time.Hour))
	if err != nil {
		b.Fatal(err)
	}
	for range 2 {
		if _, err := l.Allow(ctx, "user"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if r, err := l.Allow(ctx, "user"); err != nil || r.Allowed || r.Source != ratelimit.SourceDenied {
			b.Fatalf("Allow = %+v, %v", r, err)
		}
	}
}
