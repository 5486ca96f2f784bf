package faults_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

var incr = roundtrip.NewScript(`return redis.call('INCR', KEYS[1])`)

// On a cluster each call waits for the replicas of its own master, also while its
// slot moves.
func TestReplicatedOnCluster(t *testing.T) {
	t.Parallel()
	cl := redistest.StartCluster(t, 3, true)
	for _, bounded := range []bool{true, false} {
		t.Run(fmt.Sprint("bounded ", bounded), func(t *testing.T) {
			rdb := cl.Client(func(o *redis.ClusterOptions) { o.ContextTimeoutEnabled = bounded })
			c, err := roundtrip.New(rdb, roundtrip.Config{Timeout: 6 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			keys := []string{"a", "b", "c", "d", "e", "f"}
			var done atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for i, key := range keys {
				all.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						// Some keys are new, which a moving slot sends elsewhere.
						cmd := incr.Cmd(t.Context(), []string{fmt.Sprintf("{%s}%v-%d", key, bounded, n%50)})
						if err := c.DoReplicated(t.Context(), "incr", 1, cmd); err != nil {
							t.Errorf("caller %d: %v", i, err)
						}
						done.Add(1)
					}
				})
			}
			for _, key := range keys {
				slot := int(roundtrip.Slot(key))
				from, err := cl.Owner(ctx, slot)
				if err != nil {
					t.Fatal(err)
				}
				to := cl.Masters[0]
				if to == from {
					to = cl.Masters[1]
				}
				if err := cl.MigrateSlot(ctx, slot, to, func() { time.Sleep(50 * time.Millisecond) }); err != nil {
					t.Error(err)
				}
			}
			cancel()
			all.Wait()
			var sum int64
			_ = rdb.ForEachMaster(t.Context(), func(ctx context.Context, m *redis.Client) error {
				for _, key := range m.Keys(ctx, fmt.Sprintf("*%v-*", bounded)).Val() {
					n, _ := rdb.Get(ctx, key).Int64()
					atomic.AddInt64(&sum, n)
				}
				return nil
			})
			if sum != done.Load() || sum < 100 {
				t.Errorf("counted %d; want %d, and some hundreds", sum, done.Load())
			}
		})
	}
}

// What the harness promises: a cluster and a Sentinel setup whose master dies can be
// written to again, by clients of nobody's but go-redis.
func TestHarnessFailsOver(t *testing.T) {
	t.Parallel()
	cl := redistest.StartCluster(t, 3, true)
	rdb := cl.Client(func(o *redis.ClusterOptions) { o.MaxRedirects = 1 })
	sentinel := redistest.StartSentinel(t, 500*time.Millisecond)
	behind := sentinel.Client()
	ctx := t.Context()
	// Slot 3300 is the first master's.
	if err := errors.Join(rdb.Set(ctx, "b", 1, 0).Err(), behind.Set(ctx, "k", 1, 0).Err()); err != nil {
		t.Fatal(err)
	}
	cl.Masters[0].Kill()
	sentinel.Master.Kill()
	redistest.Await(t, "a write to the cluster", func() error { return rdb.Set(ctx, "b", 2, 0).Err() })
	redistest.Await(t, "a write behind the Sentinels", func() error { return behind.Set(ctx, "k", 2, 0).Err() })
	isMaster(t, cl.Replicas[0], time.Now())
	isMaster(t, sentinel.Replica, time.Now())
}
