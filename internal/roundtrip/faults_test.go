package roundtrip_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
	"go.uber.org/goleak"
)

// A stopped server costs a call its deadline and no more, whatever the client's
// own timeouts (5 s and three retries here) and however many calls wait.
func TestDeadlineAgainstStoppedServer(t *testing.T) {
	for name, timeoutEnabled := range map[string]bool{"client ignores deadlines": false, "client obeys them": true} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			rdb := s.Client(func(o *redis.Options) { o.ContextTimeoutEnabled = timeoutEnabled })
			deadlines(t, s, rdb)
		})
	}
	t.Run("cluster client ignores deadlines", func(t *testing.T) {
		s := redistest.Start(t, redistest.TCP())
		rdb := redistest.Shards(t, []string{s.Addr()}, func(o *redis.ClusterOptions) {
			o.ContextTimeoutEnabled = false
			o.ReadTimeout = time.Second // so that the leak check below ends soon
			o.MaxRedirects = 1
		})
		deadlines(t, s, rdb)
	})
}

func deadlines(t *testing.T, s *redistest.Server, rdb redis.UniversalClient) {
	c := newConn(t, rdb, roundtrip.Config{Timeout: 50 * time.Millisecond, NoBreaker: true})
	ctx := context.Background()
	callers(16, 5, func(int) { mustIncrOnce(t, c) }) // connections are warm
	before := goleak.IgnoreCurrent()
	s.Pause()
	for _, n := range []int{1, 16} {
		var late, kinds atomic.Int64
		callers(n, 3, func(int) {
			within := redistest.Within(t, 50*time.Millisecond)
			err := c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n"))
			if took, most := within(); took > most {
				late.Add(1)
				t.Logf("a call with a 50 ms deadline took %v; want at most %v", took, most)
			}
			if !errors.Is(err, roundtrip.ErrTimeout) || !errors.Is(err, roundtrip.ErrUnavailable) {
				kinds.Add(1)
				t.Logf("error: %v", err)
			}
		})
		if late.Load() != 0 || kinds.Load() != 0 {
			t.Errorf("%d callers: %d returned late, %d not with ErrTimeout; want none", n, late.Load(), kinds.Load())
		}
	}
	s.Resume()
	// Recovery needs no new Conn.
	redistest.Await(t, "a call after the server went on", func() error {
		return c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n"))
	})
	if err := goleak.Find(before); err != nil {
		t.Errorf("goroutines left: %v", err)
	}
}

// Conns with different timeouts share flights, and each call keeps its own.
func TestDeadlinesOfConnsThatShareFlights(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	short := newConn(t, rdb, roundtrip.Config{Timeout: 50 * time.Millisecond, NoBreaker: true})
	long := newConn(t, rdb, roundtrip.Config{Timeout: 500 * time.Millisecond, NoBreaker: true})
	callers(16, 5, func(int) { mustIncrOnce(t, long) }) // connections are warm
	s.Pause()
	var wrong atomic.Int64
	callers(32, 1, func(i int) {
		c, timeout := long, 500*time.Millisecond
		if i%2 == 0 {
			c, timeout = short, 50*time.Millisecond
		}
		within := redistest.Within(t, timeout)
		err := c.Do(context.Background(), "incr", redis.NewIntCmd(context.Background(), "incr", "n"))
		// One that joins a flight of others' ends no sooner than by its own timeout, and not much sooner alone.
		if took, most := within(); !errors.Is(err, roundtrip.ErrTimeout) || took < timeout/2 || took > most {
			wrong.Add(1)
			t.Logf("%v after %v; want ErrTimeout between %v and %v", err, took, timeout/2, most)
		}
	})
	if wrong.Load() > 0 {
		t.Errorf("%d calls of 32 did not end by their own timeout", wrong.Load())
	}
	s.Resume()
}

// A Dialer that does not look at its context costs a call its deadline and no more,
// alone and in flights.
func TestDeadlineWhileDialing(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: func(context.Context, string, string) (net.Conn, error) {
		<-release
		return nil, net.ErrClosed
	}})
	defer rdb.Close()
	c := newConn(t, rdb, roundtrip.Config{Timeout: 50 * time.Millisecond, NoBreaker: true})
	var wrong atomic.Int64
	callers(16, 2, func(int) {
		within := redistest.Within(t, 50*time.Millisecond)
		err := c.Do(context.Background(), "incr", redis.NewIntCmd(context.Background(), "incr", "n"))
		if took, most := within(); !errors.Is(err, roundtrip.ErrUnavailable) || took > most {
			wrong.Add(1)
			t.Logf("%v after %v; want ErrUnavailable within %v", err, took, most)
		}
	})
	if wrong.Load() > 0 {
		t.Errorf("%d calls of 32 did not end by their deadline", wrong.Load())
	}
}

func mustIncrOnce(t testing.TB, c *roundtrip.Conn) {
	if err := c.Do(context.Background(), "incr", redis.NewIntCmd(context.Background(), "incr", "warm")); err != nil {
		t.Logf("warming up: %v", err)
	}
}

// The caller's own context wins when it ends sooner.
func TestContext(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	c := newConn(t, s.Client(), roundtrip.Config{})
	ctx := context.Background()
	mustIncr(t, c, "n")

	canceled, cancel := context.WithCancel(ctx)
	cancel()
	err := c.Do(canceled, "incr", redis.NewIntCmd(ctx, "incr", "n"))
	if !errors.Is(err, context.Canceled) || errors.Is(err, roundtrip.ErrUnavailable) || roundtrip.MaybeExecuted(err) {
		t.Errorf("canceled before: %v; want context.Canceled, not ErrUnavailable, not executed", err)
	}
	if n, _ := c.Client().Get(ctx, "n").Int(); n != 1 {
		t.Errorf("n = %d after a canceled call; want 1", n)
	}
	s.Pause()
	defer s.Resume()
	short, cancel2 := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel2()
	within := redistest.Within(t, 20*time.Millisecond)
	err = c.Do(short, "incr", redis.NewIntCmd(ctx, "incr", "n"))
	if !errors.Is(err, roundtrip.ErrTimeout) || !roundtrip.MaybeExecuted(err) {
		t.Errorf("context of 20 ms: %v; want ErrTimeout, maybe executed", err)
	}
	if took, most := within(); took > most {
		t.Errorf("context of 20 ms: took %v; want at most %v", took, most)
	}
	if !c.Available("n") {
		t.Error("the breaker counted the caller's own short deadline")
	}
}

// A lost reply never executes an at-most-once command twice, alone or in a
// flight, on a single server or on a cluster; and a repeatable command is retried.
func TestAtMostOnce(t *testing.T) {
	t.Parallel()
	single := func(t *testing.T) (*redistest.Proxy, redis.UniversalClient, redis.UniversalClient) {
		s := redistest.Start(t)
		p := redistest.NewProxy(t, s.Network(), s.Addr())
		through := redis.NewClient(&redis.Options{Addr: p.Addr(), ReadTimeout: 300 * time.Millisecond})
		t.Cleanup(func() { through.Close() })
		return p, through, s.Client()
	}
	cluster := func(t *testing.T) (*redistest.Proxy, redis.UniversalClient, redis.UniversalClient) {
		s := redistest.Start(t, redistest.TCP(), redistest.Proxied())
		through := redistest.Shards(t, []string{s.Proxy.Addr()}, func(o *redis.ClusterOptions) { o.ReadTimeout = 300 * time.Millisecond })
		return s.Proxy, through, s.Client()
	}
	for name, set := range map[string]func(t *testing.T) (*redistest.Proxy, redis.UniversalClient, redis.UniversalClient){
		"single server": single, "cluster": cluster,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, rdb, direct := set(t)
			ctx := context.Background()
			c := newConn(t, rdb, roundtrip.Config{Timeout: 2 * time.Second, NoBreaker: true})
			if err := c.Do(ctx, "warm", incr.Cmd(ctx, []string{"warm"}, 1)); err != nil {
				t.Fatal(err)
			}
			for fault, f := range map[string]redistest.Fault{
				"reply lost":       {Match: "evalsha", Times: 1, LoseReply: true},
				"cut after it ran": {Match: "evalsha", Times: 1, CutAfter: true},
			} {
				direct.Del(ctx, "once")
				direct.Del(ctx, "again")
				p.Set(f)
				err := c.Do(ctx, "charge", incr.Cmd(ctx, []string{"once"}, 1).Once())
				if !errors.Is(err, roundtrip.ErrUnavailable) || !roundtrip.MaybeExecuted(err) {
					t.Errorf("%s: %v; want ErrUnavailable, maybe executed", fault, err)
				}
				p.Clear()
				if n, _ := direct.Get(ctx, "once").Int(); n != 1 {
					t.Errorf("%s: executed %d times; want 1", fault, n)
				}
				p.Set(f)
				if err := c.Do(ctx, "save", incr.Cmd(ctx, []string{"again"}, 1)); err != nil {
					t.Errorf("%s, repeatable: %v; want a retry to succeed", fault, err)
				}
				p.Clear()

				// In flights: 8 callers, the reply of a whole pipeline lost. Each
				// call is executed at most once, and those that succeeded exactly once.
				direct.Del(ctx, "flight")
				var succeeded atomic.Int64
				p.Set(redistest.Fault{Match: "evalsha", Times: 2, LoseReply: f.LoseReply, CutAfter: f.CutAfter})
				callers(16, 4, func(int) {
					switch err := c.Do(ctx, "charge", incr.Cmd(ctx, []string{"flight"}, 1).Once()); {
					case err == nil:
						succeeded.Add(1)
					case !errors.Is(err, roundtrip.ErrUnavailable):
						t.Errorf("in flights: %v; want nil or ErrUnavailable", err)
					}
				})
				p.Clear()
				n, _ := direct.Get(ctx, "flight").Int64()
				if n > 64 || n < succeeded.Load() || succeeded.Load() == 64 {
					t.Errorf("%s in flights: executed %d, succeeded %d of 64; want succeeded < 64 and ≤ executed ≤ 64", fault, n, succeeded.Load())
				}
			}
		})
	}
}

// A server that refuses connections costs nothing once the breaker is open, and
// is used again soon after it is back.
func TestBreaker(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	var dialed atomic.Int64
	rdb := s.Client(func(o *redis.Options) {
		dial := redis.NewDialer(o)
		o.DialerRetries = 1
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialed.Add(1)
			return dial(ctx, network, addr)
		}
	})
	c := newConn(t, rdb, roundtrip.Config{Timeout: time.Second})
	ctx := context.Background()
	mustIncr(t, c, "n")
	s.Kill()
	for range 5 {
		err := c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n"))
		if !errors.Is(err, roundtrip.ErrUnavailable) {
			t.Errorf("server killed: %v; want ErrUnavailable", err)
		}
	}
	if c.Available("n") {
		t.Fatal("available after five failures; want the breaker open")
	}
	// What is not sent is not dialed for either, but for a probe each 50 ms to a second.
	const many = 2000
	dials := dialed.Load()
	start := time.Now()
	for range many {
		if err := c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n")); err == nil {
			t.Fatal("a call succeeded on a dead server")
		} else if roundtrip.MaybeExecuted(err) {
			t.Fatalf("%v: claims it may have been executed", err)
		}
	}
	probes := int64(time.Since(start)/(37*time.Millisecond)) + 1
	if n := dialed.Load() - dials; n > 3*probes { // a probe is tried three times
		t.Errorf("%d calls with the breaker open dialed %d times; want those of %d probes at most", many, n, probes)
	}
	s.Restart()
	redistest.Await(t, "a call after the restart", func() error {
		return c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n"))
	})
	if !c.Available("n") {
		t.Error("not available after a success")
	}
}

// On a cluster one stopped master delays nobody else's calls.
func TestOtherShardsGoOn(t *testing.T) {
	t.Parallel()
	var servers []*redistest.Server
	var addrs []string
	for range 3 {
		s := redistest.Start(t, redistest.TCP())
		servers, addrs = append(servers, s), append(addrs, s.Addr())
	}
	for _, enabled := range []bool{true, false} {
		t.Run("ContextTimeoutEnabled="+strconv.FormatBool(enabled), func(t *testing.T) {
			rdb := redistest.Shards(t, addrs, func(o *redis.ClusterOptions) { o.ContextTimeoutEnabled = enabled })
			c := newConn(t, rdb, roundtrip.Config{Timeout: 500 * time.Millisecond})
			ctx := context.Background()
			// Masters own thirds of the slots, in order.
			keys := [3]string{}
			for i := 0; keys[0] == "" || keys[1] == "" || keys[2] == ""; i++ {
				k := "k" + strconv.Itoa(i)
				keys[int(roundtrip.Slot(k))*3/16384] = k
			}
			for _, k := range keys {
				for range 20 {
					mustIncr(t, c, k)
				}
			}
			servers[1].Pause()
			defer servers[1].Resume()
			var bad, good atomic.Int64
			callers(12, 20, func(caller int) {
				within := redistest.Within(t, 200*time.Millisecond)
				err := c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", keys[caller%3]))
				if caller%3 == 1 {
					return
				}
				if took, most := within(); err != nil || took > most {
					bad.Add(1)
				} else {
					good.Add(1)
				}
			})
			if bad.Load() > 4 {
				t.Errorf("%d calls to healthy masters failed or waited for another, %d were fine; want next to none", bad.Load(), good.Load())
			}
		})
	}
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	t.Run("answers of a fake", func(t *testing.T) {
		m, rdb := redistest.Mini(t)
		c := newConn(t, rdb, roundtrip.Config{Timeout: 200 * time.Millisecond, NoBreaker: true})
		for text, kind := range map[string]error{
			"LOADING Redis is loading the dataset in memory": roundtrip.ErrUnavailable,
			"CLUSTERDOWN The cluster is down":                roundtrip.ErrUnavailable,
			"TRYAGAIN Multiple keys request":                 roundtrip.ErrUnavailable,
			"MASTERDOWN Link with MASTER is down":            roundtrip.ErrUnavailable,
			"NOREPLICAS Not enough good replicas to write":   roundtrip.ErrUnavailable,
			"BUSY Redis is busy running a script":            roundtrip.ErrUnavailable,
			"MISCONF Errors writing to the AOF file":         roundtrip.ErrUnavailable,
			"READONLY You can't write against a replica":     roundtrip.ErrRefused,
			"OOM command not allowed":                        roundtrip.ErrRefused,
			"NOPERM this user has no permissions":            roundtrip.ErrRefused,
			"NOAUTH Authentication required.":                roundtrip.ErrRefused,
			"NOAUTH":                                         roundtrip.ErrRefused,
			"ERR unknown command 'GET'":                      roundtrip.ErrRefused,
			"ERR DB index is out of range":                   roundtrip.ErrRefused,
			"DENIED Redis is running in protected mode":      roundtrip.ErrRefused,
			// Of proxies and quotas.
			"no upstream host":                           roundtrip.ErrUnavailable,
			"upstream failure":                           roundtrip.ErrUnavailable,
			"ERR Connection refused":                     roundtrip.ErrUnavailable,
			"ERR anything else":                          roundtrip.ErrUnavailable,
			"ERR max requests limit exceeded. Limit: 10": roundtrip.ErrRefused,
			// Of a write inside a script, on 6.2, 7.0 and later.
			"ERR Error running script (call to f_ab): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.": roundtrip.ErrRefused,
			"ERR Error running script (call to f_ab): @user_script:1: -READONLY You can't write against a read only replica.":   roundtrip.ErrRefused,
			"ERR Error running script (call to f_ab): @user_script:1: -NOREPLICAS Not enough good replicas to write.":           roundtrip.ErrUnavailable,
			"ERR Error running script (call to f_ab): @user_script:1: -MISCONF Redis is configured to save RDB snapshots":       roundtrip.ErrUnavailable,
			"ERR Error running script (call to f_ab): @user_script: 1: Script killed by user with SCRIPT KILL... ":              roundtrip.ErrUnavailable,
			"ERR The user executing the script can't run this command or subcommand script: ab, on @user_script:1.":             roundtrip.ErrRefused,
			"ERR ACL failure in script: User u has no permissions to run the 'set' command script: ab, on @user_script:1.":      roundtrip.ErrRefused,
			"ERR Error running script (call to f_ab): @user_script:1: WRONGTYPE Operation against a key":                        roundtrip.ErrBug,
			"ERR user_script:1: attempt to perform arithmetic on a nil value script: ab, on @user_script:1.":                    roundtrip.ErrBug,
			"WRONGTYPE Operation against a key":           roundtrip.ErrBug,
			"CROSSSLOT Keys in request":                   roundtrip.ErrBug,
			"ERR value is not an integer or out of range": roundtrip.ErrBug,
		} {
			m.SetError(text)
			err := c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k"))
			// What is tried again until the Timeout may be on its way at its end.
			for try := 0; roundtrip.MaybeExecuted(err) && errors.Is(err, roundtrip.ErrTimeout) && try < 100; try++ {
				err = c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k"))
			}
			if !errors.Is(err, kind) {
				t.Errorf("%s: %v; want %v", text, err, kind)
			}
			if want := kind != roundtrip.ErrBug; errors.Is(err, roundtrip.ErrUnavailable) != want {
				t.Errorf("%s: is ErrUnavailable = %v; want %v", text, !want, want)
			}
			if roundtrip.MaybeExecuted(err) {
				t.Errorf("%s: maybe executed; want not", text)
			}
		}
		m.SetError("")
	})
	t.Run("an unknown answer that repeats trips the breaker", func(t *testing.T) {
		m, rdb := redistest.Mini(t)
		c := newConn(t, rdb, roundtrip.Config{})
		get := func() error { return c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k")) }
		for text, open := range map[string]bool{"OOM command not allowed": false, "no upstream host": true} {
			if err := get(); err != nil {
				t.Fatal(err)
			}
			m.SetError(text)
			for range 5 {
				_ = get()
			}
			if c.Available("k") == open {
				t.Errorf("after five answers %q the breaker is open: %t; want %t", text, !open, open)
			}
			m.SetError("")
			redistest.Await(t, "a call after the last", get)
		}
	})
	t.Run("answers of a server", func(t *testing.T) {
		s := redistest.Start(t)
		rdb := s.Client()
		c := newConn(t, rdb, roundtrip.Config{NoBreaker: true})
		set := func() error { return c.Do(ctx, "set", redis.NewStatusCmd(ctx, "set", "k", "v")) }
		want := func(what string, err, kind error) {
			t.Helper()
			if !errors.Is(err, kind) {
				t.Errorf("%s: %v; want %v", what, err, kind)
			}
		}
		rdb.ConfigSet(ctx, "maxmemory", "1")
		want("out of memory", set(), roundtrip.ErrRefused)
		_, err := c.Run(ctx, "incr", incr.Cmd(ctx, []string{"k"}, 1))
		want("out of memory in a script", err, roundtrip.ErrRefused)
		rdb.ConfigSet(ctx, "maxmemory", "0")
		rdb.Do(ctx, "replicaof", "127.0.0.1", "1")
		want("replica", set(), roundtrip.ErrRefused)
		rdb.Do(ctx, "replicaof", "no", "one")
		if err := rdb.Do(ctx, "acl", "setuser", "default", "-set").Err(); err != nil {
			t.Fatal(err)
		}
		want("no permission", set(), roundtrip.ErrRefused)
		_, err = c.Run(ctx, "set", roundtrip.NewScript(`return redis.call('SET', KEYS[1], 1)`).Cmd(ctx, []string{"k"}))
		want("no permission in a script", err, roundtrip.ErrRefused)
		rdb.Do(ctx, "acl", "setuser", "default", "+set")
		if err := set(); err != nil {
			t.Errorf("allowed again: %v; want nil", err)
		}
	})
	t.Run("refused connection", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		rdb := redis.NewClient(&redis.Options{Addr: ln.Addr().String(), DialerRetries: 1, MaxRetries: -1})
		t.Cleanup(func() { rdb.Close() })
		c := newConn(t, rdb, roundtrip.Config{NoBreaker: true})
		err = c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k"))
		if !errors.Is(err, roundtrip.ErrUnavailable) || roundtrip.MaybeExecuted(err) {
			t.Errorf("refused: %v; want ErrUnavailable, not executed", err)
		}
	})
	t.Run("closed client", func(t *testing.T) {
		_, rdb := redistest.Mini(t)
		rdb.Close()
		c := newConn(t, rdb, roundtrip.Config{NoBreaker: true})
		err := c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k"))
		if !errors.Is(err, roundtrip.ErrUnavailable) || !errors.Is(err, redis.ErrClosed) || roundtrip.MaybeExecuted(err) {
			t.Errorf("closed: %v; want ErrUnavailable and redis.ErrClosed, not executed", err)
		}
	})
}

// A flight whose reply never comes does not hold up those after it, though the
// client would wait for it far longer.
func TestLostFlightDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.TCP(), redistest.Proxied())
	rdb := redistest.Shards(t, []string{s.Proxy.Addr()}, func(o *redis.ClusterOptions) {
		o.ContextTimeoutEnabled = false
		o.ReadTimeout = 4 * time.Second
	})
	c := newConn(t, rdb, roundtrip.Config{Timeout: time.Second, NoBreaker: true})
	ctx := context.Background()
	callers(16, 5, func(int) { mustIncrOnce(t, c) })
	proxy := s.Proxy
	// Two calls travel alone and two flights may be in the air: lose them all.
	proxy.Set(redistest.Fault{Match: "incr", Times: 4, LoseReply: true})
	callers(16, 1, func(int) { c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "lost")) })
	if proxy.Hits() < 3 {
		t.Fatalf("%d replies were lost; want those of a flight among them", proxy.Hits())
	}
	proxy.Clear()
	var failed atomic.Int64
	within := redistest.Within(t, time.Second) // far less than the client would wait
	callers(16, 10, func(int) {
		if err := c.Do(ctx, "incr", redis.NewIntCmd(ctx, "incr", "n")); err != nil {
			failed.Add(1)
		}
	})
	if took, most := within(); failed.Load() > 0 || took > most {
		t.Errorf("%d of 160 later calls failed, in %v; want none, at once", failed.Load(), took)
	}
}
