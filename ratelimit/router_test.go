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

// TestRoutingProxy: behind a proxy that sends a script to the server of its first key no
// limit is exceeded if Config.RoutingProxy says so. Without, the same calls exceed it.
func TestRoutingProxy(t *testing.T) {
	t.Parallel()
	o := redistest.Router(t, redistest.Start(t), redistest.Start(t))
	for _, p := range []ratelimit.Policy{
		ratelimit.FixedWindow("w", 10, time.Hour), ratelimit.SlidingLog("l", 10, time.Hour), ratelimit.TokenBucket("b", 10, 100*time.Hour, 10),
	} {
		for _, said := range []bool{true, false} {
			options := *o
			rdb := redis.NewClient(&options)
			t.Cleanup(func() { rdb.Close() })
			l, err := ratelimit.New(rdb, ratelimit.Config{
				Prefix: fmt.Sprintf("%s%t:", p.Name(), said), RoutingProxy: said, Timeout: 10 * time.Second, NoDenialCache: true,
			}, p)
			if err != nil {
				t.Fatal(err)
			}
			const keys, callers, calls = 20, 32, 40
			var admitted [keys]atomic.Int64
			var wg sync.WaitGroup
			for w := range callers {
				wg.Go(func() {
					for i := range calls {
						k := (w*7 + i) % keys
						r, err := l.Allow(t.Context(), fmt.Sprint("user", k))
						if err != nil || r.Err != nil {
							t.Errorf("%s: %v, %v", p.Name(), err, r.Err)
							return
						}
						if r.Allowed {
							admitted[k].Add(1)
						}
					}
				})
			}
			wg.Wait()
			over := 0
			for k := range keys {
				n := admitted[k].Load()
				if n > 10 {
					over++
				}
				if said && n != 10 {
					t.Errorf("%s: %d of user%d were admitted; want 10", p.Name(), n, k)
				}
			}
			if !said && over == 0 {
				t.Errorf("%s: no limit was exceeded without RoutingProxy, so the test proves nothing", p.Name())
			}
			if err := l.Ban(t.Context(), "user0", time.Minute); said && err != nil {
				t.Errorf("%s: Ban: %v", p.Name(), err)
			}
			if r, err := l.Peek(t.Context(), "user0"); said && (err != nil || r.Err != nil || !r.Banned) {
				t.Errorf("%s: Peek of a banned key = %+v, %v", p.Name(), r, err)
			}
		}
	}
}
