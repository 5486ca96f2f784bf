package cacheaside_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// perKey counts loads, and how many of one key run at once.
type perKey struct {
	mu         sync.Mutex
	now        map[int]int
	most       int
	all, loads atomic.Int64
	mostAll    atomic.Int64
}

func (p *perKey) load(_ context.Context, key int) (string, error) {
	p.loads.Add(1)
	if n := p.all.Add(1); n > p.mostAll.Load() {
		p.mostAll.Store(n)
	}
	defer p.all.Add(-1)
	p.mu.Lock()
	if p.now == nil {
		p.now = map[int]int{}
	}
	p.now[key]++
	p.most = max(p.most, p.now[key])
	p.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	p.mu.Lock()
	p.now[key]--
	p.mu.Unlock()
	return strconv.Itoa(key), nil
}

// TestOutage: Redis is paused, slowed and killed under 64 callers; no error reaches
// one of them, since the loader works, and each key is loaded by one caller at a
// time. How long callers wait is measured by the matrix in faults/.
func TestOutage(t *testing.T) {
	for _, options := range []struct {
		name   string
		change func(*redis.Options)
	}{
		{"bounded client", nil},
		{"client with defaults", func(o *redis.Options) {
			o.ContextTimeoutEnabled, o.DialTimeout, o.ReadTimeout, o.MaxRetries = false, 0, 0, 0
		}},
	} {
		t.Run(options.name, func(t *testing.T) {
			s := redistest.Start(t)
			p := redistest.NewProxy(t, s.Network(), s.Addr())
			rdb := s.Client(func(o *redis.Options) { o.Network, o.Addr, o.Dialer = "tcp", p.Addr(), nil }, options.change)
			var src perKey
			c, err := cacheaside.New(rdb, "test", src.load, cacheaside.Config{TTL: 50 * time.Millisecond, Timeout: 50 * time.Millisecond, MaxDirectLoads: 16, L1Entries: -1, EarlyRefresh: -1})
			must(t, err)
			defer c.Close()
			var answers atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					for n := i; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						key := n % 40
						v, err := c.Get(t.Context(), key)
						if err != nil || v != strconv.Itoa(key) {
							t.Errorf("Get(%d) = %q, %v", key, v, err)
							return
						}
						answers.Add(1)
						time.Sleep(time.Millisecond)
					}
				})
			}
			// A stage lasts until there were so many answers in it.
			stage := func(name string) {
				t.Helper()
				until := answers.Load() + 300
				eventually(t, "300 answers, "+name, func() bool { return answers.Load() >= until })
			}
			stage("well")
			s.Pause()
			stage("paused")
			s.Resume()
			stage("resumed")
			p.Set(redistest.Fault{DelayReply: 30 * time.Millisecond})
			stage("slow")
			p.Clear()
			s.Kill()
			stage("killed")
			s.Restart()
			eventually(t, "cached again", func() bool {
				e, err := c.GetEntry(t.Context(), 3)
				return err == nil && e.Source == cacheaside.SourceRedis
			})
			stage("back")
			close(stop)
			wg.Wait()
			if src.most > 1 {
				t.Errorf("%d loads of one key at once in one process; want 1", src.most)
			}
			t.Logf("%d loads, at most %d at once", src.loads.Load(), src.mostAll.Load())
		})
	}
}

// TestDirectLoadsBounded: with Redis down, loads of distinct keys queue.
func TestDirectLoadsBounded(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true})
	defer rdb.Close()
	var src perKey
	c := newCache(t, rdb, src.load, cacheaside.Config{MaxDirectLoads: 5})
	var wg sync.WaitGroup
	for key := range 100 {
		wg.Go(func() {
			if v, err := c.Get(t.Context(), key); err != nil || v != strconv.Itoa(key) {
				t.Errorf("Get(%d) = %q, %v", key, v, err)
			}
		})
	}
	wg.Wait()
	if n := src.mostAll.Load(); n > 5 {
		t.Errorf("%d loads at once; want at most 5", n)
	}
	got, err := c.GetMany(t.Context(), upTo(20))
	if err != nil || len(got) != 20 {
		t.Errorf("GetMany = %d values, %v; want 20", len(got), err)
	}
}

// TestInvalidationQueued: an invalidation that fails is reported, the key is
// bypassed, and what was stored goes when Redis is back.
func TestInvalidationQueued(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.AOF("always"))
	p := redistest.NewProxy(t, s.Network(), s.Addr())
	rdb := s.Client(func(o *redis.Options) {
		o.Network, o.Addr, o.Dialer, o.MaxRetries, o.DialerRetries = "tcp", p.Addr(), nil, -1, 1
	})
	src := &source{rows: map[int]string{1: "ann", 2: "bob"}}
	funcs := cacheaside.Funcs[int, user]{Tags: colours}
	c, err := cacheaside.New(rdb, "test", src.load, relaxed(cacheaside.Config{}), funcs)
	must(t, err)
	defer c.Close()
	other := newCache(t, s.Client(), src.load, cacheaside.Config{L1Entries: -1}, funcs)
	mustGet(t, c, 1, "ann")
	mustGet(t, c, 2, "bob")

	p.Refuse()
	p.Cut(true)
	src.set(1, "Ann")
	src.set(2, "Bob")
	if err := c.Invalidate(t.Context(), 1); !errors.Is(err, cacheaside.ErrUnavailable) || !errors.Is(err, cacheaside.ErrInvalidationQueued) {
		t.Errorf("Invalidate = %v; want ErrUnavailable and ErrInvalidationQueued", err)
	}
	if err := c.InvalidateTags(t.Context(), "red"); !errors.Is(err, cacheaside.ErrInvalidationQueued) {
		t.Errorf("InvalidateTags = %v; want ErrInvalidationQueued", err)
	}
	mustGet(t, c, 1, "Ann") // this process knows
	mustGet(t, c, 2, "Bob")
	mustGet(t, other, 1, "ann") // the other can't
	if n := c.Stats().Queued; n != 2 {
		t.Errorf("Queued = %d; want 2", n)
	}
	// Only the first level and what needs Redis is bypassed: reads work.
	p.Accept(t)
	eventually(t, "the queue is empty", func() bool { return c.Stats().Queued == 0 })
	mustGet(t, other, 1, "Ann")
	mustGet(t, other, 2, "Bob")
	mustGet(t, c, 1, "Ann")
	eventually(t, "cached again", func() bool {
		e, err := c.GetEntry(t.Context(), 1)
		return err == nil && e.Source <= cacheaside.SourceRedis
	})
}

// TestUpdateOutage: the write is done without Redis, and the caller is told.
func TestUpdateOutage(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.AOF("always"))
	rdb := s.Client(func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
	src := &source{rows: map[int]string{1: "ann"}}
	c := newCache(t, rdb, src.load, cacheaside.Config{})
	mustGet(t, c, 1, "ann")
	s.Kill()
	err := c.Update(t.Context(), func(context.Context) error { src.set(1, "Ann"); return nil }, 1)
	if !errors.Is(err, cacheaside.ErrFenceLost) || !errors.Is(err, cacheaside.ErrInvalidationQueued) || !errors.Is(err, cacheaside.ErrUnavailable) {
		t.Errorf("Update = %v; want ErrFenceLost, ErrInvalidationQueued and ErrUnavailable", err)
	}
	mustGet(t, c, 1, "Ann")
	s.Restart()
	eventually(t, "the queue is empty", func() bool { return c.Stats().Queued == 0 })
	mustGet(t, c, 1, "Ann")
}

// TestCancelledCallerInvalidates: who hangs up has still invalidated.
func TestCancelledCallerInvalidates(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &source{rows: map[int]string{1: "ann"}}
		c := newCache(t, rdb, src.load, cacheaside.Config{})
		mustGet(t, c, 1, "ann")
		src.set(1, "Ann")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		must(t, c.Invalidate(ctx, 1))
		mustGet(t, c, 1, "Ann")
		if _, err := c.Get(ctx, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("Get = %v; want context.Canceled", err)
		}
	})
}
