package roundtrip_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// opaque hides what a connection is.
type opaque struct{ net.Conn }

// Connections that were closed while they were idle cost no call, also one that must not
// be repeated, and nothing is sent twice. go-redis sees by itself that a socket was
// closed, but not behind TLS or a Dialer's own type.
func TestIdleConnectionsClosed(t *testing.T) {
	t.Parallel()
	const n = 8
	for _, protocol := range []int{2, 3} {
		secure := redistest.Start(t, redistest.TLS("no"))
		plain := redistest.Start(t, redistest.TCP())
		clients := map[string]func() (*redistest.Server, redis.UniversalClient){
			"TLS": func() (*redistest.Server, redis.UniversalClient) {
				return secure, secure.Client(func(o *redis.Options) { o.Protocol = protocol })
			},
			"a Dialer's type": func() (*redistest.Server, redis.UniversalClient) {
				return plain, redis.NewClient(&redis.Options{Protocol: protocol, Dialer: func(context.Context, string, string) (net.Conn, error) {
					c, err := net.Dial("tcp", plain.Addr())
					return opaque{c}, err
				}})
			},
			"TLS of a cluster": func() (*redistest.Server, redis.UniversalClient) {
				return secure, redistest.Shards(t, []string{secure.Addr()}, func(o *redis.ClusterOptions) { o.TLSConfig, o.Protocol = secure.TLSConfig(), protocol })
			},
		}
		for name, start := range clients {
			for _, alone := range []bool{false, true} {
				s, rdb := start()
				t.Cleanup(func() { rdb.Close() })
				c := newConn(t, rdb, roundtrip.Config{NoCoalesce: alone})
				ctx := t.Context()
				var failed atomic.Int64
				call := func(int) {
					if err := c.Do(ctx, "charge", incr.Cmd(ctx, []string{"n"}, 1).Once()); err != nil {
						failed.Add(1)
						t.Logf("%v", err)
					}
				}
				admin := s.Client()
				admin.FlushAll(ctx)
				const rounds = 2
				for range rounds {
					callers(n, 3, call)
					if err := admin.Do(ctx, "client", "kill", "skipme", "yes").Err(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(250 * time.Millisecond) // they are idle
				}
				callers(n, 1, call)
				if got, _ := admin.Get(ctx, "n").Int(); failed.Load() > 0 || got != n*(3*rounds+1) {
					t.Errorf("%s, RESP%d, alone %t: %d calls failed, %d were executed; want none, %d", name, protocol, alone, failed.Load(), got, n*(3*rounds+1))
				}
			}
		}
	}
}

// What waits for replicas is sent again as well if it was not sent.
func TestIdleConnectionsClosedReplicated(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.TLS("no"))
	c := newConn(t, s.Client(), roundtrip.Config{Timeout: time.Second})
	for want := range int64(2) {
		n, err := replicatedIncr(c, "n")
		if n != want+1 || !errors.Is(err, roundtrip.ErrNotReplicated) {
			t.Errorf("DoReplicated = %d, %v; want %d, ErrNotReplicated", n, err, want+1)
		}
		if err := s.Client().Do(t.Context(), "client", "kill", "skipme", "yes").Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}
