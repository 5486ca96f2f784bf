package redistest

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Kind is a set of kinds of Redis.
type Kind uint8

const (
	OnMini    Kind = 1 << iota // miniredis, whose TTLs follow the real clock
	OnServer                   // a redis-server
	OnCluster                  // a cluster of one node, so that CROSSSLOT is real
)

// Main runs m's tests, stops the shared servers and exits with the tests' code.
// Call it as the last thing in TestMain. Of tests that call t.Parallel, sixteen run at
// once, or as many as -parallel says: those here wait for servers more than they compute.
func Main(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "16"); err != nil {
			panic(err)
		}
	}
	logging.Disable() // of each connection that fails; what a test wants to know it asks
	code := m.Run()
	closeShared()
	os.Exit(code)
}

// Run runs body as the subtests miniredis, server and cluster, each on an empty
// Redis that nobody else uses meanwhile. The client is a *redis.Client in the
// first two and a *redis.ClusterClient in the last, bounded by context deadlines,
// known to Count, and closed at the end.
func Run(t *testing.T, body func(t *testing.T, rdb redis.UniversalClient)) {
	t.Helper()
	RunOn(t, OnMini|OnServer|OnCluster, body)
}

// RunOn is Run on some kinds only.
func RunOn(t *testing.T, kinds Kind, body func(t *testing.T, rdb redis.UniversalClient)) {
	t.Helper()
	if kinds&OnCluster != 0 && unavailable() == nil {
		// A new cluster is writable after two seconds. Begin them before the
		// first body rather than after the second.
		sharedCluster.begin()
	}
	if kinds&OnMini != 0 {
		t.Run("miniredis", func(t *testing.T) {
			_, rdb := Mini(t)
			body(t, rdb)
		})
	}
	if kinds&OnServer != 0 {
		t.Run("server", func(t *testing.T) {
			s := sharedServer.lease(t)
			body(t, s.newClient(t, nil))
		})
	}
	if kinds&OnCluster != 0 {
		t.Run("cluster", func(t *testing.T) {
			s := sharedCluster.lease(t)
			body(t, newClusterClient(t, []string{s.Addr()}, nil))
		})
	}
}

// Mini returns an empty miniredis of the test's own, whose TTLs follow the real
// clock, and a client for it. With SetTime, both TTLs and TIME follow that clock.
func Mini(t testing.TB) (*miniredis.Miniredis, *redis.Client) {
	t.Helper()
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		t.Fatalf("redistest: start miniredis: %v", err)
	}
	t.Cleanup(m.Close)
	m.ClockTTL(true)
	return m, newClient(t, &redis.Options{Addr: m.Addr()}, nil)
}

// Bubble is Mini for a testing/synctest bubble: the client's connections are
// pipes, on which a bubble can tell that everybody waits, and TTLs and TIME
// follow the bubble's clock.
func Bubble(t testing.TB) (*miniredis.Miniredis, *redis.Client) {
	t.Helper()
	m := miniredis.NewMiniRedis()
	t.Cleanup(m.Close)
	m.ClockTTL(true)
	return m, newClient(t, &redis.Options{Addr: "127.0.0.1:1"}, func(o *redis.Options) {
		o.Dialer = dialMini(m)
	})
}

// newClient returns a client with options that suit tests, changed by change,
// that Count knows and t closes.
func newClient(t testing.TB, o *redis.Options, change func(*redis.Options)) *redis.Client {
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.ContextTimeoutEnabled = true
	o.DialTimeout = time.Second
	if change != nil {
		change(o)
	}
	if o.Dialer == nil {
		o.Dialer = redis.NewDialer(o)
	}
	wire := new(wire)
	o.Dialer = wire.dialer(o.Dialer)
	rdb := redis.NewClient(o)
	watch(t, rdb, wire)
	return rdb
}

func newClusterClient(t testing.TB, addrs []string, change func(*redis.ClusterOptions)) *redis.ClusterClient {
	o := &redis.ClusterOptions{
		Addrs:                      addrs,
		DisableIdentity:            true,
		MaintNotificationsConfig:   &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		ContextTimeoutEnabled:      true,
		ClusterStateReloadInterval: time.Second,
		DialTimeout:                time.Second,
	}
	if change != nil {
		change(o)
	}
	if o.Dialer == nil {
		o.Dialer = redis.NewDialer(&redis.Options{DialTimeout: o.DialTimeout, TLSConfig: o.TLSConfig})
	}
	wire := new(wire)
	o.Dialer = wire.dialer(o.Dialer)
	rdb := redis.NewClusterClient(o)
	watch(t, rdb, wire)
	return rdb
}

// setupContext gives set-up code its own deadline.
func setupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

// newSetupClient returns a client of this package's own; Close it.
func newSetupClient(s *Server) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:                     s.Addr(),
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}
