package cacheaside_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// TestCommands counts what goes over the wire.
func TestCommands(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		load := func(_ context.Context, k int) (int, error) { return k, nil }
		far := newCache(t, rdb, load, cacheaside.Config{L1Entries: -1, EarlyRefresh: -1})
		get := func(k int) func() {
			return func() {
				if v, err := far.Get(ctx, k); err != nil || v != k {
					t.Errorf("Get(%d) = %d, %v", k, v, err)
				}
			}
		}
		get(0)() // scripts and topology are known
		must(t, far.Invalidate(ctx, 0))
		must(t, far.Update(ctx, func(context.Context) error { return nil }, 0))
		for _, tt := range []struct {
			what  string
			do    func()
			trips int
			by    string
		}{
			{"miss", get(1), 3, "map[evalsha:2 get:1]"},
			{"hit", get(1), 1, "map[get:1]"},
			{"Peek", func() { far.Peek(ctx, 1) }, 1, "map[get:1]"},
			{"Invalidate", func() { must(t, far.Invalidate(ctx, 1)) }, 1, "map[evalsha:1]"},
			{"Update", func() { must(t, far.Update(ctx, func(context.Context) error { return nil }, 1)) }, 2, "map[evalsha:2]"},
			{"GetMany, missing", func() { far.GetMany(ctx, []int{2}) }, 3, "map[evalsha:2 get:1]"},
			{"GetMany, cached", func() { get(3)(); far.GetMany(ctx, []int{2, 3}) }, 4, "map[evalsha:2 get:3]"},
		} {
			got := redistest.Count(t, rdb, tt.do)
			if got.RoundTrips != tt.trips || fmt.Sprint(got.By) != tt.by {
				t.Errorf("%s: %d round trips, %v; want %d, %s", tt.what, got.RoundTrips, got.By, tt.trips, tt.by)
			}
		}
	})
}

// TestCommandsL1: a hit in the first level asks nobody.
func TestCommandsL1(t *testing.T) {
	_, rdb := redistest.Mini(t)
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{MaxStaleness: 1e12}) // no ping meanwhile
	eventually(t, "first level in use", inL1(t, c))
	got := redistest.Count(t, rdb, func() {
		for range 1000 {
			mustGet(t, c, 1, "ann")
		}
	})
	if got.Total != 0 {
		t.Errorf("%d commands for 1,000 hits in the first level; want none", got.Total)
	}
	allocs := testing.AllocsPerRun(1000, func() {
		if _, err := c.Get(context.Background(), 1); err != nil {
			t.Error(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a hit in the first level; want none", allocs)
	}
}

// TestCommandsTags: tags cost no round trip. A miss reads their versions once more, with
// the fill.
func TestCommandsTags(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newCache(t, rdb, func(_ context.Context, k int) (int, error) { return k, nil }, cacheaside.Config{L1Entries: -1, EarlyRefresh: -1},
			cacheaside.Funcs[int, int]{Tags: colours})
		_, err := c.Get(ctx, 0)
		must(t, err)
		must(t, c.InvalidateTags(ctx, "red"))
		for _, want := range []struct {
			trips int
			by    string
		}{{3, "map[evalsha:4 get:5]"}, {1, "map[get:3]"}} {
			got := redistest.Count(t, rdb, func() {
				_, err := c.Get(ctx, 2)
				must(t, err)
			})
			if got.RoundTrips != want.trips || fmt.Sprint(got.By) != want.by {
				t.Errorf("%d round trips, %v; want %d, %s", got.RoundTrips, got.By, want.trips, want.by)
			}
		}
		got := redistest.Count(t, rdb, func() { must(t, c.InvalidateTags(ctx, "red")) })
		if got.RoundTrips != 1 || got.Total != 1 {
			t.Errorf("InvalidateTags: %d round trips, %v; want one command", got.RoundTrips, got.By)
		}
	})
}
