package roundtrip_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// startReplicated returns a master behind a proxy and its replica.
func startReplicated(t *testing.T) (master, replica *redistest.Server) {
	t.Helper()
	master = redistest.Start(t, redistest.TCP(), redistest.Proxied(), redistest.Set("repl-diskless-sync-delay", "0"))
	_, port, _ := strings.Cut(master.Addr(), ":")
	replica = redistest.Start(t, redistest.TCP(), redistest.Set("replicaof", "127.0.0.1 "+port))
	master.AwaitReplica()
	return master, replica
}

func replicatedIncr(c *roundtrip.Conn, key string) (int64, error) {
	ctx := context.Background()
	cmd := incr.Cmd(ctx, []string{key}, 1)
	err := c.DoReplicated(ctx, "incr", 1, cmd)
	if err != nil && !errors.Is(err, roundtrip.ErrNotReplicated) {
		return 0, err
	}
	n, _ := cmd.Int64()
	return n, err
}

func TestDoReplicated(t *testing.T) {
	t.Parallel()
	master, replica := startReplicated(t)
	ctx := t.Context()
	const timeout = time.Second
	c := newConn(t, master.Client(), roundtrip.Config{Name: "test", Timeout: timeout})

	t.Run("many callers", func(t *testing.T) {
		rdb := master.Client()
		rdb.ScriptFlush(ctx)
		n := redistest.Count(t, rdb, func() {
			callers(32, 20, func(int) {
				if _, err := replicatedIncr(c, "n"); err != nil {
					t.Error(err)
				}
			})
		})
		if got := replica.Client().Get(ctx, "n").Val(); got != "640" {
			t.Errorf("the replica has %s when the last call returned; want 640", got)
		}
		if n.RoundTrips > 320 {
			t.Errorf("640 calls took %d round trips; want at most half", n.RoundTrips)
		}
	})

	t.Run("replica stopped", func(t *testing.T) {
		replica.Pause()
		defer replica.Resume()
		var others atomic.Int64
		stop := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				within := redistest.Within(t, timeout/10)
				mustIncr(t, c, "other")
				if took, most := within(); took > most {
					others.Add(1)
				}
			}
		})
		callers(16, 2, func(int) {
			within := redistest.Within(t, timeout)
			n, err := replicatedIncr(c, "m")
			if !errors.Is(err, roundtrip.ErrNotReplicated) || errors.Is(err, roundtrip.ErrUnavailable) {
				t.Errorf("DoReplicated = %v; want ErrNotReplicated alone", err)
			}
			if n == 0 {
				t.Error("the command's value is missing; want it beside ErrNotReplicated")
			}
			if took, most := within(); took < timeout/10 || took > most {
				t.Errorf("it took %v; want a wait that ends by the timeout, %v", took, timeout)
			}
		})
		close(stop)
		all.Wait()
		if got := master.Client().Get(ctx, "m").Val(); got != "32" {
			t.Errorf("the master has %s; want each call once, 32", got)
		}
		if n := others.Load(); n > 0 {
			t.Errorf("%d calls that wait for nobody were held up meanwhile", n)
		}
	})

	t.Run("reply lost", func(t *testing.T) {
		proxied := redis.NewClient(&redis.Options{Addr: master.Proxy.Addr()})
		defer proxied.Close()
		c := newConn(t, proxied, roundtrip.Config{Timeout: timeout})
		if _, err := replicatedIncr(c, "warm"); err != nil {
			t.Fatal(err)
		}
		master.Proxy.Set(redistest.Fault{Match: "evalsha", Times: 1, CutAfter: true})
		_, err := replicatedIncr(c, "lost")
		if !errors.Is(err, roundtrip.ErrUnavailable) || !roundtrip.MaybeExecuted(err) {
			t.Errorf("DoReplicated = %v; want ErrUnavailable, perhaps executed", err)
		}
		if got := master.Client().Get(ctx, "lost").Val(); got != "1" {
			t.Errorf("the master counts %s; want 1", got)
		}
	})

	t.Run("no replicas", func(t *testing.T) {
		_, rdb := redistest.Mini(t)
		n, err := replicatedIncr(newConn(t, rdb, roundtrip.Config{Name: "test"}), "n")
		if n != 1 || !errors.Is(err, roundtrip.ErrNotReplicated) {
			t.Errorf("DoReplicated = %d, %v; want 1, ErrNotReplicated", n, err)
		}
		if want := "test: incr: too few replicas acknowledged the write: 0 of 1"; err.Error() != want {
			t.Errorf("the error says %q; want %q", err, want)
		}
	})
}

// On a cluster as well the master carries the command out, and what is missing are the
// replicas. That each call waits for those of its own master, also while its slot moves, is
// tested in module faults.
func TestDoReplicatedOnCluster(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		c := newConn(t, rdb, roundtrip.Config{Name: "test", Timeout: time.Second})
		rdb.ScriptFlush(t.Context())
		n, err := replicatedIncr(c, "k")
		if n != 1 || !errors.Is(err, roundtrip.ErrNotReplicated) || errors.Is(err, roundtrip.ErrUnavailable) {
			t.Errorf("DoReplicated = %d, %v; want 1, ErrNotReplicated", n, err)
		}
	})
}
