package ratelimit_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// wrapped is a client of somebody's own around another one.
type wrapped struct{ redis.UniversalClient }

// TestSlotsUnknown asks a server that keeps slots apart through clients that don't show it:
// a plain client of a node that has all slots, as serverless Redis offers, and a
// ClusterClient in a type of somebody's own. No call fails, none is charged twice, and bans hold.
func TestSlotsUnknown(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		addr := rdb.(*redis.ClusterClient).Options().Addrs[0]
		const callers, calls = 32, 8
		run := 0
		for name, policies := range map[string][]ratelimit.Policy{
			"FixedWindow": {ratelimit.FixedWindow("f", 100, time.Hour)},
			"SlidingLog":  {ratelimit.SlidingLog("l", 100, time.Hour)},
			"TokenBucket": {ratelimit.TokenBucket("b", 100, 100*time.Hour, 100)},
			"several":     {ratelimit.FixedWindow("f2", 100, time.Hour), ratelimit.Concurrency("n2", 100, time.Hour)},
		} {
			for client, makes := range map[string]func() redis.UniversalClient{
				"plain": func() redis.UniversalClient { return redis.NewClient(&redis.Options{Addr: addr}) },
				"wrapped": func() redis.UniversalClient {
					return wrapped{redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})}
				},
			} {
				t.Run(client+" "+name, func(t *testing.T) {
					run++
					rdb := makes()
					t.Cleanup(func() { _ = rdb.Close() })
					l := newLimiter(t, rdb, ratelimit.Config{Prefix: fmt.Sprintf("p%d:", run)}, policies...)
					ban := func() {
						if err := l.Ban(t.Context(), "banned", time.Hour); err != nil {
							t.Fatalf("Ban = %v", err)
						}
						if r, err := l.Allow(t.Context(), "banned"); err != nil || !r.Banned {
							t.Fatalf("Allow of a banned key = %+v, %v", r, err)
						}
					}
					if name == "TokenBucket" { // else the others find out first
						ban()
					}
					var failed atomic.Int64
					var first atomic.Value
					var wg sync.WaitGroup
					for i := range callers {
						wg.Go(func() {
							for range calls {
								r, err := l.Allow(t.Context(), fmt.Sprint("subject", i))
								if err != nil || r.Err != nil || !r.Allowed {
									failed.Add(1)
									first.CompareAndSwap(nil, fmt.Sprintf("%+v, %v", r, err))
								}
							}
						})
					}
					wg.Wait()
					if n := failed.Load(); n > 0 {
						t.Fatalf("%d of %d calls failed; want none; Allow = %v", n, callers*calls, first.Load())
					}
					ban()
					for i := range callers {
						r, err := l.Peek(t.Context(), fmt.Sprint("subject", i))
						if err != nil || r.Remaining != 100-calls {
							t.Fatalf("Peek = %d remaining, %v; want %d", r.Remaining, err, 100-calls)
						}
					}
				})
			}
		}
	})
}
