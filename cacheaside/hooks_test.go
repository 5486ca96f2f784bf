package cacheaside_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// recorder collects invalidations.
type recorder struct {
	mu  sync.Mutex
	all []cacheaside.Invalidation
}

func (r *recorder) add(inv cacheaside.Invalidation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, inv)
}

func (r *recorder) has(kind cacheaside.InvalidationKind, cause cacheaside.Cause, remote bool, keys, tags string) func() bool {
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.ContainsFunc(r.all, func(inv cacheaside.Invalidation) bool {
			return inv.Kind == kind && inv.Cause == cause && inv.Remote == remote &&
				strings.Join(inv.Keys, ",") == keys && strings.Join(inv.Tags, ",") == tags
		})
	}
}

func TestOnInvalidate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann"}}
		var here, there recorder
		c := newCache(t, rdb, src.load, cacheaside.Config{OnInvalidate: here.add})
		// The other has no first level, and is told nevertheless.
		other := newCache(t, rdb, src.load, cacheaside.Config{OnInvalidate: there.add, L1Entries: -1})
		// Its connection is set up when it hears something.
		eventually(t, "other listens", func() bool {
			must(t, c.Invalidate(ctx, 7))
			return there.has(cacheaside.KindKeys, cacheaside.CauseInvalidate, true, "7", "")()
		})
		_ = other

		must(t, c.Invalidate(ctx, 1))
		must(t, c.InvalidateTags(ctx, "blue"))
		must(t, c.Set(ctx, 2, user{2, "bob"}))
		must(t, c.Update(ctx, func(context.Context) error { return nil }, 3))
		must(t, c.Clear(ctx))
		for _, tt := range []struct {
			kind       cacheaside.InvalidationKind
			cause      cacheaside.Cause
			keys, tags string
		}{
			{cacheaside.KindKeys, cacheaside.CauseInvalidate, "1", ""},
			{cacheaside.KindKeys, cacheaside.CauseInvalidate, "", "blue"},
			{cacheaside.KindKeys, cacheaside.CauseSet, "2", ""},
			{cacheaside.KindKeys, cacheaside.CauseUpdate, "3", ""},
			{cacheaside.KindClear, cacheaside.CauseInvalidate, "", ""},
		} {
			what := tt.kind.String() + " by " + tt.cause.String()
			eventually(t, what+" here", here.has(tt.kind, tt.cause, false, tt.keys, tt.tags))
			eventually(t, what+" there", there.has(tt.kind, tt.cause, true, tt.keys, tt.tags))
		}
	})
}

func TestBeforeInvalidate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		src := &source{rows: map[int]string{1: "ann", 2: "bob", 3: "cid"}}
		legal := errors.New("legal hold")
		var after []string
		c := newCache(t, rdb, src.load, cacheaside.Config{Hooks: cacheaside.Hooks{
			BeforeInvalidate: func(_ context.Context, inv *cacheaside.Invalidation) error {
				if slices.Contains(inv.Keys, "3") {
					return legal
				}
				if slices.Contains(inv.Keys, "1") { // cascade
					inv.Keys = append(inv.Keys, "2")
				}
				return nil
			},
			AfterInvalidate: func(_ context.Context, inv cacheaside.Invalidation, err error) {
				outcome := "ok"
				if err != nil {
					outcome = "failed"
				}
				after = append(after, strings.Join(inv.Keys, ",")+" "+outcome)
			},
		}})
		for id, name := range src.rows {
			mustGet(t, c, id, name)
		}
		src.set(1, "Ann")
		src.set(2, "Bob")
		src.set(3, "Cid")
		must(t, c.Invalidate(ctx, 1))
		mustGet(t, c, 1, "Ann")
		mustGet(t, c, 2, "Bob")
		if err := c.Invalidate(ctx, 3); !errors.Is(err, legal) || !errors.Is(err, cacheaside.ErrVetoed) {
			t.Errorf("Invalidate = %v; want the veto", err)
		}
		if err := c.Update(ctx, func(context.Context) error { t.Error("written in spite of the veto"); return nil }, 3); !errors.Is(err, legal) {
			t.Errorf("Update = %v; want the veto", err)
		}
		mustGet(t, c, 3, "cid")
		if want := []string{"1,2 ok", "3 failed", "3 failed"}; !slices.Equal(after, want) {
			t.Errorf("AfterInvalidate was told %q; want %q", after, want)
		}
	})
}

// TestHookPanics: a hook that panics harms nobody.
func TestHookPanics(t *testing.T) {
	_, rdb := redistest.Mini(t)
	ctx := t.Context()
	src := &source{rows: map[int]string{1: "ann"}}
	var told atomic.Int64
	c := newCache(t, rdb, src.load, cacheaside.Config{
		OnInvalidate: func(cacheaside.Invalidation) { told.Add(1); panic("OnInvalidate") },
		Hooks: cacheaside.Hooks{
			Load:            func(cacheaside.LoadEvent) { panic("Load") },
			Fill:            func(cacheaside.FillEvent) { panic("Fill") },
			Error:           func(string, error) { panic("Error") },
			AfterInvalidate: func(context.Context, cacheaside.Invalidation, error) { panic("AfterInvalidate") },
		},
	}, cacheaside.Funcs[int, user]{
		Tags:    func(int) []string { panic("Tags") },
		Version: func(user) uint64 { panic("Version") },
	})
	mustGet(t, c, 1, "ann")
	mustGet(t, c, 1, "ann")
	must(t, rdb.Set(ctx, prefix+"1", "rubbish", 0).Err())
	must(t, c.Invalidate(ctx, 1))
	must(t, c.Invalidate(ctx, 1))
	eventually(t, "OnInvalidate survives its panics", func() bool { return told.Load() == 2 })
	if n := c.Stats().HookPanics; n < 5 {
		t.Errorf("HookPanics = %d; want one for each", n)
	}

	veto := newCache(t, rdb, src.load, cacheaside.Config{Hooks: cacheaside.Hooks{
		BeforeInvalidate: func(context.Context, *cacheaside.Invalidation) error { panic("before") }}})
	if err := veto.Invalidate(ctx, 1); !errors.Is(err, cacheaside.ErrVetoed) {
		t.Errorf("Invalidate = %v; want ErrVetoed, as the hook did not agree", err)
	}
}

// TestOnInvalidateFallsBehind: requests don't wait for a slow hook.
func TestOnInvalidateFallsBehind(t *testing.T) {
	t.Parallel()
	_, rdb := redistest.Mini(t)
	hold := make(chan struct{})
	src := &source{}
	c := newCache(t, rdb, src.load, cacheaside.Config{OnInvalidate: func(cacheaside.Invalidation) { <-hold }})
	for range 1100 {
		must(t, c.Invalidate(t.Context(), 1))
	}
	close(hold)
	if n := c.Stats().HookDropped; n < 70 || n > 76 {
		t.Errorf("HookDropped = %d; want 75 or so of 1,100", n)
	}
}

func TestLoadAndFillHooks(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var mu sync.Mutex
		var told []string
		add := func(s string) { mu.Lock(); told = append(told, s); mu.Unlock() }
		src := &source{rows: map[int]string{1: "ann"}}
		refuse := false
		c := newCache(t, rdb, func(ctx context.Context, id int) (user, error) {
			if refuse {
				must(t, rdb.Del(ctx, prefix+"1").Err())
			}
			return src.load(ctx, id)
		}, cacheaside.Config{L1Entries: -1, Hooks: cacheaside.Hooks{
			Load: func(e cacheaside.LoadEvent) {
				if e.Err != nil {
					add("load failed")
				} else {
					add("load")
				}
			},
			Fill: func(e cacheaside.FillEvent) {
				if e.Accepted {
					add("filled")
				} else {
					add("refused")
				}
			},
		}})
		mustGet(t, c, 1, "ann")
		must(t, c.Invalidate(t.Context(), 1))
		refuse = true
		mustGet(t, c, 1, "ann")
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"load", "filled", "load", "refused"}; !slices.Equal(told, want) {
			t.Errorf("told %q; want %q", told, want)
		}
	})
}
