package cacheaside_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// TestJitter: lives are shortened, never lengthened, and differ.
func TestJitter(t *testing.T) {
	_, rdb := redistest.Mini(t)
	c := newCache(t, rdb, func(_ context.Context, k int) (int, error) { return k, nil },
		cacheaside.Config{TTL: 100 * time.Second, Jitter: 0.5, L1Entries: -1})
	var least, most time.Duration = time.Hour, 0
	for k := range 50 {
		_, err := c.Get(t.Context(), k)
		must(t, err)
		ttl := rdb.PTTL(t.Context(), fmt.Sprint(prefix, k)).Val()
		least, most = min(least, ttl), max(most, ttl)
	}
	if most > 100*time.Second || least < 49*time.Second || most-least < 10*time.Second {
		t.Errorf("lives of %v to %v; want them spread between 50s and 100s", least, most)
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		g := newGate("old")
		cfg := cacheaside.Config{TTL: 30 * time.Millisecond, StaleWhileRevalidate: time.Minute, EarlyRefresh: -1, Jitter: -1}
		c := newCache(t, rdb, g.load, cfg)
		other := newCache(t, rdb, g.load, cfg)
		g.pass <- struct{}{}
		_, err := c.Get(ctx, "k")
		must(t, err)
		g.value.Store("new")
		time.Sleep(40 * time.Millisecond)

		// All get the old value at once; one load begins.
		var wg sync.WaitGroup
		for range 20 {
			for _, c := range []*cacheaside.Cache[string, string]{c, other} {
				wg.Go(func() {
					e, err := c.GetEntry(ctx, "k")
					if err != nil || e.Value != "old" || e.Source != cacheaside.SourceStale || e.TTL != 0 {
						t.Errorf("GetEntry = %+v, %v; want old, stale", e, err)
					}
				})
			}
		}
		wg.Wait()
		<-g.began // of the first load
		<-g.began
		g.pass <- struct{}{}
		eventually(t, "the new value", func() bool { v, err := c.Get(ctx, "k"); return err == nil && v == "new" })
		// Once more stale by now, perhaps; but the refresh was one.
		if n := g.loads.Load(); n > 3 {
			t.Errorf("%d loads; want 2, or 3 if the machine is slow", n)
		}
		// An invalidated value is not served stale.
		for range 10 {
			g.pass <- struct{}{}
		}
		g.value.Store("newest")
		must(t, other.Invalidate(ctx, "k"))
		if v, err := other.Get(ctx, "k"); err != nil || v != "newest" {
			t.Errorf("after Invalidate: %q, %v; want newest", v, err)
		}
	})
}

func TestStaleIfError(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		var fail atomic.Bool
		var loads atomic.Int64
		down := errors.New("database is down")
		c := newCache(t, rdb, func(context.Context, string) (string, error) {
			loads.Add(1)
			if fail.Load() {
				return "", down
			}
			return "value", nil
		}, cacheaside.Config{TTL: 20 * time.Millisecond, StaleIfError: time.Minute, EarlyRefresh: -1, ErrorBackoff: time.Minute})
		_, err := c.Get(ctx, "k")
		must(t, err)
		fail.Store(true)
		time.Sleep(25 * time.Millisecond)
		for i := range 10 {
			e, err := c.GetEntry(ctx, "k")
			if err != nil || e.Value != "value" || e.Source != cacheaside.SourceStale {
				t.Fatalf("GetEntry #%d = %+v, %v; want the stale value", i, e, err)
			}
		}
		if n := loads.Load(); n != 2 {
			t.Errorf("%d loads; want 2, the failed one followed by a pause", n)
		}
		must(t, c.Invalidate(ctx, "k"))
		if v, err := c.Get(ctx, "k"); !errors.Is(err, down) {
			t.Errorf("after Invalidate: %q, %v; want the loader's error", v, err)
		}
		// The pause holds back no caller that has nothing else.
		fail.Store(false)
		if v, err := c.Get(ctx, "k"); err != nil || v != "value" {
			t.Errorf("with the loader working: %q, %v; want value", v, err)
		}
	})
}

// TestSoftTimeout: who could be served a stale value waits for a load no longer
// than SoftTimeout, and the load goes on.
func TestSoftTimeout(t *testing.T) {
	_, rdb := redistest.Mini(t)
	ctx := t.Context()
	g := newGate("old")
	c := newCache(t, rdb, g.load, cacheaside.Config{TTL: 20 * time.Millisecond, StaleIfError: time.Minute,
		EarlyRefresh: -1, SoftTimeout: 30 * time.Millisecond, L1Entries: -1})
	g.pass <- struct{}{}
	_, err := c.Get(ctx, "k")
	must(t, err)
	g.value.Store("new")
	time.Sleep(25 * time.Millisecond)
	if e, err := c.GetEntry(ctx, "k"); err != nil || e.Value != "old" || e.Source != cacheaside.SourceStale {
		t.Errorf("GetEntry = %+v, %v; want old, stale", e, err)
	}
	g.pass <- struct{}{}
	eventually(t, "the load that went on is cached", func() bool { return c.Stats().Fills == 2 })
}

// TestErrorBackoff: the longest pause there may be, at its longest, serves what is stale
// and calls the loader once.
func TestErrorBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rdb := redistest.Bubble(t)
		loads := 0
		c := newCache(t, rdb, func(context.Context, string) (string, error) {
			if loads++; loads > 1 {
				return "", errors.New("away")
			}
			return "v", nil
		}, cacheaside.Config{TTL: time.Second, StaleIfError: 9 * 365 * 24 * time.Hour, ErrorBackoff: 24 * time.Hour, L1Entries: -1})
		for n := 1; n <= 10; n++ {
			for range 3 {
				if v, err := c.Get(t.Context(), "k"); err != nil || v != "v" {
					t.Fatalf("Get after %d loads = %q, %v; want v", loads, v, err)
				}
			}
			if loads != n {
				t.Fatalf("%d loads; want %d, one a pause", loads, n)
			}
			time.Sleep(32 * 24 * time.Hour)
		}
	})
}

// TestEarlyRefresh: values that take long to load are loaded again before they
// expire, by one of many callers, who don't wait, with the first level and without. In a
// bubble, whose clock stands while somebody works.
func TestEarlyRefresh(t *testing.T) {
	for _, l1 := range []int{-1, 100} {
		synctest.Test(t, func(t *testing.T) { earlyRefresh(t, l1) })
	}
}

func earlyRefresh(t *testing.T, l1 int) {
	_, rdb := redistest.Bubble(t)
	ctx := t.Context()
	var loads, waited, reads atomic.Int64
	load := func(context.Context, string) (int64, error) {
		time.Sleep(20 * time.Millisecond)
		return loads.Add(1), nil
	}
	cfg := cacheaside.Config{TTL: 300 * time.Millisecond, Jitter: -1, EarlyRefresh: 2, L1Entries: l1, NoCoalesce: true}
	a, b := newCache(t, rdb, load, cfg), newCache(t, rdb, load, cfg)
	_, err := a.Get(ctx, "k")
	must(t, err)
	var wg sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for _, c := range []*cacheaside.Cache[string, int64]{a, b} {
		for range 4 {
			wg.Go(func() {
				for time.Now().Before(end) {
					e, err := c.GetEntry(ctx, "k")
					if err != nil {
						t.Error(err)
					}
					if e.Source == cacheaside.SourceLoader {
						waited.Add(1)
					}
					reads.Add(1)
					time.Sleep(time.Millisecond)
				}
			})
		}
	}
	wg.Wait()
	time.Sleep(time.Second) // the last refresh ends
	// 3 s of lives of at most 300 ms. The earliest of 8 draws a millisecond ends
	// one after about 80; were each process to load, there would be twice as many.
	if n := loads.Load(); n < 10 || n > 55 {
		t.Errorf("first level %d: %d loads; want about 37", l1, n)
	}
	if n := waited.Load(); n > 0 {
		t.Errorf("first level %d: %d of %d reads waited for a load; want none", l1, n, reads.Load())
	}
	if a.Stats().Refreshes+b.Stats().Refreshes == 0 {
		t.Errorf("first level %d: no refresh in the background", l1)
	}
	if n := a.Stats().L1Hits; n == 0 && l1 > 0 {
		t.Error("the first level was not used")
	}
	must(t, a.Close())
	must(t, b.Close())
}

// TestEarlyRefreshOnce: of the callers of two processes that find a value due to be
// refreshed, one has it loaded, and none waits.
func TestEarlyRefreshOnce(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		g := newGate("old")
		// With such a beta a draw is nearly always above what is left.
		cfg := cacheaside.Config{TTL: time.Second, EarlyRefresh: 1000, Jitter: -1, StaleWhileRevalidate: time.Hour, LoadTimeout: time.Minute, L1Entries: -1}
		a, b := newCache(t, rdb, g.load, cfg), newCache(t, rdb, g.load, cfg)
		first := getAsync(ctx, a, "k")
		<-g.began
		time.Sleep(10 * time.Millisecond) // what loading takes, at least
		g.pass <- struct{}{}
		must(t, (<-first).err)
		g.value.Store("new")
		for range 50 {
			for _, c := range []*cacheaside.Cache[string, string]{a, b} {
				if v, err := c.Get(ctx, "k"); err != nil || v != "old" {
					t.Fatalf("Get = %q, %v; want old, at once", v, err)
				}
			}
		}
		<-g.began
		g.pass <- struct{}{}
		eventually(t, "the new value", func() bool { v, _, _ := a.Peek(ctx, "k"); return v == "new" })
		if n := g.loads.Load(); n != 2 {
			t.Errorf("%d loads; want 2", n)
		}
	})
}

func TestNegativeTTL(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{}
		c := newCache(t, rdb, src.load, cacheaside.Config{NegativeTTL: 50 * time.Millisecond})
		_, err := c.Get(ctx, 1)
		if !errors.Is(err, cacheaside.ErrNotFound) {
			t.Fatalf("Get = %v; want ErrNotFound", err)
		}
		src.set(1, "ann")
		if _, err := c.Get(ctx, 1); !errors.Is(err, cacheaside.ErrNotFound) {
			t.Errorf("Get within NegativeTTL = %v; want ErrNotFound", err)
		}
		eventually(t, "it is found", func() bool { u, err := c.Get(ctx, 1); return err == nil && u.Name == "ann" })

		never := newCache(t, rdb, src.load, cacheaside.Config{NegativeTTL: -1})
		before := src.loads.Load()
		for range 3 {
			if _, err := never.Get(ctx, 2); !errors.Is(err, cacheaside.ErrNotFound) {
				t.Errorf("Get = %v; want ErrNotFound", err)
			}
		}
		if n := src.loads.Load() - before; n != 3 {
			t.Errorf("%d loads; want 3, as absence is not cached", n)
		}
	})
}

func TestRefresh(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		other := newCache(t, rdb, src.load, cacheaside.Config{})
		refresh := func(want string) {
			t.Helper()
			if u, err := c.Refresh(ctx, 1); err != nil || u.Name != want {
				t.Errorf("Refresh = %q, %v; want %q", u.Name, err, want)
			}
			mustGet(t, c, 1, want)
			eventually(t, "seen by the other", func() bool { u, err := other.Get(ctx, 1); return err == nil && u.Name == want })
		}
		refresh("ann")
		src.set(1, "bea")
		mustGet(t, c, 1, "ann")
		refresh("bea")
		src.set(1, "eve")
		must(t, c.Invalidate(ctx, 1))
		refresh("eve")
		// Somebody else has had the lease since before: his value may be older.
		must(t, c.Invalidate(ctx, 1))
		must(t, rdb.Set(ctx, prefix+"1", "L0123456789abcdef", time.Minute).Err())
		src.set(1, "zoe")
		refresh("zoe")
	})
}

// TestClockBehind: a process whose clock is behind the server's serves nothing for
// longer than its life, read only or not, and knows how long that is.
func TestClockBehind(t *testing.T) {
	m, rdb := redistest.Mini(t)
	now := time.Now().Add(10 * time.Minute)
	m.SetTime(now)
	load := func(context.Context, string) (int, error) { return 1, nil }
	cfg := cacheaside.Config{TTL: time.Minute, Jitter: -1, EarlyRefresh: -1, L1Entries: -1}
	writer := newCache(t, rdb, load, cfg)
	if _, err := writer.Get(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	var ttl time.Duration
	now = now.Add(20 * time.Second)
	m.SetTime(now)
	roundtrip.RelearnServerTime(rdb)
	reader := newCache(t, rdb, load, cfg) // has never written
	for range 2 {
		e, err := reader.GetEntry(t.Context(), "k") // the first learns the time
		if err != nil || e.TTL > time.Minute {
			t.Fatalf("TTL %v, %v; want at most TTL, a minute", e.TTL, err)
		}
		ttl = e.TTL
	}
	// The server's clock stands still, so that the estimate is off by the time the calls took.
	if ttl <= 30*time.Second || ttl >= 50*time.Second {
		t.Errorf("TTL %v 20 s after the write; want about 40 s", ttl)
	}
}

// A value that is set before anything was asked of Redis gets its age by the clock of
// Redis too.
func TestFirstSetByTheServersClock(t *testing.T) {
	for _, ahead := range []time.Duration{9 * time.Hour, -9 * time.Hour} {
		m, rdb := redistest.Mini(t)
		m.SetTime(time.Now().Add(ahead))
		c := newCache(t, rdb, func(context.Context, string) (string, error) { return "loaded", nil },
			cacheaside.Config{TTL: time.Hour, L1Entries: -1, StaleWhileRevalidate: 24 * time.Hour})
		must(t, c.Set(t.Context(), "k", "set"))
		e, err := c.GetEntry(t.Context(), "k")
		if err != nil || e.Source != cacheaside.SourceRedis || e.Value != "set" || e.Age > time.Minute || e.TTL < time.Minute {
			t.Errorf("Redis %v ahead: %+v, %v; want what was just set, fresh", ahead, e, err)
		}
	}
}
