package sessionmodel

import (
	"flag"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/sessionmodel"
)

var (
	histories = flag.Int("histories", 1000, "how many histories to play on a server; half as many in time")
	steps     = flag.Int("steps", 60, "steps of each")
	seed      = flag.Uint64("seed", 1, "of the first history; the others follow")
	all       = flag.Bool("all", false, "go on after a disagreement, and report one of each kind")
)

func TestMain(m *testing.M) { redistest.Main(m) }

func play() sessionmodel.Histories {
	return sessionmodel.Histories{Seed: *seed, Count: *histories, Length: *steps, All: *all}
}

// TestHistories plays on a redis-server, where calls also race.
func TestHistories(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		sessionmodel.Play(t, rdb, play())
	})
}

// TestHistoriesInTime plays in a bubble, where minutes and hours pass.
func TestHistoriesInTime(t *testing.T) {
	h := play()
	h.Count = (h.Count + 1) / 2
	sessionmodel.PlayInTime(t, func(t testing.TB) redis.UniversalClient {
		_, rdb := redistest.Bubble(t)
		return rdb
	}, h)
}
