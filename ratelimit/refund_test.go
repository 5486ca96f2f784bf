package ratelimit_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// TestRefundBesideReservations gives back by Refund what a reservation holds: its Cancel
// gives back what is left of it, and never what another call took.
func TestRefundBesideReservations(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range five(100) {
			if name == "Concurrency" { // no Refund ends a lease
				continue
			}
			if name == "FixedWindow" {
				p = p.Aligned(0) // the same window comes again when it was emptied
			}
			l := newLimiter(t, rdb, ratelimit.Config{}, p)
			for _, c := range []struct {
				key           string
				before, after int64 // taken by others
				refund, later int64
				want          int64 // used, of 3 that were reserved and the others' units
			}{
				{"all of it", 0, 0, 3, 2, 2},
				{"a part", 5, 0, 1, 0, 5},
				{"a part, and then others", 5, 0, 2, 4, 9},
				{"of others", 5, 4, 4, 0, 5},
				{"of others and a part", 5, 1, 2, 7, 12},
				{"nothing of it, again and again", 5, 2, 1, 0, 6},
			} {
				key := name + c.key
				take := func(n int64) {
					if r, err := l.AllowN(t.Context(), key, n); err != nil || !r.Allowed {
						t.Fatalf("%s, %s: AllowN(%d) = %+v, %v", name, c.key, n, r, err)
					}
				}
				take(c.before)
				r, err := l.Reserve(t.Context(), key, 3)
				if err != nil || !r.Allowed {
					t.Fatalf("%s, %s: Reserve = %+v, %v", name, c.key, r.Result, err)
				}
				take(c.after)
				if err := l.Refund(t.Context(), key, c.refund); err != nil {
					t.Fatal(err)
				}
				take(c.later)
				if err := r.Cancel(t.Context()); err != nil {
					t.Fatal(err)
				}
				want := c.want
				if name == "TokenBucket" { // there those were given back that would drain next
					want = c.before + c.after + c.later - min(c.before, c.refund)
				}
				if used := 100 - remaining(t, l, key); used != want {
					t.Errorf("%s, %s: %d used; want %d", name, c.key, used, want)
				}
			}
		}
	})
}
