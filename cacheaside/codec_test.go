package cacheaside_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// TestUnreadable: what can't be read is a miss, reported, and replaced.
func TestUnreadable(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		var mu sync.Mutex
		var ops []string
		c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1, Hooks: cacheaside.Hooks{
			Error: func(op string, err error) { mu.Lock(); ops = append(ops, op); mu.Unlock() },
		}})
		gob := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1, Codec: cacheaside.Gob})
		text := newCache(t, rdb, func(context.Context, int) (string, error) { return "text", nil }, cacheaside.Config{L1Entries: -1})
		mustGet(t, c, 1, "ann")
		good := rdb.Get(ctx, prefix+"1").Val()
		set := func(v string) func() { return func() { must(t, rdb.Set(ctx, prefix+"1", v, 0).Err()) } }
		for name, spoil := range map[string]func(){
			"foreign":            set("hello"),
			"empty":              set(""),
			"kind byte only":     set("V"),
			"long":               set(strings.Repeat("x", 100_000)),
			"lease of no size":   set("L"),
			"fence of no size":   set("F123"),
			"damaged":            set(good[:len(good)-1] + string(good[len(good)-1]^1)),
			"of another key":     func() { mustGet(t, gob, 1, "ann"); mustGet(t, c, 1, "ann") },
			"another codec's":    func() { must(t, rdb.Del(ctx, prefix+"1").Err()); mustGet(t, gob, 1, "ann") },
			"another type's":     func() { must(t, rdb.Del(ctx, prefix+"1").Err()); text.Get(ctx, 1) },
			"list":               func() { rdb.Del(ctx, prefix+"1"); must(t, rdb.RPush(ctx, prefix+"1", "x").Err()) },
			"hash":               func() { rdb.Del(ctx, prefix+"1"); must(t, rdb.HSet(ctx, prefix+"1", "f", "x").Err()) },
			"an older version's": set(good[:17] + "0" + good[18:]),
		} {
			spoil()
			mu.Lock()
			ops = nil
			mu.Unlock()
			before := c.Stats().Unreadable
			mustGet(t, c, 1, "ann")
			if name != "of another key" && (c.Stats().Unreadable == before || !slices.Contains(ops, "decode")) {
				t.Errorf("%s: not reported: %v", name, ops)
			}
			if e, err := c.GetEntry(ctx, 1); err != nil || e.Source != cacheaside.SourceRedis {
				t.Errorf("%s: then from %v, %v; want replaced and from redis", name, e.Source, err)
			}
			must(t, c.Invalidate(ctx, 1))
			if n := rdb.Exists(ctx, prefix+"1").Val(); n != 0 {
				t.Errorf("%s: Invalidate left it", name)
			}
		}
	})
}

// TestMaxValue: a value that is too large is returned, reported and not kept.
func TestMaxValue(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		size := 10
		loads := 0
		var op string
		c := newCache(t, rdb, func(context.Context, string) (string, error) { loads++; return strings.Repeat("x", size), nil },
			cacheaside.Config{MaxValue: 100, Hooks: cacheaside.Hooks{Error: func(o string, _ error) { op = o }}})
		for _, tt := range []struct{ size, loads int }{{10, 1}, {99, 2}} {
			must(t, c.Invalidate(ctx, "k"))
			size, loads, op = tt.size, 0, ""
			for range 2 {
				if v, err := c.Get(ctx, "k"); err != nil || len(v) != size {
					t.Errorf("Get = %d bytes, %v; want %d", len(v), err, size)
				}
			}
			if loads != tt.loads || (op == "encode") != (tt.loads == 2) {
				t.Errorf("size %d: %d loads, reported %q; want %d", size, loads, op, tt.loads)
			}
		}
		noLease(t, rdb, prefix+"k")
		if err := c.Set(ctx, "k", strings.Repeat("x", 200)); err == nil {
			t.Error("Set of a large value: no error")
		}
	})
}

func TestCodecs(t *testing.T) {
	_, rdb := redistest.Mini(t)
	type value struct {
		A int
		B []string
		C map[string]float64
	}
	want := value{1, []string{strings.Repeat("long ", 2000), "b"}, map[string]float64{"x": 1.5}}
	for _, codec := range []cacheaside.Codec{nil, cacheaside.JSON, cacheaside.Gob} {
		c := newCache(t, rdb, func(context.Context, int) (value, error) { return want, nil }, cacheaside.Config{Codec: codec, L1Entries: -1})
		must(t, c.Clear(t.Context()))
		for _, source := range []cacheaside.Source{cacheaside.SourceLoader, cacheaside.SourceRedis} {
			e, err := c.GetEntry(t.Context(), 1)
			if err != nil || e.Source != source || e.Value.A != 1 || !slices.Equal(e.Value.B, want.B) || e.Value.C["x"] != 1.5 {
				t.Errorf("GetEntry = %v from %v, %v; want the value from %v", e.Value.A, e.Source, err, source)
			}
		}
		if n := rdb.StrLen(t.Context(), prefix+"1").Val(); n > 2000 {
			t.Errorf("stored in %d bytes; want it compressed", n)
		}
	}
}
