package middleware_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

// codes runs Check and returns what it found.
func codes(t *testing.T, rdb redis.UniversalClient, cfg middleware.CheckConfig) (found []middleware.Code) {
	t.Helper()
	out, logger := newLogs()
	cfg.Logger = logger
	findings, err := middleware.Check(context.Background(), rdb, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		found = append(found, f.Code)
		if out.count("code="+string(f.Code)) != 1 {
			t.Errorf("%s is not in the log once: %s", f.Code, out)
		}
	}
	return found
}

func TestCheckServers(t *testing.T) {
	for _, c := range []struct {
		name string
		opts []redistest.Option
		cfg  middleware.CheckConfig
		want []middleware.Code
	}{
		{"as recommended for sessions", []redistest.Option{redistest.Set("maxmemory", "100mb"), redistest.Set("maxmemory-policy", "noeviction"), redistest.AOF("everysec")},
			middleware.CheckConfig{NoCache: true}, nil},
		{"as recommended for a cache", []redistest.Option{redistest.Set("maxmemory", "100mb"), redistest.Set("maxmemory-policy", "allkeys-lfu")},
			middleware.CheckConfig{OnlyCache: true}, nil},
		{"evicts sessions", []redistest.Option{redistest.Set("maxmemory", "100mb"), redistest.Set("maxmemory-policy", "volatile-lru"), redistest.AOF("everysec")},
			middleware.CheckConfig{}, []middleware.Code{middleware.WarnEvictsSessions}},
		{"full cache stops writes", []redistest.Option{redistest.Set("maxmemory", "100mb"), redistest.AOF("everysec")},
			middleware.CheckConfig{}, []middleware.Code{middleware.WarnNoEvictionPolicy}},
		{"nothing set", []redistest.Option{redistest.RDB("")},
			middleware.CheckConfig{}, []middleware.Code{middleware.WarnNoMaxMemory, middleware.WarnNotPersistent}},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := redistest.Start(t, c.opts...)
			found := codes(t, srv.Client(nil), c.cfg)
			if !slices.Equal(found, c.want) {
				t.Errorf("found %q; want %q", found, c.want)
			}
		})
	}
}

// TestCheckSkew: miniredis has a clock that can be wrong, and is not taken for a
// Redis in other respects.
func TestCheckSkew(t *testing.T) {
	m, rdb := redistest.Mini(t)
	if found := codes(t, rdb, middleware.CheckConfig{}); len(found) != 0 {
		t.Errorf("found %q in miniredis; want nothing", found)
	}
	m.SetTime(time.Now().Add(time.Minute))
	if found := codes(t, rdb, middleware.CheckConfig{}); !slices.Equal(found, []middleware.Code{middleware.WarnClockSkew}) {
		t.Errorf("found %q with a clock one minute ahead; want clock-skew", found)
	}
}

func TestCheckCluster(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		cluster := rdb.(*redis.ClusterClient)
		o := *cluster.Options()
		o.ClusterStateReloadInterval = time.Minute
		slow := redis.NewClusterClient(&o)
		defer slow.Close()
		if found := codes(t, slow, middleware.CheckConfig{OnlyCache: true}); !slices.Contains(found, middleware.WarnClusterSlowReload) {
			t.Errorf("found %q with a reload every minute; want cluster-slow-reload", found)
		}
		o.ClusterStateReloadInterval = time.Second
		quick := redis.NewClusterClient(&o)
		defer quick.Close()
		if found := codes(t, quick, middleware.CheckConfig{OnlyCache: true}); slices.Contains(found, middleware.WarnClusterSlowReload) {
			t.Errorf("found %q with a reload every second", found)
		}
	})
}

// TestCheckRedisDown: an error in time, and no finding.
func TestCheckRedisDown(t *testing.T) {
	srv := redistest.Start(t)
	rdb := srv.Client(nil)
	srv.Pause()
	defer srv.Resume()
	findings, err := middleware.Check(context.Background(), rdb, middleware.CheckConfig{Timeout: 200 * time.Millisecond, Logger: discard()})
	if err == nil || len(findings) != 0 {
		t.Errorf("Check of a paused Redis = %v, %v; want an error and nothing", findings, err)
	}
}
