package redistest_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
	want := 2 // on miniredis alone
	t.Run("where a server can run", func(t *testing.T) {
		redistest.Start(t) // skips otherwise
		want = 6
	})
	if seen != want {
		t.Errorf("bodies run = %d; want %d", seen, want)
	}
}

// Tests in parallel take turns on the shared servers.
func TestRunInParallel(t *testing.T) {
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
				if err := rdb.Set(ctx, fmt.Sprint("k", i), 1, 0).Err(); err != nil {
					t.Error(err)
				}
				time.Sleep(10 * time.Millisecond)
				if n := rdb.DBSize(ctx).Val(); n != 1 {
					t.Errorf("DBSize = %d; want 1, nobody else's keys", n)
				}
			})
		})
	}
}

// In a bubble, an hour of expiry takes no time.
func TestBubble(t *testing.T) {
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			_, rdb := redistest.Bubble(t)
			if err := rdb.Set(ctx, "k", "v", time.Hour).Err(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(59 * time.Minute)
			if got := rdb.Get(ctx, "k").Val(); got != "v" {
				t.Errorf("GET after 59 minutes = %q; want v", got)
			}
			time.Sleep(2 * time.Minute)
			if err := rdb.Get(ctx, "k").Err(); err != redis.Nil {
				t.Errorf("GET after 61 minutes: %v; want redis.Nil", err)
			}
		})
	}
}

func TestMiniExpiresByTheClock(t *testing.T) {
	m, rdb := redistest.Mini(t)
	now := time.Unix(1_800_000_000, 0)
	m.SetTime(now)
	rdb.Set(ctx, "k", "v", time.Minute)
	m.SetTime(now.Add(61 * time.Second))
	if err := rdb.Get(ctx, "k").Err(); err != redis.Nil {
		t.Errorf("GET after a minute of SetTime: %v; want redis.Nil", err)
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
