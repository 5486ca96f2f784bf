package redistest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// shared is a server that all tests of a binary use in turn, since starting one
// for each would take most of the time, and a cluster two seconds.
type shared struct {
	start func() (*Server, error) // returns before the server is ready
	ready func(*redis.Client) error

	use sync.Mutex // held by the body that uses the server

	once   sync.Once
	server *Server
	err    error
}

var (
	sharedServer  = &shared{start: func() (*Server, error) { return launch() }, ready: func(*redis.Client) error { return nil }}
	sharedCluster = &shared{start: startOneNode, ready: awaitClusterOK}
)

// begin starts the server unless it runs.
func (s *shared) begin() {
	s.once.Do(func() { s.server, s.err = s.start() })
}

// lease gives t the server, empty, until t and its cleanups have finished.
func (s *shared) lease(t testing.TB) *Server {
	t.Helper()
	need(t)
	s.use.Lock()
	t.Cleanup(s.use.Unlock)
	s.begin()
	if s.err != nil {
		t.Fatalf("redistest: %v", s.err)
	}
	rdb := newSetupClient(s.server)
	defer rdb.Close()
	ctx, cancel := setupContext()
	defer cancel()
	err := s.ready(rdb)
	if err == nil {
		err = rdb.FlushAll(ctx).Err()
	}
	if err == nil {
		err = rdb.ScriptFlush(ctx).Err()
	}
	if err != nil {
		t.Fatalf("redistest: prepare the shared server: %v\n%s", err, s.server.LogTail())
	}
	return s.server
}

// closeShared stops the servers that were started.
func closeShared() {
	for _, s := range []*shared{sharedServer, sharedCluster} {
		s.once.Do(func() {}) // nothing starts from now on
		if s.server != nil {
			s.server.remove()
		}
	}
}

// startOneNode starts a cluster node that owns all slots. It serves them after
// two seconds, which Redis waits lest an outdated master came back.
func startOneNode() (*Server, error) {
	s, err := launch(TCP(), Set("cluster-enabled", "yes"))
	if err != nil {
		return nil, err
	}
	rdb := newSetupClient(s)
	defer rdb.Close()
	ctx, cancel := setupContext()
	defer cancel()
	if err := rdb.ClusterAddSlotsRange(ctx, 0, slots-1).Err(); err != nil {
		s.remove()
		return nil, fmt.Errorf("give the node its slots: %w", err)
	}
	return s, nil
}

const slots = 16384

func awaitClusterOK(rdb *redis.Client) error {
	ctx, cancel := setupContext()
	defer cancel()
	return poll(ctx, "cluster_state:ok", func() bool {
		return contains(rdb.ClusterInfo(ctx), "cluster_state:ok")
	})
}

// poll waits until ok, and names what it waited for in its error.
func poll(ctx context.Context, what string, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func contains(cmd *redis.StringCmd, part string) bool { return strings.Contains(cmd.Val(), part) }
