package middleware_test

import (
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

// around is a client that somebody has put something around.
type around struct{ redis.UniversalClient }

// TestCheckRoute: a proxy that sends scripts to the server of their first key is found,
// and told that it is known.
func TestCheckRoute(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(redistest.Router(t, redistest.Start(t), redistest.Start(t)))
	t.Cleanup(func() { rdb.Close() })
	found := codes(t, rdb, middleware.CheckConfig{})
	for _, want := range []middleware.Code{middleware.WarnRoutingProxy, middleware.WarnSubscribeRefused} {
		if !slices.Contains(found, want) {
			t.Errorf("found %q; want %s", found, want)
		}
	}
	found = codes(t, rdb, middleware.CheckConfig{RoutingProxy: true, NoCache: true})
	for _, no := range []middleware.Code{middleware.WarnRoutingProxy, middleware.WarnSubscribeRefused} {
		if slices.Contains(found, no) {
			t.Errorf("found %q; want no %s, as the program knows", found, no)
		}
	}
	one := redis.NewClient(redistest.Router(t, redistest.Start(t)))
	t.Cleanup(func() { one.Close() })
	if found := codes(t, one, middleware.CheckConfig{}); slices.Contains(found, middleware.WarnRoutingProxy) {
		t.Errorf("found %q with one server; want no routing-proxy", found)
	}
}

// TestCheckPlainClient: a node of a cluster behind a client that knows no cluster, and a
// client around one that does.
func TestCheckPlainClient(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		plain := redis.NewClient(&redis.Options{Addr: rdb.(*redis.ClusterClient).Options().Addrs[0]})
		defer plain.Close()
		if found := codes(t, plain, middleware.CheckConfig{}); !slices.Contains(found, middleware.WarnClusterPlainClient) {
			t.Errorf("found %q; want cluster-plain-client", found)
		}
		for _, c := range []redis.UniversalClient{rdb, around{rdb}} {
			found := codes(t, c, middleware.CheckConfig{OnlyCache: true})
			if slices.Contains(found, middleware.WarnClusterPlainClient) || slices.Contains(found, middleware.WarnRoutingProxy) {
				t.Errorf("found %q of a %T", found, c)
			}
		}
	})
}

// TestCheckReplica: a client that reads from a replica.
func TestCheckReplica(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t, redistest.TCP())
	replica := redistest.Start(t)
	if err := replica.Client().ReplicaOf(t.Context(), "127.0.0.1", strconv.Itoa(master.Port())).Err(); err != nil {
		t.Fatal(err)
	}
	if found := codes(t, replica.Client(), middleware.CheckConfig{}); !slices.Contains(found, middleware.WarnReplica) {
		t.Errorf("found %q; want redis-replica", found)
	}
	if found := codes(t, master.Client(), middleware.CheckConfig{}); slices.Contains(found, middleware.WarnReplica) {
		t.Errorf("found %q of the master", found)
	}
}

// TestCheckSubscribe: a user who may not subscribe.
func TestCheckSubscribe(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Set("user", "app on >secret ~* &* +@all -subscribe"))
	rdb := s.Client(func(o *redis.Options) { o.Username, o.Password = "app", "secret" })
	if found := codes(t, rdb, middleware.CheckConfig{}); !slices.Contains(found, middleware.WarnSubscribeRefused) {
		t.Errorf("found %q; want subscribe-refused", found)
	}
	if found := codes(t, s.Client(), middleware.CheckConfig{}); slices.Contains(found, middleware.WarnSubscribeRefused) {
		t.Errorf("found %q of who may", found)
	}
}

// TestCheckProxy: INFO that nobody answers as Redis does.
func TestCheckProxy(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Set("rename-command", `INFO ""`))
	if found := codes(t, s.Client(), middleware.CheckConfig{}); !slices.Contains(found, middleware.WarnRedisProxy) {
		t.Errorf("found %q; want redis-proxy", found)
	}
}
