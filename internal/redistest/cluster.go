package redistest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Cluster is a Redis Cluster of the test's own.
type Cluster struct {
	t        testing.TB
	Masters  []*Server
	Replicas []*Server // Replicas[i] follows Masters[i] at first; empty without replicas

	moving sync.Mutex // held while keys or a slot change their owner
}

// Proxied puts a Proxy before the server, Server.Proxy. A cluster's nodes then
// announce their proxies, so that its clients talk through them.
func Proxied() Option { return func(s *Server) { s.proxied = true } }

// StartCluster forms a cluster of so many masters, with a replica each if
// replicas is set, which notices a dead master after about one second. It takes
// two to three seconds. Each master owns an equal range of the slots.
func StartCluster(t testing.TB, masters int, replicas bool, opts ...Option) *Cluster {
	t.Helper()
	total := masters
	if replicas {
		total *= 2
	}
	nodes := startMany(t, total, append([]Option{
		TCP(),
		Set("cluster-enabled", "yes"),
		Set("cluster-node-timeout", "1000"),
		Set("cluster-require-full-coverage", "no"),
		Set("cluster-replica-validity-factor", "0"),
		Set("repl-diskless-sync-delay", "0"),
		Set("repl-ping-replica-period", "1"),
	}, opts...))
	c := &Cluster{t: t, Masters: nodes[:masters], Replicas: nodes[masters:]}
	if err := c.form(); err != nil {
		t.Fatalf("redistest: form a cluster: %v", err)
	}
	return c
}

// startMany starts n servers at the same time.
func startMany(t testing.TB, n int, opts []Option) []*Server {
	t.Helper()
	need(t)
	servers, errs := make([]*Server, n), make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		starting.Go(func() { servers[i], errs[i] = launch(opts...) })
	}
	starting.Wait()
	for _, s := range servers {
		if s != nil {
			s.adopt(t)
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("redistest: %v", err)
	}
	return servers
}

// form makes one cluster of the nodes. It does what redis-cli --cluster create
// does, without its waits.
func (c *Cluster) form() error {
	ctx, cancel := setupContext()
	defer cancel()
	nodes := c.Nodes()
	rdbs := make([]*redis.Client, len(nodes))
	for i, s := range nodes {
		rdbs[i] = newSetupClient(s)
		defer rdbs[i].Close()
	}
	masters := len(c.Masters)
	for i, rdb := range rdbs {
		// Different epochs from the start leave no conflict for gossip to solve.
		if err := rdb.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if p := nodes[i].Proxy; p != nil {
			_, port, _ := strings.Cut(p.Addr(), ":")
			if err := rdb.ConfigSet(ctx, "cluster-announce-port", port).Err(); err != nil {
				return err
			}
		}
		if i < masters {
			if err := rdb.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err(); err != nil {
				return err
			}
		}
		if i > 0 {
			err := rdbs[0].Do(ctx, "cluster", "meet", "127.0.0.1", nodes[i].port, nodes[i].port+10000).Err()
			if err != nil {
				return err
			}
		}
	}
	err := pollAll(ctx, "all nodes to know each other", rdbs, func(rdb *redis.Client) bool {
		list := rdb.ClusterNodes(ctx).Val()
		return strings.Count(list, "\n") == len(nodes) && strings.Count(list, " connected") == len(nodes) &&
			!strings.Contains(list, "handshake")
	})
	if err != nil {
		return err
	}
	for i := range c.Replicas {
		id, err := rdbs[i].ClusterMyID(ctx).Result()
		if err != nil {
			return err
		}
		if err := rdbs[masters+i].ClusterReplicate(ctx, id).Err(); err != nil {
			return err
		}
	}
	err = pollAll(ctx, "replication", rdbs[masters:], func(rdb *redis.Client) bool {
		return contains(rdb.Info(ctx, "replication"), "master_link_status:up")
	})
	if err != nil {
		return err
	}
	return pollAll(ctx, "cluster_state:ok and every node to know all replicas", rdbs, func(rdb *redis.Client) bool {
		//lint:ignore SA1019 CLUSTER SHARDS came with Redis 7.0, and the floor is 6.2.
		ranges := rdb.ClusterSlots(ctx).Val()
		known := 0
		for _, r := range ranges {
			known += len(r.Nodes)
		}
		return len(ranges) == masters && known == len(nodes) && contains(rdb.ClusterInfo(ctx), "cluster_state:ok")
	})
}

func pollAll(ctx context.Context, what string, rdbs []*redis.Client, ok func(*redis.Client) bool) error {
	for _, rdb := range rdbs {
		if err := poll(ctx, what, func() bool { return ok(rdb) }); err != nil {
			return err
		}
	}
	return nil
}

// Nodes returns the servers of Masters and Replicas.
func (c *Cluster) Nodes() []*Server {
	return append(append([]*Server(nil), c.Masters...), c.Replicas...)
}

// Addrs returns the addresses of all nodes, or of their proxies.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, s := range c.Nodes() {
		if s.Proxy != nil {
			addrs = append(addrs, s.Proxy.Addr())
		} else {
			addrs = append(addrs, s.Addr())
		}
	}
	return addrs
}

// Client returns a client for the cluster, with change applied to its options.
// Count knows it, and the test closes it. It reloads the topology each second and
// obeys context deadlines; else it has go-redis' defaults.
func (c *Cluster) Client(change ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	c.t.Helper()
	return newClusterClient(c.t, c.Addrs(), func(o *redis.ClusterOptions) {
		for _, f := range change {
			if f != nil {
				f(o)
			}
		}
	})
}

// Shards returns a cluster client for servers that are not a cluster, with an equal range
// of the slots on each address. To the client it is one all the same, and it is there at
// once; but nothing moves, and nobody fails over or says CROSSSLOT.
func Shards(t testing.TB, addrs []string, change ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	t.Helper()
	return newClusterClient(t, addrs, func(o *redis.ClusterOptions) {
		o.ClusterSlots = func(context.Context) (ranges []redis.ClusterSlot, err error) {
			for i, addr := range addrs {
				ranges = append(ranges, redis.ClusterSlot{
					Start: i * slots / len(addrs), End: (i+1)*slots/len(addrs) - 1, Nodes: []redis.ClusterNode{{Addr: addr}},
				})
			}
			return ranges, nil
		}
		for _, f := range change {
			f(o)
		}
	})
}

// Owner returns the master that owns slot.
func (c *Cluster) Owner(ctx context.Context, slot int) (*Server, error) {
	rdb := newSetupClient(c.Masters[0])
	defer rdb.Close()
	//lint:ignore SA1019 CLUSTER SHARDS came with Redis 7.0, and the floor is 6.2.
	ranges, err := rdb.ClusterSlots(ctx).Result()
	if err != nil {
		return nil, err
	}
	for _, r := range ranges {
		if slot < r.Start || slot > r.End || len(r.Nodes) == 0 {
			continue
		}
		for i, s := range c.Nodes() {
			if c.Addrs()[i] == r.Nodes[0].Addr {
				return s, nil
			}
		}
	}
	return nil, fmt.Errorf("slot %d has no owner", slot)
}

// MigrateSlot moves slot and its keys to another master while clients use them.
// Each during is called when half the work is done: the slot is migrating and no
// key is moved yet, so that the old owner answers ASK for absent keys.
func (c *Cluster) MigrateSlot(ctx context.Context, slot int, to *Server, during ...func()) error {
	from, err := c.Owner(ctx, slot)
	if err != nil || from == to {
		return err
	}
	src, dst := newSetupClient(from), newSetupClient(to)
	defer src.Close()
	defer dst.Close()
	srcID, err := src.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	dstID, err := dst.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if err := dst.Do(ctx, "cluster", "setslot", slot, "importing", srcID).Err(); err != nil {
		return err
	}
	if err := src.Do(ctx, "cluster", "setslot", slot, "migrating", dstID).Err(); err != nil {
		return err
	}
	for _, f := range during {
		f()
	}
	for {
		keys, err := src.ClusterGetKeysInSlot(ctx, slot, 100).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		if err := c.MigrateKeys(ctx, from, to, keys...); err != nil {
			return err
		}
	}
	return c.handOver(ctx, slot, from, to, dstID)
}

// MigrateKeys moves keys from one master to another, at one time between two masters of
// the cluster only: a server does nothing else meanwhile, so that two of them would wait
// for each other until the time is over, and find the keys on both.
func (c *Cluster) MigrateKeys(ctx context.Context, from, to *Server, keys ...string) error {
	c.moving.Lock()
	defer c.moving.Unlock()
	args := []any{"migrate", "127.0.0.1", strconv.Itoa(to.port), "", 0, 5000, "keys"}
	for _, k := range keys {
		args = append(args, k)
	}
	rdb := newSetupClient(from)
	defer rdb.Close()
	return rdb.Do(ctx, args...).Err()
}

// handOver tells the masters whose a slot is now. One slot at a time, and only when all
// know of the last: a master whose claim is newer than the new owner's, since it has just
// got another slot, would win this one back, and the new owner would delete its keys.
func (c *Cluster) handOver(ctx context.Context, slot int, from, to *Server, id string) error {
	c.moving.Lock()
	defer c.moving.Unlock()
	if err := c.agree(ctx); err != nil {
		return err
	}
	for _, s := range append([]*Server{to, from}, c.Masters...) { // the new owner first, lest nobody is
		rdb := newSetupClient(s)
		err := rdb.Do(ctx, "cluster", "setslot", slot, "node", id).Err()
		rdb.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// agree waits until all masters that answer are in the same epoch.
func (c *Cluster) agree(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the masters don't agree about the epoch"))
	defer cancel()
	for {
		epochs := map[string]bool{}
		for _, s := range c.Masters {
			rdb := newSetupClient(s)
			info, err := rdb.ClusterInfo(ctx).Result()
			rdb.Close()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				continue
			}
			_, epoch, _ := strings.Cut(info, "cluster_current_epoch:")
			epoch, _, _ = strings.Cut(epoch, "\r")
			epochs[epoch] = true
		}
		if len(epochs) <= 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
