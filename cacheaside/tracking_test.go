package cacheaside_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// checkTracking has the first level follow changes that are not this package's.
func checkTracking(t *testing.T, rdb, other redis.UniversalClient, flush func()) {
	ctx := t.Context()
	src := &source{rows: map[int]string{}}
	for id := range 20 {
		src.set(id, "old")
	}
	var told recorder
	c := newCache(t, rdb, src.load, cacheaside.Config{Tracking: true, OnInvalidate: told.add},
		cacheaside.Funcs[int, user]{Tags: colours})
	warm := func() {
		t.Helper()
		for id := range 20 { // of several masters, on a cluster
			eventually(t, "value in the first level", func() bool {
				e, err := c.GetEntry(ctx, id)
				return err == nil && e.Source == cacheaside.SourceL1
			})
		}
	}
	follow := func(what, name string, ids []int, act func()) {
		t.Helper()
		warm()
		for _, id := range ids {
			src.set(id, name)
		}
		act()
		for _, id := range ids {
			eventually(t, what+" seen", func() bool { u, err := c.Get(ctx, id); return err == nil && u.Name == name })
		}
	}
	all := upTo(20)
	follow("DEL", "new", []int{1}, func() { must(t, other.Del(ctx, prefix+"1").Err()) })
	if !told.has(cacheaside.KindKeys, cacheaside.CauseServer, true, "1", "")() {
		t.Error("OnInvalidate was not told of the DEL")
	}
	follow("SET of rubbish", "newer", []int{2}, func() { must(t, other.Set(ctx, prefix+"2", "rubbish", 0).Err()) })
	follow("expiry", "newest", []int{3}, func() { must(t, other.PExpire(ctx, prefix+"3", 5*time.Millisecond).Err()) })
	follow("DEL of a tag", "tagged", []int{0, 2, 4, 18}, func() { must(t, other.Del(ctx, cacheaside.DefaultPrefix+"test#t:red").Err()) })
	follow("FLUSHALL", "flushed", all, flush)
	follow("Invalidate", "own", all, func() { must(t, c.Invalidate(ctx, all...)) })
}

func TestTracking(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		s := redistest.Start(t)
		ignore := goleak.IgnoreCurrent()
		rdb := redis.NewClient(&redis.Options{Network: s.Network(), Addr: s.Addr(), ContextTimeoutEnabled: true})
		t.Run("follows", func(t *testing.T) {
			checkTracking(t, rdb, rdb, func() { must(t, rdb.FlushAll(t.Context()).Err()) })
		})
		rdb.Close()
		if err := goleak.Find(ignore); err != nil {
			t.Error(err)
		}
	})
	// Of one master; of three in faults/.
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		checkTracking(t, rdb, rdb, func() { must(t, rdb.FlushAll(t.Context()).Err()) })
	})
}

// TestTrackingKilled: a tracking connection that ends is made again, and nothing
// of before is served.
func TestTrackingKilled(t *testing.T) {
	s := redistest.Start(t)
	rdb := s.Client()
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{Tracking: true})
	eventually(t, "first level in use", inL1(t, c))
	src.set(1, "bea")
	must(t, rdb.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
	must(t, rdb.Del(t.Context(), prefix+"1").Err())
	eventually(t, "the new value", func() bool { u, err := c.Get(t.Context(), 1); return err == nil && u.Name == "bea" })
	eventually(t, "first level in use again", inL1(t, c))
}

// TestTrackingRefused: where Redis can't track, the first level stays unused, and
// the reason is reported.
func TestTrackingRefused(t *testing.T) {
	_, rdb := redistest.Mini(t)
	src := &source{rows: map[int]string{1: "ann"}}
	said := make(chan string, 1000)
	c := newCache(t, rdb, src.load, cacheaside.Config{Tracking: true, Hooks: cacheaside.Hooks{Error: func(op string, _ error) { said <- op }}})
	for range 3 {
		mustGet(t, c, 1, "ann")
	}
	select {
	case op := <-said:
		if op != "tracking" {
			t.Errorf("reported %q; want tracking", op)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was reported")
	}
	if got := source1(t, c); got != cacheaside.SourceRedis {
		t.Errorf("value from %v; want redis", got)
	}
}
