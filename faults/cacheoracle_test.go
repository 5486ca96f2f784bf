package faults_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// The oracle of caches is written from what doc.go of cacheaside promises: a read that
// starts after an invalidation was acknowledged, by key, tag, Clear or Update, does not
// return what the source had replaced before that invalidation began. In the process
// that invalidated that holds at once, elsewhere after MaxStaleness, and everywhere at
// once without a first level. Rows of the source are versions, which only grow, so a
// read is stale if its version is less than what is promised to it.
//
// A process is a cache with a client, and so connections, of its own.

const (
	oracleKeys   = 12
	oracleGroups = 3 // tags; a key is in the group of its remainder
	oracleBound  = 400 * time.Millisecond
)

// oracleRow is a row of the source, and what readers may rely on.
type oracleRow struct {
	version atomic.Int64
	own     [2]atomic.Int64 // acknowledged in a process
	mu      sync.Mutex
	acks    []oracleAck // in the order of their times
	settled int64       // of those that are older than the bound
}

type oracleAck struct {
	at time.Time
	v  int64
}

func (r *oracleRow) acknowledge(proc int, v int64) {
	for old := r.own[proc].Load(); v > old && !r.own[proc].CompareAndSwap(old, v); old = r.own[proc].Load() {
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acks = append(r.acks, oracleAck{time.Now(), v})
}

// promised is the least version that a read that starts now may return; zero if none is
// promised yet.
func (r *oracleRow) promised(proc int, bound time.Duration) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	limit := time.Now().Add(-bound)
	for len(r.acks) > 0 && !r.acks[0].at.After(limit) {
		r.settled = max(r.settled, r.acks[0].v)
		r.acks = r.acks[1:]
	}
	return max(r.settled, r.own[proc].Load())
}

// oracle is one run.
type oracle struct {
	seed  uint64
	bound time.Duration // elsewhere
	least int64         // writes, at least
	quiet bool          // the second process only reads, without Refresh: else it would not need to be told
	rows  [oracleKeys]oracleRow
	cs    [2]oracled

	// Of each process: reads to which something was promised, and those that did not keep it.
	reads, stale   [2]atomic.Int64
	writes, broken atomic.Int64
	example        atomic.Value
}

// oracled is what the oracle asks of a cache.
type oracled interface {
	Get(ctx context.Context, key int) (int64, error)
	Invalidate(ctx context.Context, keys ...int) error
}

// redporchCache is what it asks of this one as well.
type redporchCache interface {
	oracled
	GetMany(ctx context.Context, keys []int) (map[int]int64, error)
	Refresh(ctx context.Context, key int) (int64, error)
	InvalidateTags(ctx context.Context, tags ...string) error
	Clear(ctx context.Context) error
	Update(ctx context.Context, write func(context.Context) error, keys ...int) error
	Stats() cacheaside.Stats
}

func (o *oracle) allReads() int64 { return o.reads[0].Load() + o.reads[1].Load() }
func (o *oracle) allStale() int64 { return o.stale[0].Load() + o.stale[1].Load() }

// l1Hits counts reads from first levels.
func (o *oracle) l1Hits() (n uint64) {
	for _, c := range o.cs {
		n += c.(redporchCache).Stats().L1Hits
	}
	return n
}

// linger has what races race: mostly not at all, sometimes for a while.
func linger() {
	if rand.IntN(4) == 0 {
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

func (o *oracle) load(_ context.Context, key int) (int64, error) {
	linger()
	v := o.rows[key].version.Load()
	linger()
	return v, nil
}

func (o *oracle) loadMany(ctx context.Context, keys []int) (map[int]int64, error) {
	linger()
	out := map[int]int64{}
	for _, key := range keys {
		out[key] = o.rows[key].version.Load()
	}
	linger()
	return out, nil
}

// write changes rows and has the cache of a process follow.
func (o *oracle) write(ctx context.Context, rng *rand.Rand, proc int) {
	c, all := o.cs[proc].(redporchCache)
	first, step := rng.IntN(oracleKeys), oracleKeys // one key
	channel := rng.IntN(10)
	if !all {
		channel = 5
	}
	switch {
	case channel < 4: // a tag
		first, step = first%oracleGroups, oracleGroups
	case channel == 4: // all
		first, step = 0, 1
	}
	was := map[int]int64{}
	commit := func(context.Context) error {
		linger()
		for key := first; key < oracleKeys; key += step {
			was[key] = o.rows[key].version.Add(1)
		}
		linger()
		return nil
	}
	var err error
	switch {
	case channel < 4:
		commit(ctx)
		err = c.InvalidateTags(ctx, fmt.Sprint("group", first))
	case channel == 4:
		commit(ctx)
		err = c.Clear(ctx)
	case channel < 8:
		commit(ctx)
		err = o.cs[proc].Invalidate(ctx, first)
	default:
		err = c.Update(ctx, commit, first)
	}
	o.writes.Add(1)
	if err != nil {
		o.broken.Add(1) // no promise
		return
	}
	for key, v := range was {
		o.rows[key].acknowledge(proc, v)
	}
}

// read reads in one of several ways, and compares.
func (o *oracle) read(ctx context.Context, rng *rand.Rand, proc int) error {
	c, all := o.cs[proc].(redporchCache)
	keys := []int{rng.IntN(oracleKeys)}
	way := rng.IntN(20)
	if !all || way == 3 && o.quiet && proc == 1 {
		way = 10
	}
	if way < 3 {
		keys = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}[rng.IntN(8):]
	}
	least := map[int]int64{}
	for _, key := range keys {
		least[key] = o.rows[key].promised(proc, o.bound)
	}
	var got map[int]int64
	var err error
	how := "Get"
	switch {
	case way < 3:
		how = "GetMany"
		got, err = c.GetMany(ctx, keys)
	case way == 3:
		how = "Refresh"
		var v int64
		v, err = c.Refresh(ctx, keys[0])
		got = map[int]int64{keys[0]: v}
	default:
		var v int64
		v, err = o.cs[proc].Get(ctx, keys[0])
		got = map[int]int64{keys[0]: v}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", how, err)
	}
	for _, key := range keys {
		if least[key] > 0 {
			o.reads[proc].Add(1)
		}
		if got[key] < least[key] {
			o.stale[proc].Add(1)
			o.example.Store(fmt.Sprintf("%s of key %d in process %d returned version %d; promised is %d", how, key, proc, got[key], least[key]))
		}
	}
	return nil
}

// play has both processes read and write until there were so many reads in all, a fifth of
// them in each process, or, if stopAtStale, until one was stale.
func (o *oracle) play(t *testing.T, reads int64, stopAtStale bool) {
	var wg sync.WaitGroup
	over := func() bool {
		enough := o.allReads() >= reads && o.writes.Load() >= o.least && min(o.reads[0].Load(), o.reads[1].Load()) >= reads/5
		return enough || stopAtStale && o.allStale() > 0 || t.Failed()
	}
	for proc := range o.cs {
		for worker := range 6 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(o.seed, uint64(10*proc+worker)))
				for !over() {
					if worker == 0 && !(o.quiet && proc == 1) {
						next := o.allReads() + int64(rng.IntN(60))
						o.write(t.Context(), rng, proc)
						for o.writes.Load() > 100 && o.allReads() < next && !over() { // at first none is promised anything
							time.Sleep(50 * time.Microsecond)
						}
						continue
					}
					if err := o.read(t.Context(), rng, proc); err != nil {
						t.Errorf("seed %d: %v; want no error, as the loader works", o.seed, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func newOracle(t *testing.T, cfg cacheaside.Config, bulk bool, clients [2]redis.UniversalClient) *oracle {
	t.Helper()
	o := &oracle{seed: rand.Uint64()}
	if cfg.L1Entries >= 0 {
		o.bound, cfg.MaxStaleness = oracleBound, oracleBound
	}
	cfg.TTL, cfg.StaleWhileRevalidate, cfg.EarlyRefresh = 30*time.Millisecond, 20*time.Millisecond, 2
	if cfg.Tracking || cfg.L1Entries >= 0 {
		cfg.TTL = 10 * time.Second // what is stale stays so
	}
	funcs := cacheaside.Funcs[int, int64]{Tags: func(key int) []string { return []string{fmt.Sprint("group", key%oracleGroups), "all"} }}
	if bulk {
		funcs.LoadMany = o.loadMany
	}
	for i, rdb := range clients {
		c, err := cacheaside.New(rdb, "oracle", o.load, cfg, funcs)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		o.cs[i] = c
	}
	return o
}

// oracleReads is how many reads a run has: 500,000 over all, in the long form.
func oracleReads() int64 {
	if testing.Short() {
		return 4_000
	}
	return 63_000
}

func TestCacheOracle(t *testing.T) {
	var all atomic.Int64
	for _, l1 := range []struct {
		name string
		cfg  cacheaside.Config
	}{
		{"no first level", cacheaside.Config{L1Entries: -1}},
		{"first level with bus", cacheaside.Config{}},
		{"first level with tracking", cacheaside.Config{Tracking: true}},
	} {
		for _, bulk := range []bool{false, true} {
			for _, harmed := range []bool{false, true} {
				name := fmt.Sprintf("%s, LoadMany %v, faults %v", l1.name, bulk, harmed)
				t.Run(name, func(t *testing.T) {
					s := redistest.Start(t, redistest.AOF("always"))
					cfg := l1.cfg
					cfg.Timeout = 5 * time.Second
					var clients [2]redis.UniversalClient
					var proxies []*redistest.Proxy
					for i := range clients {
						p := redistest.NewProxy(t, s.Network(), s.Addr())
						proxies = append(proxies, p)
						clients[i] = s.Client(func(o *redis.Options) { o.Network, o.Addr, o.Dialer, o.PoolSize = "tcp", p.Addr(), nil, 30 })
					}
					if harmed {
						cfg.Timeout, cfg.LoadTimeout, cfg.FenceTTL = 100*time.Millisecond, time.Second, 2*time.Second
					}
					o := newOracle(t, cfg, bulk, clients)
					o.quiet = cfg.L1Entries >= 0 && bulk
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan struct{})
					faults := 0
					go func() {
						defer close(done)
						if harmed {
							faults = o.harm(ctx, s, proxies)
						}
					}()
					o.play(t, oracleReads(), false)
					cancel()
					<-done
					all.Add(o.allReads())
					t.Logf("%d and %d reads, %d stale; %d writes, %d without promise; %d faults; %d from first levels", o.reads[0].Load(), o.reads[1].Load(),
						o.allStale(), o.writes.Load(), o.broken.Load(), faults, o.l1Hits())
					if o.allStale() > 0 {
						t.Errorf("seed %d: %d of %d reads were stale; %v", o.seed, o.allStale(), o.allReads(), o.example.Load())
					}
					if o.writes.Load() == o.broken.Load() {
						t.Error("no write was acknowledged; that proves nothing")
					}
				})
			}
		}
	}
	t.Logf("%d reads in all", all.Load())
}

// harm does to Redis and to the connections what happens to them.
func (o *oracle) harm(ctx context.Context, s *redistest.Server, proxies []*redistest.Proxy) (faults int) {
	hand := s.Client()
	for n := 1; ctx.Err() == nil; n++ {
		p := proxies[rand.IntN(len(proxies))]
		switch {
		case n%31 == 0:
			s.Kill()
			s.Restart()
		case n%13 == 0:
			s.Pause()
			time.Sleep(rand.N(150 * time.Millisecond))
			s.Resume()
		case n%7 == 0:
			hand.FlushAll(ctx)
		case n%5 == 0:
			p.Cut(n%2 == 0)
		case n%3 == 0:
			hand.Del(ctx, fmt.Sprint(cacheaside.DefaultPrefix, "oracle:", rand.IntN(oracleKeys)))
		default:
			p.Set([]redistest.Fault{
				{Match: "evalsha", Times: 1, LoseReply: true},
				{Match: "evalsha", Times: 1, CutAfter: true},
				{Match: "evalsha", Times: 1, CutBefore: true, Reset: true},
				{Times: 3, DelayReply: 20 * time.Millisecond},
			}[rand.IntN(4)])
		}
		faults++
		time.Sleep(rand.N(30 * time.Millisecond))
	}
	for _, p := range proxies {
		p.Clear()
	}
	return faults
}

// saboteur drops what the promise rests on, by changing commands and replies on their way:
// the check of keys, the check of tags, the announcements, or these and what the server
// announces by itself.
type saboteur struct {
	what string
	mu   sync.Mutex
	tags map[string]string
	rdb  redis.UniversalClient
}

func (x *saboteur) DialHook(next redis.DialHook) redis.DialHook { return next }

// deaf is a connection on which the server is not asked to track.
type deaf struct{ net.Conn }

func (c deaf) Write(b []byte) (int, error) {
	if i := bytes.Index(b, []byte("tracking\r\n$2\r\non\r\n")); i >= 0 {
		with := slices.Concat(b[:i], []byte("tracking\r\n$3\r\noff\r\n"), b[i+len("tracking\r\n$2\r\non\r\n"):])
		_, err := c.Conn.Write(with)
		return len(b), err
	}
	return c.Conn.Write(b)
}

func (x *saboteur) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		x.before(ctx, cmd)
		err := next(ctx, cmd)
		x.after(cmd)
		return err
	}
}

func (x *saboteur) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			x.before(ctx, cmd)
		}
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			x.after(cmd)
		}
		return err
	}
}

func (x *saboteur) before(ctx context.Context, cmd redis.Cmder) {
	args := cmd.Args()
	switch x.what {
	case "key": // a broken lease stands again when it is filled
		if len(args) == 7 && strings.HasPrefix(text(args[4]), "L") && strings.HasPrefix(text(args[5]), "V") {
			x.rdb.Set(ctx, text(args[3]), text(args[4]), time.Second)
		}
	case "bus", "tracking": // announcements go where nobody listens
		for i, arg := range args {
			if text(arg) == cacheaside.DefaultPrefix+"oracle#bus" {
				args[i] = "nobody"
			}
		}
	}
}

func (x *saboteur) after(cmd redis.Cmder) {
	if x.what != "tag" {
		return
	}
	args := cmd.Args()
	at := 1
	if strings.HasPrefix(text(args[0]), "evalsha") || text(args[0]) == "eval" {
		at = 3
	}
	if len(args) <= at || !strings.Contains(text(args[at]), "#t:") {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	set := func(v string, put func(string)) {
		if v == "" {
			return
		}
		if first, ok := x.tags[text(args[at])]; ok {
			put(first)
		} else {
			x.tags[text(args[at])] = v
		}
	}
	switch c := cmd.(type) {
	case *redis.StringCmd:
		set(c.Val(), c.SetVal)
	case interface {
		Val() any
		SetVal(any)
	}:
		if v, ok := c.Val().(string); ok {
			set(v, func(v string) { c.SetVal(v) })
		}
	}
}

func text(arg any) string {
	switch arg := arg.(type) {
	case string:
		return arg
	case *string:
		return *arg
	case []byte:
		return string(arg)
	}
	return ""
}

// TestCacheOracleBites: with any of what the promise rests on dropped the oracle finds stale
// reads.
func TestCacheOracleBites(t *testing.T) {
	for _, tt := range []struct {
		what string
		cfg  cacheaside.Config
	}{
		{"key", cacheaside.Config{L1Entries: -1}},
		{"tag", cacheaside.Config{L1Entries: -1}},
		{"bus", cacheaside.Config{}},
		{"tracking", cacheaside.Config{Tracking: true}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s := redistest.Start(t)
			var clients [2]redis.UniversalClient
			for i := range clients {
				rdb := s.Client(func(o *redis.Options) {
					o.PoolSize = 30
					if dial := o.Dialer; tt.what == "tracking" {
						o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
							if dial == nil {
								dial = new(net.Dialer).DialContext
							}
							cn, err := dial(ctx, network, addr)
							return deaf{cn}, err
						}
					}
				})
				rdb.AddHook(&saboteur{what: tt.what, tags: map[string]string{}, rdb: s.Client()})
				clients[i] = rdb
			}
			cfg := tt.cfg
			cfg.Timeout = 5 * time.Second
			o := newOracle(t, cfg, false, clients)
			o.quiet = cfg.L1Entries >= 0
			o.play(t, 500_000, true)
			t.Logf("without the %s: %d stale of %d reads; %v", tt.what, o.allStale(), o.allReads(), o.example.Load())
			if o.allStale() == 0 {
				t.Errorf("seed %d: not one of %d reads was stale without the %s", o.seed, o.allReads(), tt.what)
			}
		})
	}
}
