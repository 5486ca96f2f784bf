package cacheaside

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/go-redis/v9/push"
)

// tracking has each master announce every change of this cache's keys, whoever
// makes it, on one connection to each (CLIENT TRACKING in broadcast mode). What
// the masters have announced is as old as the oldest of their proofs.
//
// Redis announces this process' own writes as well, since they are made on other
// connections than the one that tracks: a value that was filled here is put into
// the first level by the next read.
type tracking struct {
	mu     sync.Mutex
	proofs []int64 // by master; 0: not connected
}

// prove notes the proof of one master and returns the oldest of all, 0 if one is
// missing.
func (tr *tracking) prove(i int, at int64) int64 {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.proofs[i] = at
	return slices.Min(tr.proofs)
}

// topologyInterval is how often a cluster's masters are compared with those that
// are tracked.
const topologyInterval = time.Second

// track runs a connection to each master until the cache is closed.
func (c *Cache[K, V]) track() {
	for c.closing.Err() == nil {
		masters, err := c.masters()
		if err != nil {
			c.report("tracking", err)
			sleep(c.closing, 100*time.Millisecond)
			continue
		}
		ctx, cancel := context.WithCancel(c.closing)
		tr := &tracking{proofs: make([]int64, len(masters))}
		var wg sync.WaitGroup
		for i, m := range masters {
			wg.Go(func() { c.trackMaster(ctx, tr, i, m) })
		}
		for ctx.Err() == nil {
			sleep(ctx, topologyInterval)
			if now, err := c.masters(); err == nil && !slices.Equal(now, masters) {
				break
			}
		}
		cancel()
		wg.Wait()
	}
}

// masters returns the clients of all masters, in a fixed order.
func (c *Cache[K, V]) masters() ([]*redis.Client, error) {
	var mu sync.Mutex
	var all []*redis.Client
	ctx, cancel := context.WithTimeout(c.closing, topologyInterval)
	defer cancel()
	collect := func(_ context.Context, m *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		return nil
	}
	switch client := c.conn.Inner().(type) {
	case *redis.Client:
		return []*redis.Client{client}, nil
	case *redis.ClusterClient:
		if err := client.ForEachMaster(ctx, collect); err != nil {
			return nil, c.conn.Classify("tracking", err)
		}
	}
	slices.SortFunc(all, func(a, b *redis.Client) int { return strings.Compare(a.Options().Addr, b.Options().Addr) })
	return all, nil
}

// trackMaster listens to one master until ctx ends.
func (c *Cache[K, V]) trackMaster(ctx context.Context, tr *tracking, i int, master *redis.Client) {
	o := *master.Options()
	o.Protocol = 3
	o.PoolSize, o.MinIdleConns = 1, 0
	// The options hold the processor of the client they come from, which takes one
	// handler of a kind: not this cache's and another's, nor ours twice.
	o.PushNotificationProcessor = push.NewProcessor()
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	connected := o.OnConnect
	o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
		if connected != nil {
			if err := connected(ctx, cn); err != nil {
				return err
			}
		}
		return cn.Do(ctx, "client", "tracking", "on", "bcast", "prefix", c.base, "prefix", c.tagKey("")).Err()
	}
	rdb := redis.NewClient(&o)
	defer rdb.Close()
	if err := rdb.RegisterPushNotificationHandler("invalidate", changes(c.changed), false); err != nil {
		c.report("tracking", err)
		return
	}
	b := newBus(rdb, c.channels(), c.cfg.MaxStaleness)
	if i > 0 {
		b.channels = []string{c.channelName + "-quiet"} // announcements are heard once, on the first
	}
	b.message = c.receive
	b.proved = func(at int64) { c.proved(tr.prove(i, at)) }
	b.lost = func() {
		tr.prove(i, 0)
		c.lost()
	}
	b.failed = func(err error) { c.report("tracking", c.conn.Classify("tracking", err)) }
	b.run(ctx)
}

// changes takes Redis' announcements of changed keys.
type changes func(entry string, all bool)

// HandlePushNotification is called on the goroutine that reads the connection.
func (f changes) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext, message []any) error {
	if len(message) < 2 {
		return nil
	}
	keys, ok := message[1].([]any)
	if !ok { // FLUSHALL or FLUSHDB
		f("", true)
		return nil
	}
	for _, key := range keys {
		if key, ok := key.(string); ok {
			f(key, false)
		}
	}
	return nil
}

// changed applies the announcement of a change.
func (c *Cache[K, V]) changed(entry string, all bool) {
	inv := Invalidation{Kind: KindKeys, Cause: CauseServer, Remote: true}
	if all {
		c.forgetAll()
		inv.Kind = KindClear
	} else if text, ok := strings.CutPrefix(entry, c.base); ok {
		r, err := c.refOfText(text)
		if err != nil {
			return
		}
		c.l1.drop(&r)
		inv.Keys = []string{text}
	} else if tag, ok := strings.CutPrefix(entry, c.tagKey("")); ok {
		c.l1.dropTag(tag)
		inv.Tags = []string{tag}
	} else {
		return
	}
	c.stats.remote.Add(1)
	c.emit(inv)
}
