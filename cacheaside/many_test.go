package cacheaside_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// squares loads squares, of keys under 1,000,000.
type squares struct {
	single, bulk atomic.Int64
	mu           sync.Mutex
	seen         map[int]int
	largest      int
}

func (s *squares) load(_ context.Context, n int) (int, error) {
	s.single.Add(1)
	if n >= 1_000_000 {
		return 0, cacheaside.ErrNotFound
	}
	return n * n, nil
}

func (s *squares) loadMany(_ context.Context, ns []int) (map[int]int, error) {
	s.bulk.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[int]int{}
	}
	s.largest = max(s.largest, len(ns))
	out := make(map[int]int, len(ns))
	for _, n := range ns {
		s.seen[n]++
		if n < 1_000_000 {
			out[n] = n * n
		}
	}
	return out, nil
}

func upTo(n int) []int {
	keys := make([]int, n)
	for i := range keys {
		keys[i] = i
	}
	return keys
}

func checkSquares(t *testing.T, got map[int]int, err error, keys []int) {
	t.Helper()
	if err != nil {
		t.Fatalf("GetMany: %v", err)
	}
	if len(got) != len(keys) {
		t.Fatalf("GetMany gave %d values; want %d", len(got), len(keys))
	}
	for _, n := range keys {
		if v, ok := got[n]; !ok || v != n*n {
			t.Fatalf("GetMany[%d] = %d, %v; want %d", n, v, ok, n*n)
		}
	}
}

func TestGetMany(t *testing.T) {
	t.Parallel()
	// With a clock, each command on miniredis costs time for each key with a TTL.
	redistest.RunOn(t, redistest.OnMini, func(t *testing.T, rdb redis.UniversalClient) { checkGetMany(t, rdb, 300, 1) })
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) { checkGetMany(t, rdb, 2500, 3) })
}

func checkGetMany(t *testing.T, rdb redis.UniversalClient, size int, bulks int64) {
	t.Helper()
	ctx := t.Context()
	for _, bulk := range []bool{false, true} {
		var s squares
		funcs := cacheaside.Funcs[int, int]{}
		if bulk {
			funcs.LoadMany = s.loadMany
		}
		c := newCache(t, rdb, s.load, cacheaside.Config{L1Entries: -1}, funcs)
		must(t, c.Clear(ctx))
		keys := upTo(size)
		// Repeated keys and absent ones, the second among those cached.
		asked := append(slices.Clone(keys), 7, 7, 1_000_000)
		for range 2 {
			got, err := c.GetMany(ctx, asked)
			checkSquares(t, got, err, keys)
		}
		if bulk {
			if s.single.Load() != 0 || s.bulk.Load() != bulks || s.largest > 1000 {
				t.Errorf("%d single and %d bulk loads of up to %d; want 0 and %d of up to 1,000", s.single.Load(), s.bulk.Load(), s.largest, bulks)
			}
		} else if n := s.single.Load(); n != int64(size+1) {
			t.Errorf("%d loads; want %d", n, size+1)
		}
		if n := c.Stats().NegativeHits; n != 1 {
			t.Errorf("NegativeHits = %d; want 1", n)
		}
	}
}

// TestGetManyShares: concurrent overlapping GetManys and Gets load no key twice.
func TestGetManyShares(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		var s squares
		slow := func(ctx context.Context, ns []int) (map[int]int, error) {
			time.Sleep(20 * time.Millisecond)
			return s.loadMany(ctx, ns)
		}
		load := func(ctx context.Context, n int) (int, error) {
			time.Sleep(20 * time.Millisecond)
			out, _ := s.loadMany(ctx, []int{n})
			return out[n], nil
		}
		cfg := cacheaside.Config{L1Entries: -1}
		funcs := cacheaside.Funcs[int, int]{LoadMany: slow}
		cs := []*cacheaside.Cache[int, int]{newCache(t, rdb, load, cfg, funcs), newCache(t, rdb, load, cfg, funcs)}
		var wg sync.WaitGroup
		for i := range 6 {
			keys := upTo(120)[15*i:]
			wg.Go(func() {
				got, err := cs[i%2].GetMany(ctx, keys)
				checkSquares(t, got, err, keys)
			})
			wg.Go(func() {
				if v, err := cs[i%2].Get(ctx, 100+i); err != nil || v != (100+i)*(100+i) {
					t.Errorf("Get = %d, %v", v, err)
				}
			})
		}
		wg.Wait()
		if twice := slices.Collect(maps.Values(s.seen)); slices.Max(twice) > 1 || len(twice) != 120 {
			t.Errorf("%d keys loaded, one of them %d times; want 120, once each", len(twice), slices.Max(twice))
		}
	})
}

func TestGetManyFails(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		broken := errors.New("broken")
		load := func(_ context.Context, n int) (int, error) {
			if n%2 == 1 {
				return 0, broken
			}
			return n * n, nil
		}
		c := newCache(t, rdb, load, cacheaside.Config{L1Entries: -1})
		got, err := c.GetMany(ctx, upTo(10))
		var me *cacheaside.ManyError[int]
		if !errors.As(err, &me) || len(me.Errs) != 5 || !errors.Is(err, broken) {
			t.Errorf("GetMany error = %v; want a ManyError of 5", err)
		}
		checkSquares(t, got, nil, []int{0, 2, 4, 6, 8})

		for name, many := range map[string]func(context.Context, []int) (map[int]int, error){
			"error":     func(context.Context, []int) (map[int]int, error) { return nil, broken },
			"not found": func(context.Context, []int) (map[int]int, error) { return nil, cacheaside.ErrNotFound },
			"panic":     func(context.Context, []int) (map[int]int, error) { panic(broken) },
		} {
			c := newCache(t, rdb, load, cacheaside.Config{L1Entries: -1}, cacheaside.Funcs[int, int]{LoadMany: many})
			got, err := c.GetMany(ctx, []int{0, 2, 101, 103}) // two cached, two not
			if !errors.As(err, &me) || len(me.Errs) != 2 {
				t.Errorf("%s: GetMany error = %v; want a ManyError of 2", name, err)
			}
			checkSquares(t, got, nil, []int{0, 2})
			noLease(t, rdb, prefix+"101")
		}
	})
}
