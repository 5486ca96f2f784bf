package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

func newConn(t testing.TB, rdb redis.UniversalClient, cfg roundtrip.Config) *roundtrip.Conn {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second // generous: these tests are about something else
	}
	c, err := roundtrip.New(rdb, cfg)
	if err != nil {
		t.Fatalf("New(%T) = %v", rdb, err)
	}
	return c
}

var incr = roundtrip.NewScript(`
-- a comment, which is not sent
return redis.call('INCRBY', KEYS[1], ARGV[1])
`)

func TestNewRefuses(t *testing.T) {
	single := func(f func(*redis.Options)) redis.UniversalClient {
		o := &redis.Options{Addr: "127.0.0.1:1"}
		f(o)
		c := redis.NewClient(o)
		t.Cleanup(func() { c.Close() })
		return c
	}
	cluster := func(f func(*redis.ClusterOptions)) redis.UniversalClient {
		o := &redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}}
		f(o)
		c := redis.NewClusterClient(o)
		t.Cleanup(func() { c.Close() })
		return c
	}
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	t.Cleanup(func() { ring.Close() })
	plain := single(func(*redis.Options) {})
	ap, err := plain.AutoPipeline()
	if err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		rdb  redis.UniversalClient
		cfg  roundtrip.Config
		want string
	}{
		"nil":                  {nil, roundtrip.Config{}, "client is nil"},
		"nil client":           {(*redis.Client)(nil), roundtrip.Config{}, "nil *redis.Client"},
		"nil cluster":          {(*redis.ClusterClient)(nil), roundtrip.Config{}, "nil *redis.ClusterClient"},
		"ring":                 {ring, roundtrip.Config{}, "use Redis Cluster or Sentinel"},
		"autopipeliner":        {ap, roundtrip.Config{}, "the client it was made from"},
		"client-side cache":    {single(func(o *redis.Options) { o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{} }), roundtrip.Config{}, "client-side cache"},
		"read only":            {cluster(func(o *redis.ClusterOptions) { o.ReadOnly = true }), roundtrip.Config{}, "replicas"},
		"by latency":           {cluster(func(o *redis.ClusterOptions) { o.RouteByLatency = true }), roundtrip.Config{}, "replicas"},
		"random":               {cluster(func(o *redis.ClusterOptions) { o.RouteRandomly = true }), roundtrip.Config{}, "replicas"},
		"negative timeout":     {plain, roundtrip.Config{Timeout: -1}, "timeout -1ns is negative"},
		"both are in one text": {nil, roundtrip.Config{Timeout: -1}, "negative; use zero for 250ms\nclient is nil"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := roundtrip.New(c.rdb, c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New = %v; want an error with %q", err, c.want)
			}
		})
	}
}

func TestDo(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newConn(t, rdb, roundtrip.Config{})
		set := redis.NewStatusCmd(ctx, "set", "{a}1", "x")
		get := redis.NewStringCmd(ctx, "get", "{a}1")
		missing := redis.NewStringCmd(ctx, "get", "{a}2")
		if err := c.Do(ctx, "test", set, get, missing); err != nil {
			t.Fatalf("Do = %v; want nil", err)
		}
		if get.Val() != "x" || missing.Err() != redis.Nil {
			t.Errorf("get = %q, missing = %v; want x, redis.Nil", get.Val(), missing.Err())
		}
		if err := c.Do(ctx, "test"); err != nil {
			t.Errorf("Do with no commands = %v; want nil", err)
		}
		if cmd, err := c.Run(ctx, "test", incr.Cmd(ctx, []string{"n"}, 5)); err != nil || cmd.Val() != int64(5) {
			t.Errorf("Run = %v, %v; want 5", cmd, err)
		}
	})
}

// Commands of a call that fail do not hide the others' answers.
func TestDoEach(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newConn(t, rdb, roundtrip.Config{Name: "test"})
		rdb.Set(ctx, "{a}s", "v", 0)
		wrong := redis.NewMapStringStringCmd(ctx, "hgetall", "{a}s")
		right := redis.NewStringCmd(ctx, "get", "{a}s")
		if err := c.DoEach(ctx, "op", wrong, right); err != nil {
			t.Fatalf("DoEach = %v; want nil", err)
		}
		if right.Val() != "v" {
			t.Errorf("the good command = %q, %v; want v", right.Val(), right.Err())
		}
		err := c.Classify("op", wrong.Err())
		if !errors.Is(err, roundtrip.ErrBug) || errors.Is(err, roundtrip.ErrUnavailable) {
			t.Errorf("WRONGTYPE is %v; want ErrBug and not ErrUnavailable", err)
		}
		if err := c.Do(ctx, "op", wrong, right); !errors.Is(err, roundtrip.ErrBug) {
			t.Errorf("Do = %v; want ErrBug", err)
		}
	})
}

// Few calls travel alone, many share flights, and the switch turns that off.
func TestCoalescing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, off := range []bool{false, true} {
			var alone, together atomic.Int64
			c := newConn(t, rdb, roundtrip.Config{NoCoalesce: off, OnCall: func(e roundtrip.Event) {
				if e.Coalesced {
					together.Add(1)
				} else {
					alone.Add(1)
				}
			}})
			for range 10 {
				mustIncr(t, c, "n")
			}
			if together.Load() != 0 {
				t.Errorf("one caller shared %d flights; want 0", together.Load())
			}
			n := redistest.Count(t, rdb, func() { callers(64, 20, func(int) { mustIncr(t, c, "n") }) })
			if off {
				if together.Load() != 0 {
					t.Errorf("%d calls shared a flight though NoCoalesce is set", together.Load())
				}
				continue
			}
			if together.Load() < 640 {
				t.Errorf("64 callers: %d of 1280 calls shared a flight; want at least half", together.Load())
			}
			if n.RoundTrips > 640 {
				t.Errorf("64 callers: 1280 calls took %d round trips; want at most half", n.RoundTrips)
			}
		}
		if got, _ := rdb.Get(t.Context(), "n").Int(); got != 2*(10+64*20) {
			t.Errorf("counted %d; want %d", got, 2*(10+64*20))
		}
	})
}

// A script that the server forgets in mid-load is sent again, alone and in
// flights, and runs exactly once for each call.
func TestScriptFlushLosesNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newConn(t, rdb, roundtrip.Config{})
		stop := make(chan struct{})
		var flushes int
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := rdb.ScriptFlush(ctx).Err(); err == nil {
						flushes++
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
		const n, each = 32, 50
		callers(n, each, func(int) {
			if err := c.Do(ctx, "incr", incr.Cmd(ctx, []string{"n"}, 1).Once()); err != nil {
				t.Errorf("Do = %v; want nil", err)
			}
		})
		close(stop)
		wg.Wait()
		if got, _ := rdb.Get(ctx, "n").Int(); got != n*each || flushes == 0 {
			t.Errorf("counted %d with %d flushes; want %d", got, flushes, n*each)
		}
	})
}

// No caller ever gets another's value, however many leave early.
func TestNoCrossedReplies(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newConn(t, rdb, roundtrip.Config{Timeout: time.Second, NoBreaker: true})
		var wrong, timeouts, ok atomic.Int64
		callers(48, 60, func(caller int) {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(1500))*time.Microsecond)
			defer cancel()
			want := fmt.Sprint(caller, "/", rand.Uint64())
			echo := redis.NewStringCmd(ctx, "echo", want)
			switch err := c.Do(ctx, "echo", echo); {
			case err == nil && echo.Val() == want:
				ok.Add(1)
			case err == nil:
				wrong.Add(1)
			case errors.Is(err, roundtrip.ErrUnavailable):
				timeouts.Add(1)
			default:
				t.Errorf("Do = %v; want nil or ErrUnavailable", err)
			}
		})
		if wrong.Load() != 0 {
			t.Errorf("%d wrong values", wrong.Load())
		}
		if ok.Load() == 0 || timeouts.Load() == 0 {
			t.Errorf("%d answered, %d in time out: the test should see both", ok.Load(), timeouts.Load())
		}
	})
}

func TestConnsOfOneClientShareBreaker(t *testing.T) {
	_, rdb := redistest.Mini(t)
	a, b := newConn(t, rdb, roundtrip.Config{}), newConn(t, rdb, roundtrip.Config{})
	other := newConn(t, redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}), roundtrip.Config{})
	rdb.Close()
	for range 5 {
		a.Do(t.Context(), "get", redis.NewStringCmd(t.Context(), "get", "k"))
	}
	if a.Available("k") || b.Available("k") {
		t.Error("after five failures by one Conn: still available; want the breaker open for both")
	}
	if !other.Available("k") {
		t.Error("another client's breaker opened too")
	}
}

func TestEvents(t *testing.T) {
	_, rdb := redistest.Mini(t)
	var got []roundtrip.Event
	c := newConn(t, rdb, roundtrip.Config{OnCall: func(e roundtrip.Event) { got = append(got, e) }})
	ctx := t.Context()
	c.Do(ctx, "load", redis.NewStringCmd(ctx, "get", "k"), redis.NewDurationCmd(ctx, time.Millisecond, "pttl", "k"))
	rdb.HSet(ctx, "h", "f", "v")
	c.Do(ctx, "save", redis.NewStringCmd(ctx, "get", "h"))
	if len(got) != 2 {
		t.Fatalf("%d events; want 2", len(got))
	}
	if e := got[0]; e.Op != "load" || e.Commands != 2 || e.Err != nil || e.Duration <= 0 {
		t.Errorf("first event = %+v; want load, 2 commands, no error", e)
	}
	if e := got[1]; e.Op != "save" || !errors.Is(e.Err, roundtrip.ErrBug) {
		t.Errorf("second event = %+v; want save with ErrBug", e)
	}
}

func mustIncr(t testing.TB, c *roundtrip.Conn, key string) {
	if err := c.Do(context.Background(), "incr", redis.NewIntCmd(context.Background(), "incr", key)); err != nil {
		t.Errorf("incr = %v", err)
	}
}

// callers runs f each times on n goroutines and waits.
func callers(n, each int, f func(caller int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for range each {
				f(i)
			}
		})
	}
	wg.Wait()
}
