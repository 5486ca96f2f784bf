package cacheaside_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

func colours(id int) []string {
	return []string{[]string{"red", "blue"}[id%2], "all"}
}

func TestTags(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{}
		var ids []int
		for id := range 20 {
			src.set(id, "old")
			ids = append(ids, id)
		}
		funcs := cacheaside.Funcs[int, user]{Tags: colours}
		c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1}, funcs)
		near := newCache(t, rdb, src.load, cacheaside.Config{}, funcs)
		read := func(c *cacheaside.Cache[int, user], want func(id int) string) {
			t.Helper()
			for _, id := range ids {
				mustGet(t, c, id, want(id))
			}
		}
		same := func(name string) func(int) string { return func(int) string { return name } }
		read(c, same("old"))
		eventually(t, "first level in use", func() bool { read(near, same("old")); return near.Stats().L1Entries == 20 })
		for _, id := range ids {
			src.set(id, "new")
		}
		before := src.loads.Load()
		must(t, near.InvalidateTags(ctx, "red"))
		want := func(id int) string {
			if id%2 == 0 {
				return "new"
			}
			return "old"
		}
		read(near, want) // its own invalidation is seen at once
		read(c, want)
		if n := src.loads.Load() - before; n != 10 {
			t.Errorf("%d loads; want those of the tag, 10", n)
		}
		must(t, c.InvalidateTags(ctx, "all"))
		read(c, same("new"))
		eventually(t, "the other's first level follows", func() bool {
			u, err := near.Get(ctx, 1)
			return err == nil && u.Name == "new"
		})

		// Losing a tag's version, by eviction for instance, invalidates too.
		for _, id := range ids {
			src.set(id, "newest")
		}
		if n := rdb.Del(ctx, cacheaside.DefaultPrefix+"test#t:blue").Val(); n != 1 {
			t.Fatalf("deleted %d tags; want 1", n)
		}
		read(c, func(id int) string {
			if id%2 == 1 {
				return "newest"
			}
			return "new"
		})
	})
}

// TestTagWinsOverLoad: a load that began before its tag was invalidated does not
// count.
func TestTagWinsOverLoad(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		g := newGate("old")
		c := newCache(t, rdb, g.load, cacheaside.Config{}, cacheaside.Funcs[string, string]{Tags: func(string) []string { return []string{"tag"} }})
		leader := getAsync(ctx, c, "k")
		<-g.began
		g.value.Store("new")
		must(t, c.InvalidateTags(ctx, "tag"))
		g.pass <- struct{}{}
		if a := <-leader; a.err != nil || a.v != "old" {
			t.Errorf("leader got %q, %v; want old", a.v, a.err)
		}
		g.pass <- struct{}{}
		for range 3 {
			if v, err := c.Get(ctx, "k"); err != nil || v != "new" {
				t.Errorf("Get = %q, %v; want new", v, err)
			}
		}
		if n := g.loads.Load(); n != 2 {
			t.Errorf("%d loads; want 2", n)
		}
	})
}

// TestTagsMany: GetMany looks at tags as Get does.
func TestTagsMany(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{}
		ids := []int{1, 2, 3, 4}
		for _, id := range ids {
			src.set(id, "old")
		}
		c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1}, cacheaside.Funcs[int, user]{
			Tags: colours,
			LoadMany: func(ctx context.Context, ids []int) (map[int]user, error) {
				out := map[int]user{}
				for _, id := range ids {
					out[id], _ = src.load(ctx, id)
				}
				return out, nil
			},
		})
		for _, want := range []struct {
			even, odd string
			loads     int64
		}{{"old", "old", 4}, {"old", "old", 0}, {"new", "old", 2}, {"new", "old", 0}} {
			before := src.loads.Load()
			got, err := c.GetMany(ctx, ids)
			if err != nil || got[2].Name != want.even || got[3].Name != want.odd || len(got) != 4 {
				t.Errorf("GetMany = %v, %v; want even %q, odd %q", got, err, want.even, want.odd)
			}
			if n := src.loads.Load() - before; n != want.loads {
				t.Errorf("%d loads; want %d", n, want.loads)
			}
			if want.loads == 0 && want.even == "old" {
				for _, id := range ids {
					src.set(id, "new")
				}
				must(t, c.InvalidateTags(ctx, "red"))
			}
		}
	})
}

// TestLateTagBump: a tag's invalidation that is executed again revives nothing.
func TestLateTagBump(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) { o.Network, o.Addr, o.Dialer = "tcp", p.Addr(), nil })
	src := &source{rows: map[int]string{2: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1, TTL: time.Minute}, cacheaside.Funcs[int, user]{Tags: colours})
	mustGet(t, c, 2, "ann")
	for _, name := range []string{"bea", "eve"} {
		must(t, c.InvalidateTags(t.Context(), "blue")) // the script is known
		src.set(2, name)
		p.Set(redistest.Fault{Match: "evalsha", Times: 1, CutAfter: true})
		must(t, c.InvalidateTags(t.Context(), "red"))
		if p.Hits() != 1 {
			t.Fatal("the fault did not strike")
		}
		mustGet(t, c, 2, name)
		mustGet(t, c, 2, name)
	}
}

// TestSharedTags: a tag that several caches share is invalidated for all of them by one: in
// the same process at once, in others when they are told.
func TestSharedTags(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		var version atomic.Int64
		tags := cacheaside.Funcs[string, int64]{Tags: func(string) []string { return []string{"tenant:7"} }}
		mk := func(name string, shared bool) *cacheaside.Cache[string, int64] {
			c, err := cacheaside.New(rdb, name, func(context.Context, string) (int64, error) { return version.Load(), nil },
				relaxed(cacheaside.Config{SharedTags: shared}), tags)
			must(t, err)
			t.Cleanup(func() { c.Close() })
			return c
		}
		users, orders, apart := mk("users", true), mk("orders", true), mk("apart", false)
		inv, err := cacheaside.NewInvalidator[string](rdb, "users", relaxed(cacheaside.Config{SharedTags: true}))
		must(t, err)
		t.Cleanup(func() { inv.Close() })
		for _, invalidate := range []func(context.Context, ...string) error{users.InvalidateTags, orders.InvalidateTags, inv.InvalidateTags} {
			for _, c := range []*cacheaside.Cache[string, int64]{users, orders, apart} {
				eventually(t, "in the first level", func() bool {
					e, err := c.GetEntry(ctx, "k")
					return err == nil && e.Source == cacheaside.SourceL1
				})
			}
			now := version.Add(1)
			must(t, invalidate(ctx, "tenant:7"))
			for i, c := range []*cacheaside.Cache[string, int64]{users, orders} {
				if v, err := c.Get(ctx, "k"); err != nil || v != now {
					t.Errorf("cache %d: Get = %d, %v; want %d", i, v, err, now)
				}
			}
			if v, err := apart.Get(ctx, "k"); err != nil || v == now {
				t.Errorf("the cache that does not share: Get = %d, %v; want what is cached", v, err)
			}
		}
	})
}

// TestSharedTagsElsewhere: what another program does to a shared tag is heard.
func TestSharedTagsElsewhere(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{SharedTags: true}, cacheaside.Funcs[int, user]{Tags: func(int) []string { return []string{"x"} }})
		eventually(t, "in the first level", inL1(t, c))
		src.set(1, "bea")
		// What tagbump.lua does, from a process of another cache.
		must(t, rdb.Set(t.Context(), cacheaside.DefaultPrefix+"#t:x", "0123456789abcdef", time.Hour).Err())
		must(t, rdb.Publish(t.Context(), cacheaside.DefaultPrefix+"#bus", "t0otherotherotherox").Err())
		eventually(t, "the new value", func() bool { u, err := c.Get(t.Context(), 1); return err == nil && u.Name == "bea" })
	})
}

// TestSharedTagQueued: the invalidation of a shared tag that failed keeps all caches of the
// process from what it concerns.
func TestSharedTagQueued(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	version := int64(1)
	mk := func(name string) *cacheaside.Cache[string, int64] {
		c, err := cacheaside.New(s.Client(func(o *redis.Options) { o.MaxRetries, o.DialTimeout = -1, 100*time.Millisecond }), name, func(context.Context, string) (int64, error) { return version, nil },
			cacheaside.Config{TTL: time.Hour, SharedTags: true, Timeout: time.Second}, cacheaside.Funcs[string, int64]{Tags: func(string) []string { return []string{"x"} }})
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := mk("a"), mk("b")
	_, err := b.Get(t.Context(), "k")
	must(t, err)
	s.Pause()
	version = 2
	if err := a.InvalidateTags(t.Context(), "x"); !errors.Is(err, cacheaside.ErrInvalidationQueued) {
		t.Errorf("InvalidateTags = %v; want ErrInvalidationQueued", err)
	}
	if n := b.Stats().Queued; n != 1 {
		t.Errorf("%d queued by the other; want 1", n)
	}
	s.Resume()
	if v, err := b.Get(t.Context(), "k"); err != nil || v != 2 {
		t.Errorf("Get = %d, %v; want 2", v, err)
	}
	eventually(t, "carried out", func() bool { return a.Stats().Queued+b.Stats().Queued == 0 })
}
