package ratelimit_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// Denied says of a call what AllowN would, if that needs no Redis; and nobody hears of it.
func TestDenied(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		told := 0
		p := ratelimit.FixedWindow("api", 3, time.Hour)
		hooks := ratelimit.Hooks{OnDecision: func(ratelimit.Decision) { told++ }}
		l := newLimiter(t, rdb, ratelimit.Config{Hooks: hooks}, p)
		forgetful := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, p)
		if l.Denied("k", 1) || l.Denied("k", 4) {
			t.Error("Denied of what nobody asked = true; want false")
		}
		for range 2 {
			if _, err := l.AllowN(t.Context(), "k", 2); err != nil {
				t.Fatal(err)
			}
		}
		before := told
		n := redistest.Count(t, rdb, func() {
			for cost, want := range map[int64]bool{-1: false, 0: false, 1: false, 2: true, 3: true} {
				if got := l.Denied("k", cost); got != want {
					t.Errorf("Denied(%d) with 1 of 3 left = %t; want %t", cost, got, want)
				}
			}
			if l.Denied("other", 2) || forgetful.Denied("k", 2) {
				t.Error("Denied of another key, or without a cache = true; want false")
			}
		})
		if n.Total != 0 || told != before {
			t.Errorf("Denied sent %v and told the hook %d times; want neither", n, told-before)
		}
		if err := l.Reset(t.Context(), "k"); err != nil || l.Denied("k", 2) {
			t.Errorf("Denied after a Reset (%v) = true; want false", err)
		}
	})
}
