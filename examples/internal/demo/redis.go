package demo

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// backend is the Redis in use.
type backend struct {
	rdb         redis.UniversalClient // for sessions, limits and cache; may be broken on demand
	database    redis.UniversalClient // for what plays the database behind the cache; never broken
	breakage    *breakage
	kind        string // "embedded", "server", "cluster", "sentinel"
	description string // for people
	close       func()
}

func openRedis(cfg config) (*backend, error) {
	// go-redis logs every failed connection of a pool; /healthz and the
	// middlewares' own warnings say it once.
	logging.Disable()
	if cfg.redisURL == "" {
		return embeddedRedis()
	}
	opts, kind, err := parseRedisURL(cfg.redisURL)
	if err != nil {
		return nil, err
	}
	b := &backend{kind: kind, breakage: new(breakage)}
	switch o := opts.(type) {
	case *redis.Options:
		o.ContextTimeoutEnabled, o.DialTimeout, o.DialerRetries = true, time.Second, 1
		b.description = fmt.Sprintf("server at %s", o.Addr)
		b.database = redis.NewClient(o)
		broken := *o
		broken.Dialer = b.breakage.through(redis.NewDialer(o))
		b.rdb = redis.NewClient(&broken)
	case *redis.ClusterOptions:
		o.ContextTimeoutEnabled, o.DialTimeout, o.DialerRetries = true, time.Second, 1
		// The default of 60 s leaves a dead master's slots unwritable that long.
		o.ClusterStateReloadInterval = time.Second
		b.description = fmt.Sprintf("cluster at %v", o.Addrs)
		b.database = redis.NewClusterClient(o)
		broken := *o
		broken.Dialer = b.breakage.through(plainDialer(o.TLSConfig))
		b.rdb = redis.NewClusterClient(&broken)
	case *redis.FailoverOptions:
		o.ContextTimeoutEnabled, o.DialTimeout, o.DialerRetries = true, time.Second, 1
		b.description = fmt.Sprintf("master %q by Sentinel at %v", o.MasterName, o.SentinelAddrs)
		b.database = redis.NewFailoverClient(o)
		broken := *o
		broken.Dialer = b.breakage.through(plainDialer(o.TLSConfig))
		b.rdb = redis.NewFailoverClient(&broken)
	}
	b.close = func() { b.rdb.Close(); b.database.Close() }
	return b, nil
}

func plainDialer(tls *tls.Config) dialer {
	return redis.NewDialer(&redis.Options{DialTimeout: time.Second, TLSConfig: tls})
}

// maxEmbeddedKeys bounds the memory of the Redis inside.
const maxEmbeddedKeys = 20_000

// embeddedRedis starts miniredis on a free loopback port.
//
// miniredis' own clock for expiry stands still. ClockTTL would make it follow
// the real one, but then each command walks all keys; moving it forward a
// few times a second costs the same for any number of commands.
func embeddedRedis() (*backend, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("embedded redis: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				m.FastForward(now.Sub(last))
				last = now
				if n%50 == 0 {
					shrink(m, maxEmbeddedKeys)
				}
			}
		}
	}()
	opts := redis.Options{
		Addr:                     m.Addr(),
		ContextTimeoutEnabled:    true,
		DialTimeout:              time.Second,
		DialerRetries:            1,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	database := redis.NewClient(&opts)
	b := new(breakage)
	broken := opts
	broken.Dialer = b.through(redis.NewDialer(&opts))
	rdb := redis.NewClient(&broken)
	return &backend{
		rdb:         rdb,
		database:    database,
		breakage:    b,
		kind:        "embedded",
		description: "embedded (in memory, inside this process; set REDIS_URL to use a real one)",
		close: func() {
			cancel()
			<-done
			rdb.Close()
			database.Close()
			m.Close()
		},
	}, nil
}

// shrink deletes the keys that would expire first, down to nine tenths of limit.
func shrink(m *miniredis.Miniredis, limit int) {
	keys := m.Keys()
	if len(keys) <= limit {
		return
	}
	ttl := make(map[string]time.Duration, len(keys))
	for _, k := range keys {
		ttl[k] = m.TTL(k)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(ttl[a], ttl[b]) })
	for _, k := range keys[:len(keys)-limit*9/10] {
		m.Del(k)
	}
}
