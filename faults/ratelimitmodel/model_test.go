// Package ratelimitmodel compares package ratelimit with a model of its page.
package ratelimitmodel

import (
	"flag"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/limitmodel"
	"github.com/redporch/redporch/internal/redistest"
)

var (
	steps = flag.Int("steps", 3500, "steps of each history")
	seeds = flag.Uint64("seeds", 12, "histories of each kind")
	first = flag.Uint64("seed", 1, "the first seed")
)

// size is how many histories of a kind, of how many steps; under -short a few.
func size() (uint64, int) {
	if testing.Short() {
		return min(*seeds, 2), min(*steps, 500)
	}
	return *seeds, *steps
}

func TestMain(m *testing.M) { redistest.Main(m) }

// TestModel compares the limiter with a model of its page, after every step of
// random histories, on a miniredis whose clock is set.
func TestModel(t *testing.T) {
	seeds, steps := size()
	for _, kind := range limitmodel.Kinds {
		t.Run(kind.String(), func(t *testing.T) {
			var total limitmodel.Stats
			for seed := *first; seed < *first+seeds; seed++ {
				m, rdb := redistest.Mini(t)
				st, err := limitmodel.Play(t.Context(), limitmodel.Env{Client: rdb, SetTime: m.SetTime}, kind, seed, steps)
				if err != nil {
					t.Fatal(err)
				}
				total.Steps += st.Steps
				total.Allowed += st.Allowed
				total.Denied += st.Denied
				total.Settled += st.Settled
				total.Worlds = max(total.Worlds, st.Worlds)
			}
			t.Logf("%+v", total)
		})
	}
}

// TestModelServer is TestModel on a server whose clock runs.
func TestModelServer(t *testing.T) {
	seeds, steps := size()
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		for _, kind := range limitmodel.Kinds {
			for seed := *first; seed < *first+(seeds+3)/4; seed++ {
				if _, err := limitmodel.Play(t.Context(), limitmodel.Env{Client: rdb}, kind, seed, steps/5); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
