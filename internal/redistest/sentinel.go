package redistest

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Sentinel is a master with one replica, watched by three Sentinels.
type Sentinel struct {
	t               testing.TB
	Name            string  // of the master, as clients ask for it
	Master, Replica *Server // as they began; a failover does not change the fields
	Sentinels       []*Server
}

// StartSentinel starts the five processes and waits until they know each other,
// which takes two to three seconds. The Sentinels take the master for dead after
// downAfter without an answer. The options are for master and replica.
func StartSentinel(t testing.TB, downAfter time.Duration, opts ...Option) *Sentinel {
	t.Helper()
	opts = append([]Option{TCP(), Set("repl-diskless-sync-delay", "0"), Set("repl-ping-replica-period", "1")}, opts...)
	s := &Sentinel{t: t, Name: "redporch", Master: Start(t, opts...)}
	s.Replica = Start(t, append(opts, Set("replicaof", "127.0.0.1 "+strconv.Itoa(s.Master.port)))...)

	ctx, cancel := setupContext()
	defer cancel()
	replica := newSetupClient(s.Replica)
	defer replica.Close()
	err := poll(ctx, "replication", func() bool {
		return contains(replica.Info(ctx, "replication"), "master_link_status:up")
	})
	if err != nil {
		t.Fatalf("redistest: sentinel: %v", err)
	}
	s.Sentinels = startMany(t, 3, []Option{TCP(), asSentinel, Set("sentinel",
		fmt.Sprintf("monitor %s 127.0.0.1 %d 2", s.Name, s.Master.port),
		fmt.Sprintf("down-after-milliseconds %s %d", s.Name, downAfter.Milliseconds()),
		fmt.Sprintf("failover-timeout %s 3000", s.Name),
	)})
	for _, server := range s.Sentinels {
		rdb := redis.NewSentinelClient(&redis.Options{Addr: server.Addr(), DisableIdentity: true})
		defer rdb.Close()
		err := poll(ctx, "the Sentinels to meet", func() bool {
			m := rdb.Master(ctx, s.Name).Val()
			return m["num-other-sentinels"] == "2" && m["num-slaves"] == "1"
		})
		if err != nil {
			t.Fatalf("redistest: sentinel: %v", err)
		}
	}
	return s
}

func asSentinel(s *Server) { s.sentinel = true }

// Addrs returns the addresses of the Sentinels.
func (s *Sentinel) Addrs() []string {
	var addrs []string
	for _, server := range s.Sentinels {
		addrs = append(addrs, server.Addr())
	}
	return addrs
}

// Client returns a client that follows the master, with change applied to its
// options. The test closes it. Count does not know it, since it talks to the
// Sentinels as well.
func (s *Sentinel) Client(change ...func(*redis.FailoverOptions)) *redis.Client {
	s.t.Helper()
	o := &redis.FailoverOptions{
		MasterName:            s.Name,
		SentinelAddrs:         s.Addrs(),
		DisableIdentity:       true,
		ContextTimeoutEnabled: true,
		DialTimeout:           time.Second,
	}
	for _, f := range change {
		if f != nil {
			f(o)
		}
	}
	rdb := redis.NewFailoverClient(o)
	s.t.Cleanup(func() { rdb.Close() }) // an error means that the test closed it already
	return rdb
}
