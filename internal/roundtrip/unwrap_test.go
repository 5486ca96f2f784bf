package roundtrip_test

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

type embeds struct{ redis.UniversalClient }

type embedsPointer struct{ *redis.Client }

// hides has the client in a field, and tells of it.
type hides struct {
	embeds
	inner redis.UniversalClient
}

func (h *hides) Unwrap() redis.UniversalClient { return h.inner }

// A client of somebody's own type is what it is made of: of a cluster, or refused.
func TestUnwrap(t *testing.T) {
	single := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer single.Close()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, ClusterStateReloadInterval: 1e9})
	defer cluster.Close()
	replicas := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, ReadOnly: true})
	defer replicas.Close()
	for _, c := range []struct {
		name    string
		rdb     redis.UniversalClient
		cluster bool
		wrong   string
	}{
		{"embedded", embeds{single}, false, ""},
		{"embedded pointer", embedsPointer{single}, false, ""},
		{"cluster", embeds{cluster}, true, ""},
		{"pointer, twice", &embeds{&embeds{cluster}}, true, ""},
		{"method", &hides{inner: embeds{cluster}}, true, ""},
		{"replicas", embeds{replicas}, false, "reads from replicas"},
		{"nil inside", embeds{(*redis.Client)(nil)}, false, "nil *redis.Client"},
		{"nothing inside", embeds{}, false, ""},
	} {
		conn, err := roundtrip.New(c.rdb, roundtrip.Config{})
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: error %v; want one with %q", c.name, err, c.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := conn.IsCluster(); got != c.cluster {
			t.Errorf("%s: IsCluster = %t; want %t", c.name, got, c.cluster)
		}
	}
}
