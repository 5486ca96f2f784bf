package cacheaside_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

type user struct {
	ID   int
	Name string
}

// source is a database of one table, with a version that every write raises.
type source struct {
	mu    sync.Mutex
	rows  map[int]string
	loads atomic.Int64
	delay time.Duration
}

func (s *source) set(id int, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows == nil {
		s.rows = map[int]string{}
	}
	s.rows[id] = name
}

func (s *source) load(ctx context.Context, id int) (user, error) {
	s.loads.Add(1)
	s.mu.Lock()
	name, ok := s.rows[id]
	s.mu.Unlock()
	if s.delay > 0 {
		time.Sleep(s.delay)
	}
	if !ok {
		return user{}, fmt.Errorf("user: %w", cacheaside.ErrNotFound)
	}
	return user{id, name}, nil
}

// relaxed is a config for tests that are not about timeouts: the machine may be
// slow.
func relaxed(cfg cacheaside.Config) cacheaside.Config {
	if cfg.TTL == 0 {
		cfg.TTL = time.Minute
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	return cfg
}

func newCache[K comparable, V any](t testing.TB, rdb redis.UniversalClient, load func(context.Context, K) (V, error), cfg cacheaside.Config, more ...cacheaside.Funcs[K, V]) *cacheaside.Cache[K, V] {
	t.Helper()
	c, err := cacheaside.New(rdb, "test", load, relaxed(cfg), more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10s: %s", what)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestGet(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1})
		for i, want := range []cacheaside.Source{cacheaside.SourceLoader, cacheaside.SourceRedis} {
			e, err := c.GetEntry(ctx, 1)
			if err != nil || e.Value != (user{1, "ann"}) || e.Source != want {
				t.Fatalf("GetEntry #%d = %+v, %v; want ann from %v", i, e, err, want)
			}
			if e.TTL <= 50*time.Second || e.TTL > time.Minute || e.Age > 5*time.Second {
				t.Errorf("GetEntry #%d: TTL %v, Age %v; want about a minute, and about nothing", i, e.TTL, e.Age)
			}
		}
		src.set(1, "bea")
		must(t, c.Invalidate(ctx, 1))
		if u, err := c.Get(ctx, 1); err != nil || u.Name != "bea" {
			t.Fatalf("Get after Invalidate = %+v, %v; want bea", u, err)
		}
		if n := src.loads.Load(); n != 2 {
			t.Errorf("loads = %d; want 2", n)
		}
		// Not found is an answer, and cached like one.
		for i, want := range []cacheaside.Source{cacheaside.SourceLoader, cacheaside.SourceNegative} {
			e, err := c.GetEntry(ctx, 9)
			if !errors.Is(err, cacheaside.ErrNotFound) || e.Source != want {
				t.Errorf("GetEntry(9) #%d = %v, %v; want ErrNotFound from %v", i, e.Source, err, want)
			}
		}
		if n := src.loads.Load(); n != 3 {
			t.Errorf("loads = %d; want 3", n)
		}
	})
}

func TestOneLoad(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}, delay: 30 * time.Millisecond}
		a := newCache(t, rdb, src.load, cacheaside.Config{})
		b := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1}) // as in another process
		var wg sync.WaitGroup
		for range 100 {
			for _, c := range []*cacheaside.Cache[int, user]{a, b} {
				wg.Go(func() {
					if u, err := c.Get(t.Context(), 1); err != nil || u.Name != "ann" {
						t.Errorf("Get = %+v, %v; want ann", u, err)
					}
				})
			}
		}
		wg.Wait()
		if n := src.loads.Load(); n != 1 {
			t.Errorf("loads = %d; want 1", n)
		}
	})
}

func TestL1(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		a := newCache(t, rdb, src.load, cacheaside.Config{})
		b := newCache(t, rdb, src.load, cacheaside.Config{})
		inL1 := func(c *cacheaside.Cache[int, user], name string) func() bool {
			return func() bool {
				e, err := c.GetEntry(ctx, 1)
				return err == nil && e.Source == cacheaside.SourceL1 && e.Value.Name == name
			}
		}
		eventually(t, "value in a's first level", inL1(a, "ann"))
		eventually(t, "value in b's first level", inL1(b, "ann"))

		src.set(1, "bea")
		must(t, a.Invalidate(ctx, 1))
		if u, err := a.Get(ctx, 1); err != nil || u.Name != "bea" {
			t.Fatalf("a.Get = %+v, %v; want its own invalidation to be seen at once", u, err)
		}
		eventually(t, "new value in b", inL1(b, "bea"))
		if n := src.loads.Load(); n != 2 {
			t.Errorf("loads = %d; want 2", n)
		}
	})
}
