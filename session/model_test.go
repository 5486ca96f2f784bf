package session_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/sessionmodel"
)

// TestModel plays a few random histories against the model of this package's
// promises. faults/sessionmodel plays many.
func TestModel(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		sessionmodel.Play(t, rdb, sessionmodel.Histories{Seed: 1, Count: 20, Length: 60})
	})
	t.Run("time", func(t *testing.T) {
		sessionmodel.PlayInTime(t, func(t testing.TB) redis.UniversalClient {
			_, rdb := redistest.Bubble(t)
			return rdb
		}, sessionmodel.Histories{Seed: 1, Count: 20, Length: 60})
	})
}
