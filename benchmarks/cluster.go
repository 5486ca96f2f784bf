package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/ratelimit"
)

// growCluster sets a cluster of three masters beside one server. All of them
// share this machine's cores with the callers, so it can show what the cluster
// costs, not what three machines can do.
func growCluster(ctx context.Context, h *harness, _ int, progress io.Writer) ([][]string, error) {
	fmt.Fprintln(progress, "three masters")
	nodes, err := startCluster(ctx, 3)
	defer func() {
		for _, n := range nodes {
			n.stop()
		}
	}()
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs, Dialer: h.wire.dial,
		ContextTimeoutEnabled: true, ClusterStateReloadInterval: time.Second,
	})
	defer cluster.Close()
	rows := [][]string{{"op", "1 node, 1 caller, ns", "3 nodes, 1 caller, ns", "1 node, 64 callers, ns", "3 nodes, 64 callers, ns"}}
	for _, o := range []struct {
		name string
		make func(redis.UniversalClient) (func(*caller) error, error)
	}{
		{"session-load", clusterLoad},
		{"limit-keys", clusterLimit},
		{"cache-redis", clusterCache},
	} {
		var cells [2][]string
		for i, rdb := range []redis.UniversalClient{h.goRedis(), cluster} {
			do, err := o.make(rdb)
			if err != nil {
				return nil, err
			}
			if cells[i], err = h.at(ctx, o.name, do); err != nil {
				return nil, err
			}
		}
		rows = append(rows, []string{o.name, cells[0][0], cells[1][0], cells[0][1], cells[1][1]})
	}
	return rows, nil
}

func clusterLoad(rdb redis.UniversalClient) (func(*caller) error, error) {
	store, err := redporchStore(rdb)
	if err != nil {
		return nil, err
	}
	b, err := gorillaLoad(store, nil)
	return b.do, err
}

func clusterLimit(rdb redis.UniversalClient) (func(*caller) error, error) {
	l, err := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.TokenBucket("api", int64(plenty), time.Minute, int64(plenty)))
	if err != nil {
		return nil, err
	}
	return func(c *caller) error {
		res, err := l.Allow(context.Background(), limiterNames[c.pick(population)])
		return errors.Join(err, res.Err)
	}, nil
}

func clusterCache(rdb redis.UniversalClient) (func(*caller) error, error) {
	ctx := context.Background()
	c, err := cacheaside.New(rdb, "cluster", loadProfile, cacheaside.Config{TTL: cacheTTL, L1Entries: -1})
	if err != nil {
		return nil, err
	}
	if err := warm(c.Get); err != nil {
		return nil, err
	}
	return func(cl *caller) error {
		i := userOf(cl.pick(population))
		p, err := c.Get(ctx, i)
		if err == nil && p.ID != int64(i) {
			err = errWrongProfile
		}
		return err
	}, nil
}

// startCluster starts masters that share the slots. What it has started is
// returned also with an error, for the caller to stop.
func startCluster(ctx context.Context, n int) (nodes []*server, err error) {
	const slots = 16384
	for i := range n {
		s, err := startServer("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "5000")
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, s)
		var own []int
		for slot := i * slots / n; slot < (i+1)*slots/n; slot++ {
			own = append(own, slot)
		}
		if err := s.admin.ClusterAddSlots(ctx, own...).Err(); err != nil {
			return nodes, err
		}
		if i > 0 {
			host, port, err := net.SplitHostPort(nodes[0].addr)
			if err != nil {
				return nodes, err
			}
			if err := s.admin.ClusterMeet(ctx, host, port).Err(); err != nil {
				return nodes, err
			}
		}
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ready := 0
		for _, s := range nodes {
			info, err := s.admin.ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") &&
				strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(n)) {
				ready++
			}
		}
		if ready == n {
			return nodes, nil
		}
		if time.Now().After(end) {
			return nodes, errors.New("the cluster does not come up")
		}
	}
}
