package ratelimit_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/limitmodel"
	"github.com/redporch/redporch/internal/redistest"
)

// TestOracle plays short histories against a model that was written from the page
// of this package alone; faults/ratelimitmodel plays long ones.
func TestOracle(t *testing.T) {
	for _, kind := range limitmodel.Kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 3; seed++ { // the clock steps back in the third
				m, rdb := redistest.Mini(t)
				if _, err := limitmodel.Play(t.Context(), limitmodel.Env{Client: rdb, SetTime: m.SetTime}, kind, seed, 200); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestOracleServer is TestOracle on a server, whose clock runs.
func TestOracleServer(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		for _, kind := range limitmodel.Kinds {
			if _, err := limitmodel.Play(t.Context(), limitmodel.Env{Client: rdb}, kind, 1, 50); err != nil {
				t.Fatal(err)
			}
		}
	})
}
