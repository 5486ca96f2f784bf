package cacheaside_test

import (
	"context"
	"math/rand/v2"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// ledger is a source whose rows are versions, each commit the next one. Reading
// and committing take time on both sides of the moment they happen at, so that
// what races can race.
type ledger struct {
	mu sync.Mutex
	v  map[string]int64
}

func dawdle() { time.Sleep(rand.N(1500 * time.Microsecond)) }

func (l *ledger) read(_ context.Context, key string) (int64, error) {
	dawdle()
	l.mu.Lock()
	v := l.v[key]
	l.mu.Unlock()
	dawdle()
	return v, nil
}

func (l *ledger) commit(key string) int64 {
	dawdle()
	l.mu.Lock()
	l.v[key]++
	v := l.v[key]
	l.mu.Unlock()
	dawdle()
	return v
}

// side is a process' view of a cache in front of a ledger.
type side interface {
	read(ctx context.Context, key string) (int64, error)
	// write commits and makes the cache follow. promised is false if the cache
	// said that it could not keep its promise.
	write(ctx context.Context, key string, commit func() int64) (v int64, promised bool)
}

// plain is the recipe of the text books: get, or load and set; delete on update.
type plain struct {
	rdb redis.UniversalClient
	src *ledger
}

func (p plain) read(ctx context.Context, key string) (int64, error) {
	if v, err := p.rdb.Get(ctx, key).Int64(); err == nil {
		return v, nil
	}
	v, err := p.src.read(ctx, key)
	p.rdb.Set(ctx, key, v, 20*time.Millisecond)
	return v, err
}

func (p plain) write(ctx context.Context, key string, commit func() int64) (int64, bool) {
	v := commit()
	return v, p.rdb.Del(ctx, key).Err() == nil
}

// fresh invalidates after the write.
type fresh struct {
	c *cacheaside.Cache[string, int64]
}

func (f fresh) read(ctx context.Context, key string) (int64, error) { return f.c.Get(ctx, key) }

func (f fresh) write(ctx context.Context, key string, commit func() int64) (int64, bool) {
	v := commit()
	return v, f.c.Invalidate(ctx, key) == nil
}

// fenced writes by Update.
type fenced struct{ fresh }

func (f fenced) write(ctx context.Context, key string, commit func() int64) (v int64, promised bool) {
	err := f.c.Update(ctx, func(context.Context) error {
		v = commit()
		return nil
	}, key)
	return v, err == nil
}

// event is one finished operation.
type event struct {
	proc      int
	key       string
	write     bool
	v         int64
	promised  bool // of a write: the cache reported no error
	call, ret int64
}

// play lets readers and writers loose on sides until they have done so many
// operations, and returns what happened. A key is used for 300 of them.
func play(t *testing.T, src *ledger, sides []side, operations int64) []event {
	t.Helper()
	var mu sync.Mutex
	var all []event
	var begun atomic.Int64
	t0 := time.Now()
	clock := func() int64 { return time.Since(t0).Nanoseconds() }
	var wg sync.WaitGroup
	for proc, s := range sides {
		for worker := range 5 {
			wg.Go(func() {
				var mine []event
				for {
					n := begun.Add(1)
					if n > operations {
						break
					}
					e := event{proc: proc, key: "k" + strconv.FormatInt(n/(operations/5), 10), promised: true}
					e.call = clock()
					if e.write = worker == 0 && proc < 2; e.write {
						e.v, e.promised = s.write(t.Context(), e.key, func() int64 { return src.commit(e.key) })
					} else {
						var err error
						if e.v, err = s.read(t.Context(), e.key); err != nil {
							t.Errorf("read: %v; want no error, as the loader works", err)
							return
						}
					}
					e.ret = clock()
					mine = append(mine, e)
					if e.write {
						time.Sleep(rand.N(10 * time.Millisecond))
					} else {
						time.Sleep(rand.N(time.Millisecond))
					}
				}
				mu.Lock()
				all = append(all, mine...)
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	return all
}

// staleReads counts reads that returned a value older than a write of theirs or
// another process was acknowledged for before the read began: for more than slack,
// if another process'.
func staleReads(all []event, slack time.Duration) (reads, stale int) {
	type ack struct{ at, v int64 }
	acks := map[string][][]ack{} // by key and process
	for _, e := range all {
		if e.write && e.promised {
			if acks[e.key] == nil {
				acks[e.key] = make([][]ack, 8)
			}
			acks[e.key][e.proc] = append(acks[e.key][e.proc], ack{e.ret, e.v})
		}
	}
	for _, perProc := range acks {
		for _, a := range perProc {
			sort.Slice(a, func(i, j int) bool { return a[i].at < a[j].at })
			for i := 1; i < len(a); i++ {
				a[i].v = max(a[i].v, a[i-1].v)
			}
		}
	}
	for _, e := range all {
		if e.write {
			continue
		}
		reads++
		for proc, a := range acks[e.key] {
			before := e.call
			if proc != e.proc {
				before -= int64(slack)
			}
			if i := sort.Search(len(a), func(i int) bool { return a[i].at >= before }); i > 0 && e.v < a[i-1].v {
				stale++
				break
			}
		}
	}
	return reads, stale
}

// register is a key as porcupine sees it.
var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, in, out any) (bool, any) {
		e := in.(event)
		if e.write {
			return true, e.v
		}
		return e.v == state.(int64), state
	},
}

// linearizable checks each key's history, up to the first write whose promise was
// not kept, and ends when enough are illegal.
func linearizable(all []event, enough int) (ops, keys, whole, illegal int) {
	byKey := map[string][]event{}
	void := map[string]int64{}
	for _, e := range all {
		byKey[e.key] = append(byKey[e.key], e)
		if !e.promised {
			if at, ok := void[e.key]; !ok || e.call < at {
				void[e.key] = e.call
			}
		}
	}
	for key, events := range byKey {
		end, broken := void[key]
		var history []porcupine.Operation
		for i, e := range events {
			// Leaving out a read can't make a history legal less; a write can.
			if broken && (e.write && e.call >= end || !e.write && e.ret >= end) {
				continue
			}
			history = append(history, porcupine.Operation{ClientId: i, Input: e, Call: e.call, Return: e.ret})
		}
		keys++
		ops += len(history)
		if !broken {
			whole++
		}
		if porcupine.CheckOperationsTimeout(register, history, 20*time.Second) != porcupine.Ok {
			illegal++
		}
		if illegal == enough {
			break // enough, and refuting takes long
		}
	}
	return ops, keys, whole, illegal
}

// historyConfig has everything happen often: short lives, early refreshes.
func historyConfig(cfg cacheaside.Config) cacheaside.Config {
	if cfg.TTL == 0 {
		cfg.TTL = 20 * time.Millisecond
	}
	if cfg.EarlyRefresh == 0 {
		cfg.EarlyRefresh = 2
	}
	cfg.StaleWhileRevalidate = 10 * time.Millisecond
	return relaxed(cfg)
}

func historySides(t *testing.T, src *ledger, cfg cacheaside.Config, wrap func(*cacheaside.Cache[string, int64]) side, clients ...redis.UniversalClient) []side {
	t.Helper()
	sides := make([]side, len(clients))
	for i, rdb := range clients {
		c, err := cacheaside.New(rdb, "history", src.read, historyConfig(cfg))
		must(t, err)
		t.Cleanup(func() { c.Close() })
		sides[i] = wrap(c)
	}
	return sides
}

// historyLength is how many operations a history has, and controlLength that in which the
// check must find a fault.
const historyLength, controlLength = 600, 1500

// TestHistoryControl shows that the checks catch what they are for.
func TestHistoryControl(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		src := &ledger{v: map[string]int64{}}
		p := plain{rdb, src}
		all := play(t, src, []side{p, p, p}, controlLength)
		reads, stale := staleReads(all, 0)
		_, keys, _, illegal := linearizable(all, 1)
		t.Logf("get-load-set: %d reads, %d stale; %d keys, %d not linearizable", reads, stale, keys, illegal)
		if stale == 0 || illegal == 0 {
			t.Errorf("get-load-set had %d stale reads and %d illegal keys; the check must catch it", stale, illegal)
		}
	})
}

func TestHistoryInvalidate(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &ledger{v: map[string]int64{}}
		wrap := func(c *cacheaside.Cache[string, int64]) side { return fresh{c} }
		all := play(t, src, historySides(t, src, cacheaside.Config{L1Entries: -1}, wrap, rdb, rdb, rdb), historyLength)
		reads, stale := staleReads(all, 0)
		t.Logf("%d reads, %d stale", reads, stale)
		if stale != 0 || reads < 20 {
			t.Errorf("%d of %d reads were older than an acknowledged Invalidate; want none of many", stale, reads)
		}
	})
}

func TestHistoryUpdate(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &ledger{v: map[string]int64{}}
		wrap := func(c *cacheaside.Cache[string, int64]) side { return fenced{fresh{c}} }
		all := play(t, src, historySides(t, src, cacheaside.Config{L1Entries: -1}, wrap, rdb, rdb, rdb), historyLength)
		ops, keys, whole, illegal := linearizable(all, 1)
		t.Logf("%d operations, %d keys", ops, keys)
		if illegal != 0 || whole != keys {
			t.Errorf("of %d keys %d were not linearizable, and %d had a lost fence; want none", keys, illegal, keys-whole)
		}
	})
}

func TestHistoryL1(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		src := &ledger{v: map[string]int64{}}
		wrap := func(c *cacheaside.Cache[string, int64]) side { return fresh{c} }
		const bound = 300 * time.Millisecond
		sides := historySides(t, src, cacheaside.Config{MaxStaleness: bound, TTL: time.Minute, EarlyRefresh: -1}, wrap, rdb, rdb, rdb)
		for _, s := range sides {
			eventually(t, "first level in use", func() bool {
				e, err := s.(fresh).c.GetEntry(t.Context(), "first")
				return err == nil && e.Source == cacheaside.SourceL1
			})
		}
		all := play(t, src, sides, historyLength)
		reads, stale := staleReads(all, bound)
		_, late := staleReads(all, 0)
		var hits uint64
		for _, s := range sides {
			hits += s.(fresh).c.Stats().L1Hits
		}
		t.Logf("%d reads, %d from the first level; older than another's acknowledged Invalidate: %d, by more than %v: %d", reads, hits, late, bound, stale)
		if stale != 0 || hits == 0 {
			t.Errorf("%d reads were stale beyond the bound, or of the same process' writes, with %d first-level hits; want none with some", stale, hits)
		}
	})
}

// TestHistoryFaults has replies lost, connections cut, and the server paused and
// killed, while the histories are recorded.
func TestHistoryFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(*cacheaside.Cache[string, int64]) side
		cfg  cacheaside.Config
	}{
		{"invalidate", func(c *cacheaside.Cache[string, int64]) side { return fresh{c} }, cacheaside.Config{L1Entries: -1}},
		{"update", func(c *cacheaside.Cache[string, int64]) side { return fenced{fresh{c}} }, cacheaside.Config{L1Entries: -1}},
		{"first level", func(c *cacheaside.Cache[string, int64]) side { return fresh{c} }, cacheaside.Config{MaxStaleness: 200 * time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := redistest.Start(t, redistest.AOF("always"))
			var clients []redis.UniversalClient
			var proxies []*redistest.Proxy
			for range 3 {
				p := redistest.NewProxy(t, server.Network(), server.Addr())
				proxies = append(proxies, p)
				clients = append(clients, server.Client(func(o *redis.Options) {
					o.Network, o.Addr, o.Dialer = "tcp", p.Addr(), nil
				}))
			}
			cfg := tt.cfg
			cfg.Timeout = 60 * time.Millisecond
			cfg.LoadTimeout = 300 * time.Millisecond
			cfg.FenceTTL = 2 * time.Second
			src := &ledger{v: map[string]int64{}}
			sides := historySides(t, src, cfg, tt.wrap, clients...)

			ctx, cancel := context.WithCancel(t.Context())
			var faults atomic.Int64
			done := make(chan struct{})
			go func() {
				defer close(done)
				harm(ctx, server, proxies, &faults)
			}()
			all := play(t, src, sides, historyLength)
			cancel()
			<-done
			if faults.Load() == 0 {
				t.Fatal("no fault; want some")
			}
			reads, stale := staleReads(all, cfg.MaxStaleness)
			ops, keys, whole, illegal := linearizable(all, 1)
			unkept := 0
			for _, e := range all {
				if !e.promised {
					unkept++
				}
			}
			t.Logf("%d faults, %d reads, %d stale; %d writes without promise; %d operations checked on %d keys, %d of them whole, %d not linearizable",
				faults.Load(), reads, stale, unkept, ops, keys, whole, illegal)
			if stale != 0 {
				t.Errorf("%d of %d reads were older than an acknowledged write; want none", stale, reads)
			}
			if tt.name == "update" && illegal != 0 {
				t.Errorf("%d of %d keys were not linearizable; want none", illegal, keys)
			}
		})
	}
}

// harm does something to the connections or the server every few milliseconds.
func harm(ctx context.Context, server *redistest.Server, proxies []*redistest.Proxy, faults *atomic.Int64) {
	for n := 1; ctx.Err() == nil; n++ {
		p := proxies[rand.IntN(len(proxies))]
		switch {
		case n%15 == 0:
			server.Kill()
			server.Restart()
		case n%7 == 0:
			server.Pause()
			time.Sleep(rand.N(100 * time.Millisecond))
			server.Resume()
		default:
			p.Set([]redistest.Fault{
				{Match: "evalsha", Times: 1, LoseReply: true},
				{Match: "evalsha", Times: 1, CutAfter: true},
				{Match: "evalsha", Times: 1, CutBefore: true, Reset: true},
				{Match: "get", Times: 1, LoseReply: true},
				{Times: 3, DelayReply: 10 * time.Millisecond},
				{Times: 2, DelayRequest: 70 * time.Millisecond},
			}[rand.IntN(6)])
		}
		faults.Add(1)
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	for _, p := range proxies {
		p.Clear()
	}
}
