package cacheaside_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// calls are the ways to read a key, with what each does when it is not cached.
var calls = map[string]func(ctx context.Context, c *cacheaside.Cache[string, string]) (string, error){
	"Get": func(ctx context.Context, c *cacheaside.Cache[string, string]) (string, error) { return c.Get(ctx, "k") },
	"Refresh": func(ctx context.Context, c *cacheaside.Cache[string, string]) (string, error) {
		return c.Refresh(ctx, "k")
	},
	"GetMany": getManyOne,
	"bulk":    getManyOne,
}

func getManyOne(ctx context.Context, c *cacheaside.Cache[string, string]) (string, error) {
	m, err := c.GetMany(ctx, []string{"k"})
	var many *cacheaside.ManyError[string]
	if errors.As(err, &many) {
		err = many.Errs["k"]
	}
	if v, ok := m["k"]; ok || err != nil {
		return v, err
	}
	return "", cacheaside.ErrNotFound
}

// bulked returns funcs whose LoadMany, for the call named bulk, is load in a loop.
func bulked(call string, load func(context.Context, string) (string, error), funcs cacheaside.Funcs[string, string]) cacheaside.Funcs[string, string] {
	if call == "bulk" {
		funcs.LoadMany = func(ctx context.Context, keys []string) (map[string]string, error) {
			out := map[string]string{}
			for _, key := range keys {
				v, err := load(ctx, key)
				if errors.Is(err, cacheaside.ErrNotFound) {
					continue
				}
				if err != nil {
					return nil, err
				}
				out[key] = v
			}
			return out, nil
		}
	}
	return funcs
}

// TestOneRule: by whatever channel a key is invalidated, and by whichever process, a load
// that began before answers nobody who came after.
func TestOneRule(t *testing.T) {
	t.Parallel()
	channels := map[string]func(context.Context, *cacheaside.Cache[string, string]) error{
		"key": func(ctx context.Context, c *cacheaside.Cache[string, string]) error { return c.Invalidate(ctx, "k") },
		"tag": func(ctx context.Context, c *cacheaside.Cache[string, string]) error {
			return c.InvalidateTags(ctx, "g")
		},
		"Clear": func(ctx context.Context, c *cacheaside.Cache[string, string]) error { return c.Clear(ctx) },
		"Update": func(ctx context.Context, c *cacheaside.Cache[string, string]) error {
			return c.Update(ctx, func(context.Context) error { return nil }, "k")
		},
	}
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for channel, invalidate := range channels {
			for name, call := range calls {
				for _, where := range []string{"here", "there"} {
					g := newGate("old")
					funcs := bulked(name, g.load, cacheaside.Funcs[string, string]{Tags: func(string) []string { return []string{"f", "g"} }})
					c := newCache(t, rdb, g.load, cacheaside.Config{L1Entries: -1}, funcs)
					other := newCache(t, rdb, g.load, cacheaside.Config{L1Entries: -1}, funcs)
					must(t, c.Invalidate(t.Context(), "k"))
					first := make(chan got, 1)
					go func() { v, err := call(t.Context(), c); first <- got{v, err} }()
					<-g.began
					g.value.Store("new")
					if where == "here" {
						must(t, invalidate(t.Context(), c))
					} else {
						must(t, invalidate(t.Context(), other))
					}
					second := make(chan got, 1)
					go func() { v, err := call(t.Context(), c); second <- got{v, err} }()
					for range 20 { // it gets a seat, which nothing tells
						runtime.Gosched()
						time.Sleep(100 * time.Microsecond)
					}
					for range 4 {
						g.pass <- struct{}{}
					}
					if a := <-first; a.err != nil {
						t.Errorf("%s, %s, %s: first: %v", channel, name, where, a.err)
					}
					if a := <-second; a.err != nil || a.v != "new" {
						t.Errorf("%s, %s, %s: who came after the invalidation got %q, %v; want new", channel, name, where, a.v, a.err)
					}
					must(t, c.Close())
					must(t, other.Close())
				}
			}
		}
	})
}

// TestAnswers is one table of what each way to read a key does with what its loader says.
func TestAnswers(t *testing.T) {
	down := errors.New("down")
	noRows := errors.New("no rows")
	for name, call := range calls {
		for _, tt := range []struct {
			what  string
			v     string
			err   error
			want  error
			calls int64 // of the loader, for two calls; of Refresh always 2
		}{
			{"value", "v", nil, nil, 1},
			{"not found", "", cacheaside.ErrNotFound, cacheaside.ErrNotFound, 1},
			{"mapped", "", noRows, cacheaside.ErrNotFound, 1},
			{"error", "", down, down, 2},
		} {
			if name == "bulk" && tt.what == "mapped" {
				continue // a bulk load leaves out what it did not find
			}
			t.Run(name+" "+tt.what, func(t *testing.T) {
				_, rdb := redistest.Mini(t)
				var loads atomic.Int64
				load := func(context.Context, string) (string, error) { loads.Add(1); return tt.v, tt.err }
				cloned := 0
				funcs := bulked(name, load, cacheaside.Funcs[string, string]{Clone: func(v string) string {
					if v == "" {
						t.Error("Clone was called on nothing")
					}
					cloned++
					return v
				}})
				c := newCache(t, rdb, load, cacheaside.Config{NotFound: []error{noRows}, L1Entries: -1}, funcs)
				for range 2 {
					v, err := call(t.Context(), c)
					if v != tt.v || !errors.Is(err, tt.want) {
						t.Errorf("= %q, %v; want %q, %v", v, err, tt.v, tt.want)
					}
				}
				want := tt.calls
				if name == "Refresh" {
					want = 2
				}
				if n := loads.Load(); n != want {
					t.Errorf("%d loads; want %d", n, want)
				}
			})
		}
		// A value past its time stands in for a load that fails, or takes long.
		if name == "Refresh" {
			continue
		}
		t.Run(name+" stale", func(t *testing.T) {
			_, rdb := redistest.Mini(t)
			g := newGate("old")
			cfg := cacheaside.Config{TTL: 10 * time.Millisecond, StaleIfError: time.Hour, SoftTimeout: 20 * time.Millisecond, LoadTimeout: time.Minute, L1Entries: -1, EarlyRefresh: -1, Jitter: -1, ErrorBackoff: -1}
			c := newCache(t, rdb, g.load, cfg, bulked(name, g.load, cacheaside.Funcs[string, string]{}))
			g.pass <- struct{}{}
			_, err := call(t.Context(), c)
			must(t, err)
			time.Sleep(15 * time.Millisecond)
			if v, err := call(t.Context(), c); err != nil || v != "old" {
				t.Errorf("beyond SoftTimeout: %q, %v; want old", v, err)
			}
			if n := g.loads.Load(); n != 2 {
				t.Errorf("%d loads; want 2, of which one goes on", n)
			}
			g.pass <- struct{}{}
		})
	}
}

// TestBulkFailure: where a bulk load fails, or a part of it, no key is loaded alone.
func TestBulkFailure(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		down := errors.New("down")
		single := func(context.Context, int) (int, error) { t.Error("a key was loaded alone"); return 0, down }
		for _, stale := range []time.Duration{0, time.Hour} {
			var bulks atomic.Int64
			c := newCache(t, rdb, single, cacheaside.Config{StaleIfError: stale, L1Entries: -1}, cacheaside.Funcs[int, int]{
				LoadMany: func(context.Context, []int) (map[int]int, error) { bulks.Add(1); return nil, down }})
			_, err := c.GetMany(t.Context(), upTo(50))
			var many *cacheaside.ManyError[int]
			if !errors.As(err, &many) || len(many.Errs) != 50 || bulks.Load() != 1 {
				t.Errorf("GetMany: %v after %d bulk loads; want 50 errors after one", err, bulks.Load())
			}
		}
		part := newCache(t, rdb, single, cacheaside.Config{L1Entries: -1}, cacheaside.Funcs[int, int]{
			LoadMany: func(context.Context, []int) (map[int]int, error) {
				return map[int]int{101: 1}, &cacheaside.ManyError[int]{Errs: map[int]error{102: down}}
			}})
		got, err := part.GetMany(t.Context(), []int{101, 102, 103})
		var many *cacheaside.ManyError[int]
		if !errors.As(err, &many) || len(many.Errs) != 1 || !errors.Is(many.Errs[102], down) || len(got) != 1 || got[101] != 1 {
			t.Errorf("GetMany = %v, %v; want 101, and an error for 102", got, err)
		}
	})
}

// TestBulkAfterFailure: keys that another process' bulk load failed for are loaded in
// bulk.
func TestBulkAfterFailure(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		single := func(context.Context, int) (int, error) { t.Error("a key was loaded alone"); return 0, nil }
		began, fail := make(chan struct{}), make(chan struct{})
		a := newCache(t, rdb, single, cacheaside.Config{}, cacheaside.Funcs[int, int]{LoadMany: func(context.Context, []int) (map[int]int, error) {
			close(began)
			<-fail
			return nil, errors.New("deadlock")
		}})
		var s squares
		b := newCache(t, rdb, single, cacheaside.Config{}, cacheaside.Funcs[int, int]{LoadMany: s.loadMany})
		failed := make(chan error, 1)
		go func() { _, err := a.GetMany(t.Context(), upTo(300)); failed <- err }()
		<-began
		done := make(chan struct{})
		go func() {
			defer close(done)
			got, err := b.GetMany(t.Context(), upTo(300))
			checkSquares(t, got, err, upTo(300))
		}()
		eventually(t, "b waits", func() bool { return b.Stats().Misses == 300 })
		close(fail)
		<-done
		if err := <-failed; err == nil {
			t.Error("a: no error")
		}
		if n := s.bulk.Load(); n > 8 {
			t.Errorf("%d bulk loads of 300 keys; want few", n)
		}
	})
}

// TestGetManyLeaves: a caller who goes leaves at most 32 loads behind, and none begins.
func TestGetManyLeaves(t *testing.T) {
	_, rdb := redistest.Mini(t)
	var now, most, loads atomic.Int64
	hold := make(chan struct{})
	c := newCache(t, rdb, func(context.Context, int) (int, error) {
		loads.Add(1)
		for n, m := now.Add(1), most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-hold
		now.Add(-1)
		return 1, nil
	}, cacheaside.Config{LoadTimeout: time.Minute})
	gone, cancel := context.WithCancel(t.Context())
	answered := make(chan error)
	go func() { _, err := c.GetMany(gone, upTo(300)); answered <- err }()
	eventually(t, "32 loads", func() bool { return now.Load() == 32 })
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("GetMany = %.100v; want context.Canceled", err)
	}
	close(hold)
	eventually(t, "the loads end", func() bool { return now.Load() == 0 })
	if _, err := c.GetMany(gone, upTo(300)); !errors.Is(err, context.Canceled) {
		t.Errorf("GetMany with a context that has ended = %.100v", err)
	}
	if loads.Load() != 32 || most.Load() != 32 {
		t.Errorf("%d loads, %d at once; want 32", loads.Load(), most.Load())
	}
}

// awaiting counts the goroutines that wait for a load.
func awaiting() int {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "]).await(")
}

// TestRefreshCoalesced: calls of Refresh for a key share loads that began after them.
func TestRefreshCoalesced(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		g := newGate("v")
		c := newCache(t, rdb, g.load, cacheaside.Config{})
		must(t, c.Set(t.Context(), "k", "old"))
		var wg sync.WaitGroup
		refresh := func() {
			wg.Go(func() {
				if v, err := c.Refresh(t.Context(), "k"); err != nil || v != "v" {
					t.Errorf("Refresh = %q, %v; want v", v, err)
				}
			})
		}
		refresh()
		<-g.began
		for range 50 {
			refresh()
		}
		eventually(t, "all wait for a load", func() bool { return awaiting() >= 51 })
		for range 100 {
			g.pass <- struct{}{}
		}
		wg.Wait()
		if n := g.loads.Load(); n != 2 {
			t.Errorf("%d loads for 51 calls; want 2", n)
		}
	})
}

// TestUncachedSideBySide: where outcomes are not cached, processes don't queue: who
// waited for one load has one of his own.
func TestUncachedSideBySide(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, tt := range []struct {
			what, v string
			err     error
		}{
			{"an error", "", errors.New("away")},
			{"a value above MaxValue", strings.Repeat("x", 100), nil},
			{"absence", "", cacheaside.ErrNotFound},
		} {
			// The others see what came of the first load if they look within 150 ms, which a
			// busy machine may keep them from.
			together := false
			for round := 0; round < 10 && !together; round++ {
				together = sideBySide(t, rdb, fmt.Sprint(tt.what, round), tt.v, tt.err)
			}
			if !together {
				t.Errorf("%s: the others queue for one load after another", tt.what)
			}
		}
	})
}

// sideBySide has five processes get a key, and reports whether four loaded at once when the
// load of the first had ended.
func sideBySide(t *testing.T, rdb redis.UniversalClient, key, v string, err error) bool {
	began, pass := make(chan struct{}, 10), make(chan struct{})
	load := func(context.Context, string) (string, error) {
		began <- struct{}{}
		<-pass
		return v, err
	}
	const processes = 5
	answers := make(chan got, processes)
	for range processes {
		c := newCache(t, rdb, load, cacheaside.Config{LoadTimeout: time.Minute, MaxValue: 50, NegativeTTL: -1})
		go func() { v, err := c.Get(t.Context(), key); answers <- got{v, err} }()
	}
	check := func() {
		if a := <-answers; a.v != v || !errors.Is(a.err, err) {
			t.Errorf("%s: Get = %.9q, %v", key, a.v, a.err)
		}
	}
	<-began
	pass <- struct{}{}
	check()
	together := true
	for range processes - 1 { // all of them load at once
		select {
		case <-began:
		case <-time.After(2 * time.Second):
			together = false
		}
		if !together {
			break
		}
	}
	close(pass)
	for range processes - 1 {
		check()
	}
	return together
}

// TestGoexit: a function of the app that ends its goroutine, as FailNow of a test does,
// costs at most the answer it was called for.
func TestGoexit(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"Load", "Fill", "Error", "Marshal", "Unmarshal", "Version", "TTL", "Clone", "OnInvalidate", "loader"} {
		t.Run(where, func(t *testing.T) {
			_, rdb := redistest.Mini(t)
			var left atomic.Bool
			leave := func(w string) {
				if w == where && !left.Swap(true) {
					runtime.Goexit()
				}
			}
			var told atomic.Int64
			cfg := cacheaside.Config{L1Entries: -1, LoadTimeout: time.Minute, MaxValue: 1000,
				OnInvalidate: func(cacheaside.Invalidation) { told.Add(1); leave("OnInvalidate") },
				Hooks: cacheaside.Hooks{
					Load:  func(cacheaside.LoadEvent) { leave("Load") },
					Fill:  func(cacheaside.FillEvent) { leave("Fill") },
					Error: func(string, error) { leave("Error") }},
				Codec: cacheaside.CodecFuncs("json",
					func(v any) ([]byte, error) { leave("Marshal"); return json.Marshal(v) },
					func(b []byte, v any) error { leave("Unmarshal"); return json.Unmarshal(b, v) })}
			c := newCache(t, rdb, func(_ context.Context, k string) (string, error) {
				leave("loader")
				if k == "bad" {
					return "", errors.New("bad")
				}
				return "v", nil
			}, cfg, cacheaside.Funcs[string, string]{
				Version: func(string) uint64 { leave("Version"); return 1 },
				TTL:     func(string) time.Duration { leave("TTL"); return time.Minute },
				Clone:   func(v string) string { leave("Clone"); return v },
			})
			for i := range 6 {
				done := make(chan struct{})
				go func() { // the caller's goroutine may end
					defer close(done)
					key := "k"
					if i == 0 {
						key = "bad"
					}
					c.Get(t.Context(), key)
					c.Invalidate(t.Context(), "other")
				}()
				select {
				case <-done:
				case <-time.After(20 * time.Second):
					t.Fatalf("Get #%d hangs", i)
				}
			}
			if v, err := c.Get(t.Context(), "k"); err != nil || v != "v" {
				t.Errorf("Get = %q, %v; want v", v, err)
			}
			if !left.Load() {
				t.Error("the function was not called")
			}
			eventually(t, "OnInvalidate goes on", func() bool { return told.Load() >= 5 })
		})
	}
}

// TestTagOrder: tags are a set.
func TestTagOrder(t *testing.T) {
	_, rdb := redistest.Mini(t)
	var n atomic.Int64
	src := &source{rows: map[int]string{1: "ann"}}
	orders := [][]string{{"a", "b", "c"}, {"c", "a", "b"}, {"b", "b", "c", "a"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1}, cacheaside.Funcs[int, user]{Tags: func(id int) []string {
		if id != 1 {
			t.Errorf("Tags was called with %d", id)
		}
		return orders[int(n.Add(1))%len(orders)]
	}})
	for range 9 {
		mustGet(t, c, 1, "ann")
	}
	if n := src.loads.Load(); n != 1 {
		t.Errorf("%d loads; want 1", n)
	}
	if !slices.Equal(orders[1], []string{"c", "a", "b"}) {
		t.Errorf("the app's slice became %v", orders[1])
	}
}

// TestNestedNames: caches whose names run into the same key don't answer for each
// other.
func TestNestedNames(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		of := func(s string) func(context.Context, string) (string, error) {
			return func(context.Context, string) (string, error) { return s, nil }
		}
		outer, err := cacheaside.New(rdb, "b", of("outer"), relaxed(cacheaside.Config{Prefix: "a:", L1Entries: -1}))
		must(t, err)
		defer outer.Close()
		inner, err := cacheaside.New(rdb, "c", of("inner"), relaxed(cacheaside.Config{Prefix: "a:b:", L1Entries: -1}))
		must(t, err)
		defer inner.Close()
		for range 2 {
			if v, err := outer.Get(t.Context(), "c:1"); err != nil || v != "outer" {
				t.Errorf("outer: %q, %v", v, err)
			}
			if v, err := inner.Get(t.Context(), "1"); err != nil || v != "inner" {
				t.Errorf("inner: %q, %v", v, err)
			}
		}
	})
}

// TestRefusedFill: what is known of a value that was not cached.
func TestRefusedFill(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newCache(t, rdb, func(ctx context.Context, k string) (func(), error) {
			rdb.Del(ctx, prefix+k)
			return func() {}, nil
		}, cacheaside.Config{L1Entries: -1})
		e, err := c.GetEntry(t.Context(), "k") // the codec refuses it
		if s := c.Stats(); err != nil || e.TTL != 0 || s.Uncacheable != 1 {
			t.Errorf("GetEntry = TTL %v, %v with Uncacheable %d; want 0 and 1", e.TTL, err, s.Uncacheable)
		}
		d := newCache(t, rdb, func(ctx context.Context, k string) (int, error) { return 1, rdb.Del(ctx, prefix+k).Err() }, cacheaside.Config{L1Entries: -1})
		if e, err := d.GetEntry(t.Context(), "d"); err != nil || e.TTL != 0 || d.Stats().FillsRefused != 1 {
			t.Errorf("GetEntry after a refused fill = TTL %v, %v; want 0", e.TTL, err)
		}
	})
}

// TestTTLOfValue: a value may say how long it is fresh, and a loader may say that it
// still is.
func TestTTLOfValue(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		version := "1"
		c := newCache(t, rdb, func(ctx context.Context, k string) (string, error) {
			if old, ok := cacheaside.Previous[string](ctx); ok {
				if old.Value == k+version {
					return "", fmt.Errorf("304: %w", cacheaside.ErrNotModified)
				}
				if !strings.HasPrefix(old.Value, k) {
					t.Errorf("Previous is %q; want a value of %q", old.Value, k)
				}
			}
			return k + version, nil
		}, cacheaside.Config{TTL: time.Hour, Jitter: -1, L1Entries: -1}, cacheaside.Funcs[string, string]{TTL: func(v string) time.Duration {
			if v[0] == 's' {
				return 10 * time.Second
			}
			return 0
		}})
		for key, want := range map[string]time.Duration{"short": 10 * time.Second, "usual": time.Hour} {
			if e, err := c.GetEntry(ctx, key); err != nil || e.TTL != want {
				t.Errorf("%s: TTL %v, %v; want %v", key, e.TTL, err, want)
			}
			if v, err := c.Refresh(ctx, key); err != nil || v != key+"1" {
				t.Errorf("%s: Refresh of what has not changed = %q, %v", key, v, err)
			}
		}
		version = "2"
		if v, err := c.Refresh(ctx, "usual"); err != nil || v != "usual2" {
			t.Errorf("Refresh of what has changed = %q, %v", v, err)
		}
	})
}
