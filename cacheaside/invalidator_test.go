package cacheaside_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// TestInvalidator: a service that only writes does to the caches of others what a cache
// would.
func TestInvalidator(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{}}
		for id := range 4 {
			src.set(id, "old")
		}
		c := newCache(t, rdb, src.load, cacheaside.Config{}, cacheaside.Funcs[int, user]{Tags: func(int) []string { return []string{"all"} }})
		var told []cacheaside.Invalidation
		inv, err := cacheaside.NewInvalidator[int](rdb, "test", cacheaside.Config{Timeout: 5 * time.Second, Hooks: cacheaside.Hooks{
			AfterInvalidate: func(_ context.Context, inv cacheaside.Invalidation, err error) { told = append(told, inv) }}})
		must(t, err)
		t.Cleanup(func() { inv.Close() })
		for id, act := range []func() error{
			func() error { return inv.Invalidate(ctx, 0) },
			func() error { return inv.InvalidateTags(ctx, "all") },
			func() error { return inv.Clear(ctx) },
			func() error {
				return inv.Update(ctx, func(context.Context) error { src.set(3, "new"); return nil }, 3)
			},
		} {
			eventually(t, "in the first level", func() bool {
				e, err := c.GetEntry(ctx, id)
				return err == nil && e.Source == cacheaside.SourceL1
			})
			src.set(id, "new")
			must(t, act())
			eventually(t, "the new value", func() bool { u, err := c.Get(ctx, id); return err == nil && u.Name == "new" })
		}
		f, err := inv.Fence(ctx, 1)
		must(t, err)
		must(t, f.Done(ctx))
		if len(told) != 5 || inv.Stats().Invalidations != 4 { // Clear counts no keys
			t.Errorf("%d hooks, %d invalidations; want 5 and 4", len(told), inv.Stats().Invalidations)
		}
		must(t, inv.Close())
		if err := inv.Invalidate(ctx, 0); err != cacheaside.ErrClosed {
			t.Errorf("Invalidate after Close = %v; want ErrClosed", err)
		}
		if _, err := cacheaside.NewInvalidator[float64](rdb, "a:b", cacheaside.Config{}); err == nil || !strings.Contains(err.Error(), "keys are float64") || !strings.Contains(err.Error(), "name") {
			t.Errorf("NewInvalidator of bad arguments: %v", err)
		}
	})
}

// TestBypass: while a cache is switched off it reads nothing and stores nothing, and what is
// invalidated meanwhile is not there afterwards.
func TestBypass(t *testing.T) {
	for name, call := range calls {
		redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
			ctx := t.Context()
			v := "cached"
			load := func(context.Context, string) (string, error) {
				if v == "" {
					return "", errors.New("down")
				}
				return v, nil
			}
			c := newCache(t, rdb, load, cacheaside.Config{StaleIfError: time.Hour}, bulked(name, load, cacheaside.Funcs[string, string]{}))
			eventually(t, "in the first level", func() bool {
				e, err := c.GetEntry(ctx, "k")
				return err == nil && e.Source == cacheaside.SourceL1
			})
			want := func(want string) {
				t.Helper()
				if v, err := call(ctx, c); v != want || (err != nil) != (want == "") {
					t.Errorf("%s = %q, %v; want %q", name, v, err, want)
				}
			}
			before := rdb.Get(ctx, prefix+"k").Val()
			c.Bypass(true)
			for _, v = range []string{"one", "two", ""} {
				want(v)
			}
			if _, ok, err := c.Peek(ctx, "k"); ok || err != nil {
				t.Errorf("Peek = %v, %v; want nothing", ok, err)
			}
			if now := rdb.Get(ctx, prefix+"k").Val(); now != before {
				t.Error("what is stored has changed")
			}
			c.Bypass(false)
			v = "three"
			if name != "Refresh" {
				want("cached")
			}
			c.Bypass(true)
			must(t, c.Invalidate(ctx, "k"))
			c.Bypass(false)
			want("three")
		})
	}
}
