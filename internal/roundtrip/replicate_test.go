package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
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
				start := time.Now()
				mustIncr(t, c, "other")
				others.Store(max(others.Load(), int64(time.Since(start))))
			}
		})
		callers(16, 2, func(int) {
			start := time.Now()
			n, err := replicatedIncr(c, "m")
			if !errors.Is(err, roundtrip.ErrNotReplicated) || errors.Is(err, roundtrip.ErrUnavailable) {
				t.Errorf("DoReplicated = %v; want ErrNotReplicated alone", err)
			}
			if n == 0 {
				t.Error("the command's value is missing; want it beside ErrNotReplicated")
			}
			if took := time.Since(start); took < timeout/10 || took > timeout+time.Second {
				t.Errorf("it took %v; want a wait that ends by the timeout, %v", took, timeout)
			}
		})
		close(stop)
		all.Wait()
		if got := master.Client().Get(ctx, "m").Val(); got != "32" {
			t.Errorf("the master has %s; want each call once, 32", got)
		}
		if d := time.Duration(others.Load()); d > timeout*3/10 {
			t.Errorf("a call that waits for nobody took %v meanwhile", d)
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

// On a cluster each call waits for the replicas of its own master, also while its
// slot moves.
func TestDoReplicatedOnCluster(t *testing.T) {
	cl := redistest.StartCluster(t, 3, true)
	for _, bounded := range []bool{true, false} {
		t.Run(fmt.Sprint("bounded ", bounded), func(t *testing.T) {
			rdb := cl.Client(func(o *redis.ClusterOptions) { o.ContextTimeoutEnabled = bounded })
			c := newConn(t, rdb, roundtrip.Config{Timeout: 6 * time.Second})
			keys := []string{"a", "b", "c", "d", "e", "f"}
			var done atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for i, key := range keys {
				all.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						// Some keys are new, which a moving slot sends elsewhere.
						if _, err := replicatedIncr(c, fmt.Sprintf("{%s}%v-%d", key, bounded, n%50)); err != nil {
							t.Errorf("caller %d: %v", i, err)
						}
						done.Add(1)
					}
				})
			}
			for _, key := range keys {
				slot := int(roundtrip.Slot(key))
				from, err := cl.Owner(ctx, slot)
				if err != nil {
					t.Fatal(err)
				}
				to := cl.Masters[0]
				if to == from {
					to = cl.Masters[1]
				}
				if err := cl.MigrateSlot(ctx, slot, to, func() { time.Sleep(50 * time.Millisecond) }); err != nil {
					t.Error(err)
				}
			}
			cancel()
			all.Wait()
			var sum int64
			_ = rdb.ForEachMaster(t.Context(), func(ctx context.Context, m *redis.Client) error {
				for _, key := range m.Keys(ctx, fmt.Sprintf("*%v-*", bounded)).Val() {
					n, _ := rdb.Get(ctx, key).Int64()
					atomic.AddInt64(&sum, n)
				}
				return nil
			})
			if sum != done.Load() || sum < 100 {
				t.Errorf("counted %d; want %d, and some hundreds", sum, done.Load())
			}
		})
	}
}
