package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/wrapped"
)

// CheckConfig tells Check what the Redis is for. The zero value means everything.
type CheckConfig struct {
	// OnlyCache says that nothing but cacheaside uses this Redis, so that eviction
	// is wanted there.
	OnlyCache bool

	// NoCache says that cacheaside does not use it, so that memory grows with
	// sessions and limits alone.
	NoCache bool

	// RoutingProxy says that RoutingProxy is set in the Configs of ratelimit and session,
	// so that a proxy that asks for it is no finding.
	RoutingProxy bool

	// MaxSkew is how far this machine's clock may be from Redis'. Zero means one
	// second.
	MaxSkew time.Duration

	// Timeout bounds the whole check. Zero means two seconds.
	Timeout time.Duration

	// Logger gets the findings as warnings. Nil means slog.Default().
	Logger *slog.Logger
}

// Finding is one thing that Check has found.
type Finding struct {
	Code Code
	Text string
}

// Check looks at how Redis and the client are configured, logs what is wrong, each
// code once, and returns it. Call it when a program starts, with the client that the
// stores, limiters and caches have; it needs the commands INFO and TIME, and for what it
// writes under redporch:check:, for some seconds, EVAL, GET, SET and SUBSCRIBE. Where
// these or CONFIG GET are not permitted, their questions stay open.
//
// A non-nil error means that Redis could not be asked, and is no reason not to
// start: sessions, limits and caches work as soon as it is back.
func Check(ctx context.Context, rdb redis.UniversalClient, cfg CheckConfig) ([]Finding, error) {
	if rdb == nil || reflect.ValueOf(rdb).Kind() == reflect.Pointer && reflect.ValueOf(rdb).IsNil() {
		return nil, errors.New("middleware: Check without a client; make one with redis.NewUniversalClient")
	}
	if cfg.MaxSkew <= 0 {
		cfg.MaxSkew = time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()

	c := &checker{cfg: cfg}
	c.client(rdb)
	done := make(chan error, 1)
	go func() { // go-redis need not obey the context
		done <- c.servers(ctx, rdb)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("middleware: check of Redis: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Finding(nil), c.findings...), err
}

type checker struct {
	cfg CheckConfig

	mu       sync.Mutex // cluster masters are asked at the same time
	findings []Finding
}

func (c *checker) found(code Code, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	warn(c.cfg.Logger, code, "", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.findings { // one of several masters is enough
		if f.Code == code {
			return
		}
	}
	c.findings = append(c.findings, Finding{code, text})
}

func (c *checker) client(rdb redis.UniversalClient) {
	cluster, ok := wrapped.Client(rdb).(*redis.ClusterClient)
	if !ok || cluster == nil {
		return
	}
	if every := cluster.Options().ClusterStateReloadInterval; every == 0 || every > 5*time.Second {
		c.found(WarnClusterSlowReload, "the cluster client looks at the topology every %v, so a dead master's shard can stay unwritable for as long; "+
			"set redis.ClusterOptions.ClusterStateReloadInterval to 1s", every)
	}
}

func (c *checker) servers(ctx context.Context, rdb redis.UniversalClient) error {
	if cluster, ok := wrapped.Client(rdb).(*redis.ClusterClient); ok {
		err := cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error { return c.server(ctx, master, false) })
		if err == nil {
			c.subscribe(ctx, rdb)
		}
		return err
	}
	if err := c.server(ctx, rdb, true); err != nil {
		return err
	}
	c.route(ctx, rdb)
	c.subscribe(ctx, rdb)
	return nil
}

// server looks at one server. plain says that its client knows no cluster.
func (c *checker) server(ctx context.Context, rdb redis.Cmdable, plain bool) error {
	if err := c.clock(ctx, rdb); err != nil && !c.proxy("TIME", err) {
		return err
	}
	text, err := rdb.Info(ctx).Result()
	if err != nil {
		if c.proxy("INFO", err) {
			return nil
		}
		return err
	}
	info := parseInfo(text)
	if plain && info["cluster_enabled"] == "1" {
		c.found(WarnClusterPlainClient, "Redis is a node of a cluster, and the client is none for clusters: it follows no failover and no slot that moves, "+
			"and commands whose keys are elsewhere fail; use redis.NewClusterClient (or redis.UniversalOptions.IsClusterMode)")
	}
	if info["role"] == "slave" {
		c.found(WarnReplica, "Redis is a replica: it refuses writes, and does not know yet what was just signed out, taken or invalidated; "+
			"use the master's address, and not FailoverOptions.ReplicaOnly")
	}
	c.version(info["redis_version"])
	c.memory(info)
	if !c.cfg.OnlyCache && info["aof_enabled"] == "0" && info["role"] == "master" {
		// CONFIG is often forbidden; then the question stays open.
		if save, err := rdb.ConfigGet(ctx, "save").Result(); err == nil && save["save"] == "" {
			c.found(WarnNotPersistent, "Redis keeps nothing on disk, so a restart signs everybody out and forgets all limits; set appendonly yes")
		}
	}
	return nil
}

func (c *checker) clock(ctx context.Context, rdb redis.Cmdable) error {
	sent := time.Now()
	server, err := rdb.Time(ctx).Result()
	if err != nil {
		return err
	}
	trip := time.Since(sent)
	skew := server.Sub(sent.Add(trip / 2)).Abs()
	if skew-trip/2 > c.cfg.MaxSkew { // a sum could overflow
		c.found(WarnClockSkew, "this machine's clock and Redis' differ by %v; limits and sessions go by Redis' clock, "+
			"but cookies' Expires and log times by this one's; synchronize them by NTP", skew.Round(time.Millisecond))
	}
	return nil
}

func (c *checker) version(v string) {
	major, minor, ok := strings.Cut(v, ".")
	if !ok {
		return
	}
	minor, _, _ = strings.Cut(minor, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if errors.Join(err1, err2) == nil && (a < 6 || a == 6 && b < 2) {
		c.found(WarnRedisTooOld, "Redis %s is older than 6.2, the oldest version that redporch works with", v)
	}
}

func (c *checker) memory(info map[string]string) {
	policy := info["maxmemory_policy"]
	if policy == "" { // not a real Redis
		return
	}
	limited := info["maxmemory"] != "0"
	switch {
	case policy != "noeviction" && !c.cfg.OnlyCache:
		c.found(WarnEvictsSessions, "maxmemory-policy is %s: when memory is full, Redis throws away sessions and limits, "+
			"since they have a TTL like everything else; use noeviction, and another Redis for the cache", policy)
	case policy == "noeviction" && limited && !c.cfg.NoCache:
		c.found(WarnNoEvictionPolicy, "maxmemory is set and maxmemory-policy is noeviction: when cached values fill the memory, "+
			"nothing can be written any more; use allkeys-lfu in a Redis for the cache alone")
	case !limited && !c.cfg.NoCache:
		c.found(WarnNoMaxMemory, "maxmemory is not set: cached values may fill the machine's memory until the kernel kills Redis; set it")
	}
}

// parseInfo reads what INFO returns: lines of name:value, and comments.
func parseInfo(text string) map[string]string {
	m := make(map[string]string, 64)
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok && name != "" && name[0] != '#' {
			m[name] = value
		}
	}
	return m
}
