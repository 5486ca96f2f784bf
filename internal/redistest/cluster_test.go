package redistest_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// writeWithin writes until it succeeds again.
func writeWithin(t *testing.T, rdb redis.UniversalClient, key string, limit time.Duration) {
	t.Helper()
	start := time.Now()
	for {
		err := rdb.Set(ctx, key, 1, 0).Err()
		if err == nil {
			return
		}
		if time.Since(start) > limit {
			t.Fatalf("no write succeeded within %v: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestClusterFailsOver(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, true)
	if len(c.Masters) != 3 || len(c.Replicas) != 3 || len(c.Addrs()) != 6 {
		t.Fatalf("cluster of %d masters, %d replicas, %d addresses; want 3, 3, 6", len(c.Masters), len(c.Replicas), len(c.Addrs()))
	}
	rdb := c.Client(func(o *redis.ClusterOptions) { o.MaxRedirects = 1 })
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
	owner.Kill()
	writeWithin(t, rdb, "b", 20*time.Second)
}

func TestClusterMovesASlot(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 2, false)
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
func TestClusterMovesSlotsSideBySide(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 2, false)
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
func TestClusterMovesKeysBothWays(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 2, false)
	rdb := c.Client()
	const n = 200
	var moves sync.WaitGroup
	for i, tag := range []string{"{b}", "{a}"} { // slot 3300 is the first master's, 15495 the second's
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

// A lost reply on a cluster executes a command again even without retries, since
// redirects count as attempts.
func TestProxiedClusterLosesReply(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 2, false, redistest.Proxied())
	rdb := c.Client(func(o *redis.ClusterOptions) { o.ReadTimeout = 100 * time.Millisecond })
	if err := rdb.Set(ctx, "b", 0, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Set(ctx, "a", 0, 0).Err(); err != nil {
		t.Fatal(err)
	}
	c.Masters[0].Proxy.Set(redistest.Fault{Match: "incr", Times: 1, LoseReply: true})
	for _, key := range []string{"b", "a"} { // slot 3300 is the first master's, 15495 the second's
		rdb.Incr(ctx, key)
	}
	if b, a := rdb.Get(ctx, "b").Val(), rdb.Get(ctx, "a").Val(); b != "2" || a != "1" {
		t.Errorf("counters = %s with a lost reply, %s without; want 2, 1", b, a)
	}
	if got := c.Masters[0].Proxy.Hits(); got != 1 {
		t.Errorf("Hits = %d; want 1", got)
	}
}

func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, 500*time.Millisecond)
	rdb := s.Client()
	if err := rdb.Set(ctx, "k", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Master.Kill()
	writeWithin(t, rdb, "k", 20*time.Second)
	if got := s.Replica.Client().Info(ctx, "replication").Val(); !strings.Contains(got, "role:master") {
		t.Errorf("the replica after failover: %s; want role:master", got)
	}
}
