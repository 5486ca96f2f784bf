package cacheaside_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// source1 is where c finds user 1.
func source1(t testing.TB, c *cacheaside.Cache[int, user]) cacheaside.Source {
	t.Helper()
	e, err := c.GetEntry(t.Context(), 1)
	must(t, err)
	return e.Source
}

func inL1(t testing.TB, c *cacheaside.Cache[int, user]) func() bool {
	return func() bool { return source1(t, c) == cacheaside.SourceL1 }
}

// TestBusLost: when the connection for announcements ends, the first level is
// emptied at once, and used again when there is a new one.
func TestBusLost(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) {
		o.Network, o.Addr, o.Dialer, o.DialerRetries = "tcp", p.Addr(), nil, 1
	})
	src := &source{rows: map[int]string{1: "ann"}}
	var told recorder
	c := newCache(t, rdb, src.load, cacheaside.Config{OnInvalidate: told.add})
	other := newCache(t, s.Client(), src.load, cacheaside.Config{L1Entries: -1})
	eventually(t, "value in the first level", inL1(t, c))

	p.Refuse()
	p.Cut(false)
	eventually(t, "told of the loss", told.has(cacheaside.KindBusLost, cacheaside.CauseBus, true, "", ""))
	src.set(1, "bea")
	must(t, other.Invalidate(t.Context(), 1)) // c can't hear it
	if n := c.Stats().L1Entries; n != 0 {
		t.Errorf("%d values in the first level; want none", n)
	}
	mustGet(t, c, 1, "bea")
	p.Accept(t)
	eventually(t, "first level in use again", inL1(t, c))
	mustGet(t, c, 1, "bea")
	if n := c.Stats().BusLost; n != 1 {
		t.Errorf("BusLost = %d; want 1", n)
	}
}

// TestBusSilent: when nothing arrives any more although the connection stands,
// no value is served from the first level for longer than MaxStaleness.
func TestBusSilent(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) {
		o.Network, o.Addr, o.Dialer, o.ReadTimeout = "tcp", p.Addr(), nil, 500*time.Millisecond
	})
	src := &source{rows: map[int]string{1: "ann"}}
	const bound = 300 * time.Millisecond
	c, err := cacheaside.New(rdb, "test", src.load, cacheaside.Config{TTL: time.Minute, MaxStaleness: bound})
	must(t, err)
	defer c.Close()
	other := newCache(t, s.Client(), src.load, cacheaside.Config{L1Entries: -1})
	eventually(t, "value in the first level", inL1(t, c))
	time.Sleep(bound) // pings keep it there
	if got := source1(t, c); got != cacheaside.SourceL1 {
		t.Errorf("value from %v; want l1, as the connection is alive", got)
	}

	p.Set(redistest.Fault{Mute: true})
	src.set(1, "bea")
	must(t, other.Invalidate(t.Context(), 1))
	deadline := time.Now().Add(bound)
	first := time.Now().Add(time.Hour) // read after the silence began
	stale := 0
	for {
		asked := time.Now()
		u, err := c.Get(t.Context(), 1)
		must(t, err)
		if first.After(asked) {
			first = time.Now()
		}
		if u.Name == "bea" {
			break
		}
		if asked.After(deadline) {
			t.Fatalf("old value served %v after the invalidation; want at most %v", time.Since(deadline)+bound, bound)
		}
		stale++
		time.Sleep(time.Millisecond)
	}
	if stale == 0 && first.Before(deadline.Add(-bound/2)) {
		t.Error("the old value was never served; the silence was not one")
	}
	p.Clear()
	eventually(t, "first level in use again", inL1(t, c))
}

// TestClientKill: a connection that Redis ends is noticed.
func TestClientKill(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, s.Client(), src.load, cacheaside.Config{})
	eventually(t, "value in the first level", inL1(t, c))
	n, err := s.Client().ClientKillByFilter(t.Context(), "TYPE", "pubsub").Result()
	if err != nil || n == 0 {
		t.Fatalf("killed %d connections, %v; want at least 1", n, err)
	}
	eventually(t, "the loss is noticed", func() bool { return c.Stats().BusLost == 1 })
	eventually(t, "first level in use again", inL1(t, c))
}

// TestCloseLeaksNothing: Close ends all goroutines, in every state of the
// connection.
func TestCloseLeaksNothing(t *testing.T) {
	s := redistest.Start(t)
	ignore := goleak.IgnoreCurrent()
	for _, tt := range []struct {
		name string
		use  func(c *cacheaside.Cache[int, user])
	}{
		{"unused", func(*cacheaside.Cache[int, user]) {}},
		{"used", func(c *cacheaside.Cache[int, user]) { mustGet(t, c, 1, "ann") }},
		{"connected", func(c *cacheaside.Cache[int, user]) { eventually(t, "first level in use", inL1(t, c)) }},
	} {
		rdb := redis.NewClient(&redis.Options{Network: s.Network(), Addr: s.Addr(), DisableIdentity: true, ContextTimeoutEnabled: true})
		src := &source{rows: map[int]string{1: "ann"}}
		c, err := cacheaside.New(rdb, "test", src.load, cacheaside.Config{TTL: time.Minute, Timeout: 5 * time.Second, OnInvalidate: func(cacheaside.Invalidation) {}})
		must(t, err)
		tt.use(c)
		must(t, c.Close())
		must(t, rdb.Close())
		if err := goleak.Find(ignore); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// With nobody there.
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", DisableIdentity: true, ContextTimeoutEnabled: true})
	src := &source{rows: map[int]string{1: "ann"}}
	c, err := cacheaside.New(rdb, "test", src.load, cacheaside.Config{TTL: time.Minute})
	must(t, err)
	mustGet(t, c, 1, "ann")
	c.Invalidate(context.Background(), 1)
	begin := time.Now()
	must(t, c.Close())
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("Close took %v; want little", took)
	}
	must(t, rdb.Close())
	if err := goleak.Find(ignore); err != nil {
		t.Errorf("without a server: %v", err)
	}
}

func TestL1Bounds(t *testing.T) {
	t.Parallel()
	_, rdb := redistest.Mini(t)
	fill := func(c *cacheaside.Cache[int, string]) uint64 {
		t.Helper()
		for key := range 150 {
			_, err := c.Get(t.Context(), key)
			must(t, err)
		}
		return c.Stats().L1Entries
	}
	load := func(context.Context, int) (string, error) { return string(make([]byte, 100)), nil }
	for _, tt := range []struct {
		name string
		cfg  cacheaside.Config
		most uint64
	}{
		{"entries", cacheaside.Config{L1Entries: 50}, 60},
		{"weight", cacheaside.Config{L1Weight: 10_000, Codec: cacheaside.Gob, CompressOver: -1}, 75},
	} {
		c, err := cacheaside.New(rdb, tt.name, load, relaxed(tt.cfg))
		must(t, err)
		eventually(t, "first level in use", func() bool {
			e, err := c.GetEntry(t.Context(), -1)
			return err == nil && e.Source == cacheaside.SourceL1
		})
		if n := fill(c); n == 0 {
			t.Errorf("%s: no values in the first level; want some", tt.name)
		}
		// Evictions are carried out soon after.
		eventually(t, tt.name+": the bound holds", func() bool { return c.Stats().L1Entries <= tt.most })
		must(t, c.Close())
	}
}

// TestL1Bytes: the first level holds no more than its bytes, however few its entries,
// and absent keys count too.
func TestL1Bytes(t *testing.T) {
	t.Parallel()
	_, rdb := redistest.Mini(t)
	const size = 100_000
	big := strings.Repeat("x", size) // compressed to next to nothing
	for _, tt := range []struct {
		name string
		cfg  cacheaside.Config
		key  string // of what is asked for
		most uint64
	}{
		{"default", cacheaside.Config{}, "", 10_000},
		{"values", cacheaside.Config{L1Weight: 2_000_000}, "", 20},
		{"absent keys", cacheaside.Config{L1Weight: 200_000}, "absent" + strings.Repeat("k", 4000), 47},
		{"both", cacheaside.Config{L1Weight: 2_000_000, L1Entries: 5}, "", 5},
	} {
		c, err := cacheaside.New(rdb, "bytes", func(_ context.Context, key string) (string, error) {
			if strings.HasPrefix(key, "absent") {
				return "", cacheaside.ErrNotFound
			}
			return big, nil
		}, relaxed(tt.cfg))
		must(t, err)
		eventually(t, "first level in use", func() bool {
			e, err := c.GetEntry(t.Context(), "first")
			return err == nil && e.Source == cacheaside.SourceL1
		})
		for i := range 60 {
			c.Get(t.Context(), tt.key+strconv.Itoa(i))
		}
		eventually(t, tt.name+": the bound holds", func() bool { return c.Stats().L1Entries <= tt.most })
		if n := c.Stats().L1Entries; n == 0 || tt.name == "default" && n != 61 {
			t.Errorf("%s: %d entries in the first level", tt.name, n)
		}
		must(t, c.Close())
	}
}

func TestL1TTL(t *testing.T) {
	_, rdb := redistest.Mini(t)
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{L1TTL: 50 * time.Millisecond})
	eventually(t, "first level in use", inL1(t, c))
	eventually(t, "asked Redis again", func() bool { return source1(t, c) == cacheaside.SourceRedis })
	if n := src.loads.Load(); n != 1 {
		t.Errorf("%d loads; want 1", n)
	}
}

// TestClone: what a caller does to its value is not seen by others.
func TestClone(t *testing.T) {
	_, rdb := redistest.Mini(t)
	c := newCache(t, rdb, func(context.Context, string) ([]int, error) { return []int{1, 2, 3}, nil }, cacheaside.Config{},
		cacheaside.Funcs[string, []int]{Clone: func(v []int) []int { return append([]int(nil), v...) }})
	sources := map[cacheaside.Source]bool{}
	for end := time.Now().Add(5 * time.Second); !sources[cacheaside.SourceL1] && time.Now().Before(end); {
		e, err := c.GetEntry(t.Context(), "k")
		if err != nil || len(e.Value) != 3 || e.Value[0] != 1 {
			t.Fatalf("GetEntry = %+v, %v; want [1 2 3]", e, err)
		}
		e.Value[0] = 9
		sources[e.Source] = true
	}
	if v, err := c.Get(t.Context(), "k"); err != nil || v[0] != 1 || !sources[cacheaside.SourceL1] {
		t.Errorf("Get = %v, %v after a caller changed its copy from l1 (%v); want [1 2 3]", v, err, sources)
	}
}

// TestBusRefused: a first level that stays empty as SUBSCRIBE is refused is counted and
// told of.
func TestBusRefused(t *testing.T) {
	s := redistest.Start(t, redistest.Set("user", "app on >secret ~* &* +@all -subscribe"))
	rdb := s.Client(func(o *redis.Options) { o.Username, o.Password = "app", "secret" })
	src := &source{rows: map[int]string{1: "ann"}}
	refused := make(chan error, 100)
	c := newCache(t, rdb, src.load, cacheaside.Config{Hooks: cacheaside.Hooks{Error: func(op string, err error) {
		if op == "subscribe" {
			select {
			case refused <- err:
			default:
			}
		}
	}}})
	mustGet(t, c, 1, "ann")
	if err := <-refused; !errors.Is(err, cacheaside.ErrRefused) {
		t.Errorf("Hooks.Error was told %v; want ErrRefused", err)
	}
	if n := c.Stats().BusRefused; n == 0 {
		t.Error("BusRefused = 0; want more")
	}
	if got := source1(t, c); got == cacheaside.SourceL1 {
		t.Error("the first level is used although it hears nothing")
	}
}

// around is a client that somebody has put something around.
type around struct{ redis.UniversalClient }

// shut does not tell what it is around.
type shut struct{ around }

// TestTrackingWrapped: Tracking looks through a type that embeds the client, and refuses
// one that it can't look through.
func TestTrackingWrapped(t *testing.T) {
	s := redistest.Start(t)
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, around{s.Client()}, src.load, cacheaside.Config{Tracking: true})
	eventually(t, "value in the first level", inL1(t, c))
	_, err := cacheaside.New(shut{around{s.Client()}}, "shut", src.load, cacheaside.Config{TTL: time.Minute, Tracking: true})
	if err == nil || !strings.Contains(err.Error(), "Unwrap") {
		t.Errorf("New = %v; want an error that says what to do", err)
	}
}
