package redistest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// A cluster with replicas is what its fields say, and Count knows its clients. That it
// fails over takes seconds, and is tested in module faults.
func TestStartCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, true, redistest.Proxied())
	if len(c.Masters) != 3 || len(c.Replicas) != 3 || len(c.Addrs()) != 6 {
		t.Fatalf("cluster of %d masters, %d replicas, %d addresses; want 3, 3, 6", len(c.Masters), len(c.Replicas), len(c.Addrs()))
	}
	rdb := c.Client()
	got := redistest.Count(t, rdb, func() {
		for _, key := range []string{"a", "b", "c"} { // slots 15495, 3300, 7365: one on each
			if err := rdb.Set(ctx, key, 1, 0).Err(); err != nil {
				t.Errorf("SET %s: %v", key, err)
			}
		}
	})
	if got.By["set"] != 3 || got.RoundTrips != 3 {
		t.Errorf("Count = %+v; want 3 SETs, 3 round trips", got)
	}
	owner, err := c.Owner(ctx, 3300)
	if err != nil || owner != c.Masters[0] {
		t.Fatalf("Owner(3300) = %v, %v; want the first master", owner, err)
	}

	// Clients go through the proxies. A lost reply on a cluster executes a command again
	// even without retries, since redirects count as attempts.
	c.Masters[0].Proxy.Set(redistest.Fault{Match: "incr", Times: 1, CutAfter: true})
	for _, key := range []string{"b", "a"} {
		rdb.Incr(ctx, key)
	}
	if b, a := rdb.Get(ctx, "b").Val(), rdb.Get(ctx, "a").Val(); b != "3" || a != "2" {
		t.Errorf("counters = %s with a lost reply, %s without; want 3, 2", b, a)
	}
	if got := c.Masters[0].Proxy.Hits(); got != 1 {
		t.Errorf("Hits = %d; want 1", got)
	}
}

// Keys and slots move between the masters of one cluster.
func TestClusterMoves(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 2, false)
	for _, test := range []struct {
		name string
		f    func(t *testing.T, c *redistest.Cluster)
	}{{"a slot", movesASlot}, {"slots side by side", movesSlotsSideBySide}, {"keys both ways", movesKeysBothWays}} {
		t.Run(test.name, func(t *testing.T) { test.f(t, c) })
	}
}

func movesASlot(t *testing.T, c *redistest.Cluster) {
	rdb := c.Client()
	rdb.Set(ctx, "{b}here", "v", 0)
	asked := false
	err := c.MigrateSlot(ctx, 3300, c.Masters[1], func() {
		err := c.Masters[0].Client().Get(ctx, "{b}absent").Err()
		asked = redis.HasErrorPrefix(err, "ASK")
		if err := rdb.Set(ctx, "{b}new", "v", 0).Err(); err != nil {
			t.Errorf("SET while the slot moves: %v", err)
		}
	})
	if err != nil || !asked {
		t.Fatalf("MigrateSlot = %v, met ASK: %v; want nil, true", err, asked)
	}
	if owner, err := c.Owner(ctx, 3300); owner != c.Masters[1] || err != nil {
		t.Errorf("Owner after MigrateSlot = %v, %v; want the second master", owner, err)
	}
	for _, key := range []string{"{b}here", "{b}new"} {
		if got := rdb.Get(ctx, key).Val(); got != "v" {
			t.Errorf("GET %s after MigrateSlot = %q; want v", key, got)
		}
	}
}

// Masters whose epochs collide take slots back, and the other one deletes the keys.
func movesSlotsSideBySide(t *testing.T, c *redistest.Cluster) {
	rdb := c.Client()
	var moves sync.WaitGroup
	for i := range 6 {
		key := fmt.Sprintf("{%d}", i)
		slot := int(rdb.ClusterKeySlot(ctx, key).Val())
		moves.Go(func() {
			for n := range 4 {
				key := fmt.Sprintf("%s%d", key, n)
				to := c.Masters[0]
				if from, err := c.Owner(ctx, slot); err != nil || from == to {
					to = c.Masters[1]
				}
				err := c.MigrateSlot(ctx, slot, to, func() {
					if err := rdb.Set(ctx, key, "v", 0).Err(); err != nil {
						t.Errorf("SET while the slot moves: %v", err)
					}
				})
				if err != nil {
					t.Errorf("MigrateSlot = %v", err)
				}
				if got := rdb.Get(ctx, key).Val(); got != "v" {
					t.Errorf("GET %s after MigrateSlot = %q; want v", key, got)
				}
			}
		})
	}
	moves.Wait()
}

// Keys may be moved in both directions at the same time.
func movesKeysBothWays(t *testing.T, c *redistest.Cluster) {
	rdb := c.Client()
	const n = 200
	var moves sync.WaitGroup
	for i, tag := range []string{"{c}", "{a}"} { // slot 7365 is the first master's, 15495 the second's
		from, to := c.Masters[i], c.Masters[1-i]
		slot := int(rdb.ClusterKeySlot(ctx, tag).Val())
		for k := range n {
			if err := rdb.Set(ctx, fmt.Sprint(tag, k), "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.Client().Do(ctx, "cluster", "setslot", slot, "importing", from.Client().ClusterMyID(ctx).Val()).Err(); err != nil {
			t.Fatal(err)
		}
		moves.Go(func() {
			for k := range n {
				if err := c.MigrateKeys(ctx, from, to, fmt.Sprint(tag, k)); err != nil {
					t.Errorf("MigrateKeys %s%d = %v", tag, k, err)
					return
				}
			}
		})
	}
	moves.Wait()
}

func TestStartSentinel(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, 500*time.Millisecond)
	rdb := s.Client()
	if err := rdb.Set(ctx, "k", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Master.AwaitReplica()
	if got := s.Replica.Client().Get(ctx, "k").Val(); got != "1" {
		t.Errorf("the replica has %q; want what was written through the Sentinels, 1", got)
	}
}
