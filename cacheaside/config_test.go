package cacheaside_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

func loadNothing[K comparable](context.Context, K) (string, error) { return "", nil }

func TestNewRefuses(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	cached := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 3, ClientSideCacheConfig: &redis.ClientSideCacheConfig{}})
	defer cached.Close()
	replicas := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, RouteByLatency: true})
	defer replicas.Close()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	ok := cacheaside.Config{TTL: time.Minute}
	for _, tt := range []struct {
		what string
		err  func() error
		want []string
	}{
		{"all at once", func() error {
			_, err := cacheaside.New[string, string](nil, "a:b", nil, cacheaside.Config{Jitter: 2, Timeout: -1, MaxStaleness: 1, L1Entries: -5, L1Weight: 5})
			return err
		}, []string{"load is nil", "name", "TTL is 0s", "Jitter is 2", "Timeout is -1ns", "MaxStaleness is 1ns", "L1Weight is 5 and L1Entries -5", "client is nil"}},
		{"client-side cache", func() error { _, err := cacheaside.New(cached, "a", loadNothing[string], ok); return err },
			[]string{"client-side cache", "older than an acknowledged write", "without Options.ClientSideCacheConfig"}},
		{"replica reads", func() error { _, err := cacheaside.New(replicas, "a", loadNothing[string], ok); return err },
			[]string{"reads from replicas", "without ReadOnly, RouteByLatency and RouteRandomly"}},
		{"Ring", func() error { _, err := cacheaside.New(ring, "a", loadNothing[string], ok); return err },
			[]string{"redis.Ring is not supported"}},
		{"float keys", func() error { _, err := cacheaside.New(rdb, "a", loadNothing[float64], ok); return err },
			[]string{"keys are float64", "encoding.TextMarshaler"}},
		{"keys with a float", func() error {
			_, err := cacheaside.New(rdb, "a", loadNothing[struct{ At struct{ X float64 } }], ok)
			return err
		}, []string{"keys are struct", "part At.X is float64", "encoding.TextMarshaler"}},
		{"keys with a hidden text", func() error {
			_, err := cacheaside.New(rdb, "a", loadNothing[struct{ from netip.Addr }], ok)
			return err
		},
			[]string{"field from implements encoding.TextMarshaler", "exported"}},
		{"two Funcs", func() error {
			_, err := cacheaside.New(rdb, "a", loadNothing[int], ok, cacheaside.Funcs[int, string]{}, cacheaside.Funcs[int, string]{})
			return err
		}, []string{"more than one Funcs"}},
	} {
		err := tt.err()
		if err == nil || !strings.HasPrefix(err.Error(), "cacheaside: ") {
			t.Errorf("%s: New = %v; want an error of cacheaside", tt.what, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: New = %q; want it to mention %q", tt.what, err, want)
			}
		}
	}
}

// TestNewDialsNothing: New succeeds and returns at once with no server.
func TestNewDialsNothing(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, err := cacheaside.New(rdb, "user", loadNothing[int], cacheaside.Config{TTL: time.Minute})
	must(t, err)
	must(t, c.Close())
	must(t, c.Close())
	if _, err := c.Get(t.Context(), 1); err != cacheaside.ErrClosed {
		t.Errorf("Get after Close = %v; want ErrClosed", err)
	}
}

type email string

// TestKeyKinds: the text of each kind of key in Redis, and that it is found again.
func TestKeyKinds(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		checkKey(t, rdb, "plain", "plain")
		checkKey(t, rdb, "", "")
		checkKey(t, rdb, "{tag} *?[x]\x00\xff", "{tag} *?[x]\x00\xff")
		checkKey(t, rdb, email("a@b"), "a@b")
		checkKey(t, rdb, 42, "42")
		checkKey(t, rdb, int8(-128), "-128")
		checkKey(t, rdb, uint64(1<<64-1), "18446744073709551615")
		checkKey(t, rdb, time.Duration(7), "7")
		checkKey(t, rdb, netip.MustParseAddr("2001:db8::1"), "2001:db8::1")
		checkKey(t, rdb, struct {
			Tenant string
			id     uint8
			_      int
			On     bool
			At     [2]int
			From   netip.Addr
			Sub    struct{ a, b email }
		}{"a,b\\", 7, 1, true, [2]int{-1, 2}, netip.MustParseAddr("::1"), struct{ a, b email }{"", "c"}}, `a\,b\\,7,true,-1,2,::1,,c`)
		checkKey(t, rdb, [2]string{}, ",")
		checkKey(t, rdb, struct{}{}, "")
	})
}

func checkKey[K comparable](t *testing.T, rdb redis.UniversalClient, key K, text string) {
	t.Helper()
	ctx := t.Context()
	loads := 0
	c := newCache(t, rdb, func(context.Context, K) (string, error) { loads++; return "v", nil }, cacheaside.Config{})
	defer c.Close()
	must(t, c.Clear(ctx))
	for range 3 {
		if v, err := c.Get(ctx, key); err != nil || v != "v" {
			t.Fatalf("Get(%v) = %q, %v; want v", key, v, err)
		}
	}
	if n, err := rdb.Exists(ctx, prefix+text).Result(); err != nil || n != 1 || loads != 1 {
		t.Errorf("key %v (%T): stored under %q: %d, %v, after %d loads; want 1 after 1", key, key, text, n, err, loads)
	}
	must(t, c.Invalidate(ctx, key))
	if _, err := c.Get(ctx, key); err != nil || loads != 2 {
		t.Errorf("key %v (%T): %d loads after Invalidate, %v; want 2", key, key, loads, err)
	}
}

// TestCachesApart: names and keys can't be mistaken for each other.
func TestCachesApart(t *testing.T) {
	_, rdb := redistest.Mini(t)
	mk := func(name string) *cacheaside.Cache[string, string] {
		c, err := cacheaside.New(rdb, name, func(_ context.Context, k string) (string, error) { return name + "/" + k, nil }, relaxed(cacheaside.Config{}))
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, ab := mk("a"), mk("a.b")
	for _, k := range []string{"b:c", "c", ".b:c", "#t:x", "#bus"} {
		for _, tt := range []struct {
			c    *cacheaside.Cache[string, string]
			want string
		}{{a, "a/" + k}, {ab, "a.b/" + k}} {
			for range 2 {
				if v, err := tt.c.Get(t.Context(), k); err != nil || v != tt.want {
					t.Errorf("Get(%q) = %q, %v; want %q", k, v, err, tt.want)
				}
			}
		}
	}
	must(t, a.Clear(t.Context()))
	if _, ok, _ := a.Peek(t.Context(), "c"); ok {
		t.Error("a has a value after Clear")
	}
	if _, ok, _ := ab.Peek(t.Context(), "c"); !ok {
		t.Error("a.b has no value after Clear of a")
	}
}

// TestStructKeys: keys of several parts are found again by who has an equal one only, and
// in another process' first level.
func TestStructKeys(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		type key struct{ A, B string }
		load := func(_ context.Context, k key) (key, error) { return k, nil }
		a, b := newCache(t, rdb, load, cacheaside.Config{}), newCache(t, rdb, load, cacheaside.Config{})
		parts := []string{"", ",", `\`, `\,`, `,\`, "x", "x,", `\\`, ",,"}
		for range 2 {
			for _, x := range parts {
				for _, y := range parts {
					if v, err := a.Get(t.Context(), key{x, y}); err != nil || v != (key{x, y}) {
						t.Fatalf("Get(%q, %q) = %q, %v", x, y, v, err)
					}
				}
			}
		}
		if n := a.Stats().Loads; n != uint64(len(parts)*len(parts)) {
			t.Errorf("%d loads of %d keys", n, len(parts)*len(parts))
		}
		k := key{"x", ","}
		eventually(t, "in the other's first level", func() bool {
			e, err := b.GetEntry(t.Context(), k)
			return err == nil && e.Source == cacheaside.SourceL1
		})
		must(t, a.Invalidate(t.Context(), k))
		eventually(t, "gone there", func() bool { _, ok, err := b.Peek(t.Context(), k); return err == nil && !ok })
	})
}
