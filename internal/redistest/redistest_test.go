package redistest_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestRunGivesEachBodyAnEmptyRedis(t *testing.T) {
	seen := 0
	for range 2 {
		redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
			seen++
			if n, err := rdb.DBSize(ctx).Result(); n != 0 || err != nil {
				t.Errorf("DBSize = %d, %v; want 0", n, err)
			}
			if err := rdb.Set(ctx, "k", 1, 0).Err(); err != nil {
				t.Error(err)
			}
			err := rdb.Eval(ctx, "return redis.call('MGET', KEYS[1], KEYS[2])", []string{"a", "b"}).Err()
			crossed := err != nil && strings.HasPrefix(err.Error(), "CROSSSLOT")
			if want := strings.Contains(t.Name(), "cluster"); crossed != want {
				t.Errorf("script on two slots: %v; want CROSSSLOT: %v", err, want)
			}
		})
	}
	if seen != 6 {
		t.Errorf("bodies run = %d; want 6", seen)
	}
}

func TestCount(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		rdb.Ping(ctx)
		got := redistest.Count(t, rdb, func() {
			rdb.Set(ctx, "k", strings.Repeat("v", 100_000), 0)
			rdb.Get(ctx, "k")
			rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				for range 5000 {
					p.Get(ctx, "{k}x")
				}
				return nil
			})
			rdb.ScriptLoad(ctx, "return 1")
		})
		want := map[string]int{"set": 1, "get": 5001, "script|load": 1}
		if got.RoundTrips != 4 || got.Total != 5003 || !maps.Equal(got.By, want) {
			t.Errorf("Count = %+v; want 4 round trips, 5003 commands, %v", got, want)
		}
		if got := redistest.Count(t, rdb, func() {}); got.Total != 0 || got.RoundTrips != 0 || len(got.By) != 0 {
			t.Errorf("Count of nothing = %+v; want zero", got)
		}
	})
}
