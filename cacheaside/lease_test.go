package cacheaside_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

const prefix = cacheaside.DefaultPrefix + "test:"

// gate is a loader that waits for permission, so that a test decides when a load
// begins and ends.
type gate struct {
	began chan struct{} // one for each load that has read the source
	pass  chan struct{} // one lets one load return
	value atomic.Value
	loads atomic.Int64
}

func newGate(value string) *gate {
	g := &gate{began: make(chan struct{}, 100), pass: make(chan struct{}, 100)}
	g.value.Store(value)
	return g
}

func (g *gate) load(ctx context.Context, _ string) (string, error) {
	g.loads.Add(1)
	v := g.value.Load().(string)
	g.began <- struct{}{}
	select {
	case <-g.pass:
		return v, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

type got struct {
	v   string
	err error
}

// noLease checks that a key is not leased. For a moment it may say that the last load's
// outcome is not cached.
func noLease(t testing.TB, rdb redis.UniversalClient, entry string) {
	t.Helper()
	if v := rdb.Get(t.Context(), entry).Val(); strings.HasPrefix(v, "L") {
		t.Error("a lease was left behind")
	} else if left := rdb.PTTL(t.Context(), entry).Val(); v != "" && left > time.Second {
		t.Errorf("%.1q stays for %v; want a moment", v, left)
	}
}

func getAsync(ctx context.Context, c *cacheaside.Cache[string, string], key string) chan got {
	ch := make(chan got, 1)
	go func() {
		v, err := c.Get(ctx, key)
		ch <- got{v, err}
	}()
	return ch
}

// TestInvalidateWinsOverLoad: the value of a load that an invalidation overtook is
// neither cached, nor given to who came after.
func TestInvalidateWinsOverLoad(t *testing.T) {
	for _, tt := range []struct {
		name string
		act  func(c *cacheaside.Cache[string, string], rdb redis.UniversalClient) error
	}{
		{"Invalidate", func(c *cacheaside.Cache[string, string], _ redis.UniversalClient) error {
			return c.Invalidate(context.Background(), "k")
		}},
		{"Clear", func(c *cacheaside.Cache[string, string], _ redis.UniversalClient) error {
			return c.Clear(context.Background())
		}},
		{"Update", func(c *cacheaside.Cache[string, string], _ redis.UniversalClient) error {
			return c.Update(context.Background(), func(context.Context) error { return nil }, "k")
		}},
		{"foreign DEL", func(_ *cacheaside.Cache[string, string], rdb redis.UniversalClient) error {
			return rdb.Del(context.Background(), prefix+"k").Err()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
				ctx := t.Context()
				g := newGate("old")
				c := newCache(t, rdb, g.load, cacheaside.Config{L1Entries: -1})
				other := newCache(t, rdb, g.load, cacheaside.Config{L1Entries: -1})
				leader := getAsync(ctx, c, "k")
				<-g.began
				g.value.Store("new")
				must(t, tt.act(other, rdb))

				follower := getAsync(ctx, c, "k") // came after: must not get "old"
				time.Sleep(10 * time.Millisecond)
				g.pass <- struct{}{}
				g.pass <- struct{}{}
				if a := <-leader; a.err != nil || a.v != "old" {
					t.Errorf("leader got %q, %v; want what it loaded", a.v, a.err)
				}
				if a := <-follower; a.err != nil || a.v != "new" {
					t.Errorf("follower got %q, %v; want new", a.v, a.err)
				}
				if v, ok, err := other.Peek(ctx, "k"); err != nil || ok && v != "new" {
					t.Errorf("cached: %q, %v, %v; want new, or nothing", v, ok, err)
				}
			})
		})
	}
}

func TestWaiterCancelled(t *testing.T) {
	_, rdb := redistest.Mini(t)
	g := newGate("v")
	c := newCache(t, rdb, g.load, cacheaside.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	leader := getAsync(ctx, c, "k")
	<-g.began
	follower := getAsync(t.Context(), c, "k")
	cancel()
	if a := <-leader; !errors.Is(a.err, context.Canceled) {
		t.Errorf("cancelled leader got %q, %v; want context.Canceled", a.v, a.err)
	}
	time.Sleep(20 * time.Millisecond)
	g.pass <- struct{}{}
	if a := <-follower; a.err != nil || a.v != "v" {
		t.Errorf("follower got %q, %v; want v", a.v, a.err)
	}
	if n := g.loads.Load(); n != 1 {
		t.Errorf("%d loads; want 1", n)
	}
}

// TestContextValues: the loader sees the values of its caller's context, and not
// its cancellation.
func TestContextValues(t *testing.T) {
	_, rdb := redistest.Mini(t)
	type key struct{}
	c := newCache(t, rdb, func(ctx context.Context, _ string) (string, error) {
		if _, ok := ctx.Deadline(); !ok {
			return "", errors.New("no deadline")
		}
		return ctx.Value(key{}).(string), nil
	}, cacheaside.Config{})
	if v, err := c.Get(context.WithValue(t.Context(), key{}, "seen"), "k"); err != nil || v != "seen" {
		t.Errorf("Get = %q, %v; want seen", v, err)
	}
}

func TestLoaderDies(t *testing.T) {
	for _, tt := range []struct {
		name string
		die  func()
		want string
	}{
		{"panic", func() { panic("ouch") }, "ouch"},
		{"panic with an error", func() { panic(errors.New("ouch")) }, "ouch"},
		{"nil dereference", func() { var p *int; *p = 1 }, "nil pointer"},
		{"Goexit", runtime.Goexit, "Goexit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, rdb := redistest.Mini(t)
			hold := make(chan struct{})
			c := newCache(t, rdb, func(context.Context, string) (string, error) {
				<-hold
				tt.die()
				return "", nil
			}, cacheaside.Config{})
			var answers []chan got
			for range 10 {
				answers = append(answers, getAsync(t.Context(), c, "k"))
			}
			time.Sleep(30 * time.Millisecond)
			close(hold)
			for _, ch := range answers {
				a := <-ch
				var pe *cacheaside.PanicError
				if !errors.As(a.err, &pe) || !strings.Contains(a.err.Error(), tt.want) || !strings.Contains(string(pe.Stack), "lease_test.go") {
					t.Fatalf("got %q, %v; want a *PanicError about %q with the stack", a.v, a.err, tt.want)
				}
			}
			noLease(t, rdb, prefix+"k")
		})
	}
}

// TestHardTimeout: nobody waits for a loader that ignores its context.
func TestHardTimeout(t *testing.T) {
	_, rdb := redistest.Mini(t)
	hold := make(chan struct{})
	defer close(hold)
	c := newCache(t, rdb, func(context.Context, string) (string, error) { <-hold; return "late", nil },
		cacheaside.Config{LoadTimeout: 50 * time.Millisecond})
	begin := time.Now()
	v, err := c.Get(t.Context(), "k")
	if !errors.Is(err, cacheaside.ErrLoadTimeout) || v != "" {
		t.Errorf("Get = %q, %v; want ErrLoadTimeout", v, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Get took %v; want about 50ms", took)
	}
}

// TestHolderDies: a lease that nobody fills ends.
func TestHolderDies(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		must(t, rdb.Set(t.Context(), prefix+"1", "L0123456789abcdef", 150*time.Millisecond).Err())
		u, err := c.Get(t.Context(), 1)
		if err != nil || u.Name != "ann" {
			t.Fatalf("Get = %+v, %v; want ann", u, err)
		}
		if n := src.loads.Load(); n != 1 {
			t.Errorf("%d loads; want 1", n)
		}
		if e, err := c.GetEntry(t.Context(), 1); err != nil || e.Source > cacheaside.SourceRedis {
			t.Errorf("then from %v, %v; want from the cache", e.Source, err)
		}
	})
}

// TestLateLease: a lease whose acquisition was not seen to succeed is not filled,
// even if it stands.
func TestLateLease(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) { o.Network, o.Addr, o.Dialer = "tcp", p.Addr(), nil })
	src := &source{rows: map[int]string{1: "ann"}}
	mustGet(t, newCache(t, s.Client(), src.load, cacheaside.Config{L1Entries: -1}), 1, "ann") // the scripts are known
	must(t, s.Client().Del(t.Context(), prefix+"1").Err())
	var fills atomic.Int64
	c, err := cacheaside.New(rdb, "test", src.load, cacheaside.Config{TTL: time.Minute, Timeout: 50 * time.Millisecond, L1Entries: -1,
		Hooks: cacheaside.Hooks{Fill: func(cacheaside.FillEvent) { fills.Add(1) }}})
	must(t, err)
	defer c.Close()
	// Executed, but the reply comes too late.
	p.Set(redistest.Fault{Match: "evalsha", Times: 1, DelayReply: 120 * time.Millisecond})
	if u, err := c.Get(t.Context(), 1); err != nil || u.Name != "ann" {
		t.Fatalf("Get = %+v, %v; want ann", u, err)
	}
	if p.Hits() != 1 || fills.Load() != 0 {
		t.Errorf("%d fills tried after %d late replies; want none after 1: the lease was not seen", fills.Load(), p.Hits())
	}
	p.Clear()
	eventually(t, "the lease is given back", func() bool { return s.Client().Exists(context.Background(), prefix+"1").Val() == 0 })
}

// TestLostReplies: scripts that are executed twice do what one execution does.
func TestLostReplies(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) { o.Network, o.Addr, o.Dialer = "tcp", p.Addr(), nil })
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1})
	warm := newCache(t, rdb, src.load, cacheaside.Config{L1Entries: -1})
	_, err := warm.Get(t.Context(), 2) // the scripts are known
	if !errors.Is(err, cacheaside.ErrNotFound) {
		t.Fatal(err)
	}
	for skip := range 2 { // the acquisition's, then the fill's reply is lost
		must(t, warm.Invalidate(t.Context(), 1))
		before := src.loads.Load()
		p.Set(redistest.Fault{Match: "evalsha", Skip: skip, Times: 1, CutAfter: true})
		if u, err := c.Get(t.Context(), 1); err != nil || u.Name != "ann" {
			t.Fatalf("Get = %+v, %v; want ann", u, err)
		}
		if p.Hits() != 1 {
			t.Fatalf("skip %d: the fault struck %d times; want once", skip, p.Hits())
		}
		e, err := c.GetEntry(t.Context(), 1)
		if err != nil || e.Source != cacheaside.SourceRedis {
			t.Errorf("skip %d: then from %v, %v; want from redis", skip, e.Source, err)
		}
		if n := src.loads.Load() - before; n != 1 {
			t.Errorf("skip %d: %d loads; want 1", skip, n)
		}
	}
	p.Set(redistest.Fault{Match: "evalsha", Times: 1, CutAfter: true})
	src.set(1, "bea")
	must(t, c.Invalidate(t.Context(), 1))
	if u, err := c.Get(t.Context(), 1); err != nil || u.Name != "bea" {
		t.Errorf("Get after Invalidate with a lost reply = %+v, %v; want bea", u, err)
	}
}

// TestManyWriters: under constant invalidation every caller gets an answer no
// older than its call.
func TestManyWriters(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var version atomic.Int64
		c := newCache(t, rdb, func(context.Context, string) (int64, error) {
			v := version.Load()
			time.Sleep(time.Millisecond)
			return v, nil
		}, cacheaside.Config{})
		stop := make(chan struct{})
		var writers, readers sync.WaitGroup
		for range 2 {
			writers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						version.Add(1)
						must(t, c.Invalidate(t.Context(), "k"))
					}
				}
			})
		}
		for range 8 {
			readers.Go(func() {
				for range 20 {
					// Each writer may be between its Add and its Invalidate.
					least := version.Load() - 2
					if v, err := c.Get(t.Context(), "k"); err != nil || v < least {
						t.Errorf("Get = %d, %v; want at least %d", v, err, least)
					}
				}
			})
		}
		readers.Wait()
		close(stop)
		writers.Wait()
	})
}
