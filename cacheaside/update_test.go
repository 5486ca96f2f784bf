package cacheaside_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

func TestUpdate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann", 2: "bob"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		mustGet(t, c, 1, "ann")
		mustGet(t, c, 2, "bob")
		err := c.Update(ctx, func(ctx context.Context) error {
			for _, key := range []string{"1", "2"} {
				if v := rdb.Get(ctx, prefix+key).Val(); len(v) != 17 || v[0] != 'F' {
					t.Errorf("during the write %s holds %q; want a fence", key, v)
				}
			}
			mustGet(t, c, 1, "ann") // readers go on, uncached
			src.set(1, "Ann")
			mustGet(t, c, 1, "Ann")
			return nil
		}, 1, 2)
		must(t, err)
		mustGet(t, c, 1, "Ann")
		mustGet(t, c, 2, "bob")
		if e, err := c.GetEntry(ctx, 1); err != nil || e.Source > cacheaside.SourceRedis {
			t.Errorf("after Update from %v, %v; want cached again", e.Source, err)
		}
	})
}

func mustGet(t testing.TB, c *cacheaside.Cache[int, user], id int, want string) {
	t.Helper()
	if u, err := c.Get(t.Context(), id); err != nil || u.Name != want {
		t.Errorf("Get(%d) = %q, %v; want %q", id, u.Name, err, want)
	}
}

func TestUpdateWriteFails(t *testing.T) {
	_, rdb := redistest.Mini(t)
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{})
	failure := errors.New("constraint violated")
	if err := c.Update(t.Context(), func(context.Context) error { return failure }, 1); !errors.Is(err, failure) || errors.Is(err, cacheaside.ErrFenceLost) {
		t.Errorf("Update = %v; want the write's error alone", err)
	}
	if n := rdb.Exists(t.Context(), prefix+"1").Val(); n != 0 {
		t.Error("a fence was left behind")
	}
	func() {
		defer func() {
			if recover() != "ouch" {
				t.Error("the panic of a write did not reach the caller")
			}
		}()
		c.Update(t.Context(), func(context.Context) error { panic("ouch") }, 1)
	}()
	if v := rdb.Get(t.Context(), prefix+"1").Val(); !strings.HasPrefix(v, "F") {
		t.Errorf("after a panic the key holds %q; want a fence, as the write may still come", v)
	}
}

// TestUpdateFailsWithoutRedis: the error of a write that failed is not mistaken for a
// write that is done.
func TestUpdateFailsWithoutRedis(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true})
	defer rdb.Close()
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{})
	failure := errors.New("constraint violated")
	for _, failure := range []error{failure, context.DeadlineExceeded} {
		err := c.Update(t.Context(), func(context.Context) error { return failure }, 1)
		if !errors.Is(err, failure) || errors.Is(err, cacheaside.ErrFenceLost) || errors.Is(err, cacheaside.ErrInvalidationQueued) {
			t.Errorf("Update = %v; want an error that matches the write's alone", err)
		}
	}
	if err := c.Update(t.Context(), func(context.Context) error { return nil }, 1); !errors.Is(err, cacheaside.ErrFenceLost) {
		t.Errorf("Update of a write that is done = %v; want ErrFenceLost", err)
	}
}

// TestUpdateTimesOut: a write that timed out and takes effect later leaves no old value
// in the cache.
func TestUpdateTimesOut(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{FenceTTL: time.Minute, L1Entries: -1})
		mustGet(t, c, 1, "ann")
		err := c.Update(t.Context(), func(context.Context) error { return fmt.Errorf("commit: %w", context.DeadlineExceeded) }, 1)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cacheaside.ErrFenceLost) {
			t.Errorf("Update = %v; want the write's error", err)
		}
		mustGet(t, c, 1, "ann")
		src.set(1, "Ann") // the commit arrives
		mustGet(t, c, 1, "Ann")
		if left := rdb.PTTL(t.Context(), prefix+"1").Val(); left < 50*time.Second || left > time.Minute {
			t.Errorf("the fence stands for %v; want FenceTTL, a minute, from the end of the write", left)
		}
	})
}

// TestUpdateSameKeyTwice: a key that is named twice is fenced and lifted once.
func TestUpdateSameKeyTwice(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		must(t, c.Update(t.Context(), func(context.Context) error { return nil }, 1, 2, 1))
		must(t, c.Invalidate(t.Context(), 1, 1))
		if n := c.Stats().Invalidations; n != 3 {
			t.Errorf("%d keys invalidated; want 3", n)
		}
	})
}

// TestDeadFence: a fence whose owner died ends in its time, however often others
// fence the key.
func TestDeadFence(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		short := newCache(t, rdb, src.load, cacheaside.Config{FenceTTL: 50 * time.Millisecond, L1Entries: -1})
		long := newCache(t, rdb, src.load, cacheaside.Config{FenceTTL: time.Hour, L1Entries: -1})
		_, err := short.Fence(ctx, 1) // nobody calls Done
		must(t, err)
		stands, err := long.Fence(ctx, 1)
		must(t, err)
		if n := rdb.StrLen(ctx, prefix+"1").Val(); n > 1+2*16 {
			t.Errorf("two fences take %d bytes; want 33", n)
		}
		eventually(t, "the dead fence ends", func() bool {
			must(t, long.Update(ctx, func(context.Context) error { return nil }, 1))
			return rdb.StrLen(ctx, prefix+"1").Val() == 1+16
		})
		must(t, stands.Done(ctx))
		if n := rdb.Exists(ctx, prefix+"1").Val(); n != 0 {
			t.Error("a fence was left behind")
		}
		// What stands longest decides how long the key lives.
		_, err = short.Fence(ctx, 1)
		must(t, err)
		f, err := long.Fence(ctx, 1)
		must(t, err)
		if left := rdb.PTTL(ctx, prefix+"1").Val(); left < 59*time.Minute {
			t.Errorf("the longer of two fences stands for %v; want an hour", left)
		}
		must(t, f.Done(ctx))
		if left := rdb.PTTL(ctx, prefix+"1").Val(); left > 50*time.Millisecond {
			t.Errorf("the shorter stands for another %v; want at most its 50ms", left)
		}
	})
}

// TestFencesNest: the last of several fences lets values be cached again.
func TestFencesNest(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		a := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1})
		b := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1})
		cached := func() bool {
			mustGet(t, a, 1, "ann")
			_, ok, err := a.Peek(ctx, 1)
			must(t, err)
			return ok
		}
		fa, err := a.Fence(ctx, 1)
		must(t, err)
		fb, err := b.Fence(ctx, 1)
		must(t, err)
		must(t, a.Invalidate(ctx, 1))
		must(t, a.Set(ctx, 1, user{1, "zoe"}))
		if cached() {
			t.Error("cached under two fences")
		}
		must(t, fa.Done(ctx))
		must(t, fa.Done(ctx)) // once is enough
		if cached() {
			t.Error("cached under the second fence")
		}
		must(t, fb.Done(ctx))
		if !cached() {
			t.Error("not cached after the last fence")
		}
	})
}

func TestFencesConcurrent(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 10 {
					if err := c.Update(t.Context(), func(context.Context) error { return nil }, 1); err != nil {
						t.Errorf("Update: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if n := rdb.Exists(t.Context(), prefix+"1").Val(); n != 0 {
			t.Error("a fence was left behind")
		}
	})
}

// TestFenceHeals: a fence whose owner died ends by itself.
func TestFenceHeals(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{FenceTTL: 100 * time.Millisecond, L1Entries: -1})
		_, err := c.Fence(t.Context(), 1)
		must(t, err)
		eventually(t, "cached again", func() bool {
			mustGet(t, c, 1, "ann")
			_, ok, err := c.Peek(t.Context(), 1)
			return err == nil && ok
		})
	})
}

// TestFenceLost: what was cached behind a lost fence goes, and the caller is told.
func TestFenceLost(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1, FenceTTL: 200 * time.Millisecond})
		err := c.Update(ctx, func(wctx context.Context) error {
			if left, ok := wctx.Deadline(); !ok || time.Until(left) > 150*time.Millisecond {
				t.Error("the write's context does not end before the fence")
			}
			must(t, rdb.Del(ctx, prefix+"1").Err()) // lost
			mustGet(t, c, 1, "ann")                 // and an old value is cached
			src.set(1, "Ann")
			return nil
		}, 1)
		if !errors.Is(err, cacheaside.ErrFenceLost) {
			t.Errorf("Update = %v; want ErrFenceLost", err)
		}
		mustGet(t, c, 1, "Ann")
		if n := c.Stats().FencesLost; n != 1 {
			t.Errorf("FencesLost = %d; want 1", n)
		}
	})
}

// TestSetVersion: the newest version wins, the lease of a load is broken, a
// fence is not.
func TestSetVersion(t *testing.T) {
	type row struct {
		Version uint64
		Text    string
	}
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newCache(t, rdb, func(context.Context, string) (row, error) { return row{5, "loaded"}, nil },
			cacheaside.Config{L1Entries: -1}, cacheaside.Funcs[string, row]{Version: func(r row) uint64 { return r.Version }})
		for _, step := range []struct{ set, want row }{
			{row{3, "first"}, row{3, "first"}},
			{row{2, "older"}, row{3, "first"}},
			{row{3, "same"}, row{3, "same"}},
			{row{256, "newer"}, row{256, "newer"}},
			{row{255, "older in the last byte only"}, row{256, "newer"}},
			{row{1 << 63, "newest"}, row{1 << 63, "newest"}},
			{row{1<<63 - 1, "older"}, row{1 << 63, "newest"}},
		} {
			must(t, c.Set(ctx, "k", step.set))
			if got, err := c.Get(ctx, "k"); err != nil || got != step.want {
				t.Errorf("after Set(%v): %v, %v; want %v", step.set, got, err, step.want)
			}
		}
		must(t, c.Invalidate(ctx, "k"))
		if got, err := c.Get(ctx, "k"); err != nil || got.Text != "loaded" {
			t.Errorf("Get = %v, %v; want loaded", got, err)
		}
		must(t, c.Set(ctx, "k", row{4, "older than what was loaded"}))
		if got, err := c.Get(ctx, "k"); err != nil || got.Text != "loaded" {
			t.Errorf("Get = %v, %v; want loaded", got, err)
		}
	})
}

func TestSetBreaksLease(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		g := newGate("loaded")
		c := newCache(t, rdb, g.load, cacheaside.Config{L1Entries: -1})
		leader := getAsync(t.Context(), c, "k")
		<-g.began
		must(t, c.Set(t.Context(), "k", "set"))
		g.pass <- struct{}{}
		if a := <-leader; a.err != nil {
			t.Error(a.err)
		}
		if v, err := c.Get(t.Context(), "k"); err != nil || v != "set" {
			t.Errorf("Get = %q, %v; want what was set", v, err)
		}
	})
}
