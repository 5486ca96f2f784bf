package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/wrapped"
)

// engine is what all Conns over one client share: lanes, and the count of calls
// in flight.
type engine struct {
	rdb      redis.UniversalClient // as given
	inner    redis.UniversalClient // what rdb comes down to
	cluster  *redis.ClusterClient  // nil unless inner is one
	bounded  bool                  // our calls' sockets obey context deadlines
	slotted  atomic.Bool           // keys of different slots can't meet, as a CROSSSLOT has told
	yields   bool                  // the core when a flight has been sent, see yield.go
	keep     atomic.Int64          // until when the core is not yielded, nanoseconds after base
	inflight atomic.Int64
	longest  atomic.Int64 // of the timeouts of the Conns
	lanes    *lanePair    // of a single server; of a cluster whose topology is unknown yet

	// Of a cluster: a pair of lanes for each master, so that a dead or slow one
	// delays no other shard. A failover makes a new pair, since the slots then
	// belong to another node's client.
	byMaster    sync.Map // *redis.Client → *lanePair
	masters     atomic.Int64
	topology    atomic.Bool // known, so that looking up a master does no I/O
	discovering atomic.Bool
	lastClock   atomic.Pointer[clock] // of the server that told its time last
}

// lanePair is one server's lanes. Commands that go out at most once have their
// own, since go-redis repeats a pipeline as a whole or not at all: sharing one
// would cost the others their retry.
type lanePair struct {
	breaker          breaker
	clock            clock // the server's
	repeatable, once lane
	replicated       lane // see replicate.go
}

func (e *engine) newPair() *lanePair {
	p := new(lanePair)
	for _, l := range []*lane{&p.repeatable, &p.once, &p.replicated} {
		l.eng, l.brk, l.clock, l.departures.Late, l.pilots = e, &p.breaker, &p.clock, l.late, NewPilots(l.fly)
	}
	p.replicated.waits = true
	return p
}

func check(rdb redis.UniversalClient) error {
	switch c := wrapped.Client(rdb).(type) {
	case nil:
		return errors.New("client is nil; pass a *redis.Client or *redis.ClusterClient")
	case *redis.Client:
		if c == nil {
			return errors.New("client is a nil *redis.Client")
		}
		if o := c.Options(); o.ClientSideCacheConfig != nil || o.ClientSideCache != nil {
			return errors.New("client answers reads from go-redis' client-side cache, which may be older than an acknowledged write; " +
				"pass a client without Options.ClientSideCacheConfig and Options.ClientSideCache")
		}
	case *redis.ClusterClient:
		if c == nil {
			return errors.New("client is a nil *redis.ClusterClient")
		}
		if o := c.Options(); o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			return errors.New("cluster client reads from replicas, which may be older than an acknowledged write; " +
				"pass a client without ReadOnly, RouteByLatency and RouteRandomly")
		}
	case *redis.Ring:
		return errors.New("redis.Ring is not supported: it moves keys between shards when one goes down, " +
			"which revives deleted sessions and forgets limits; use Redis Cluster or Sentinel")
	case *redis.AutoPipeliner:
		return errors.New("client is a *redis.AutoPipeliner; pass the client it was made from, calls are coalesced here")
	}
	return nil
}

// engines finds the engine of a client that is already in use. Both sides are
// weak: an entry keeps neither the client nor the engine alive. A *redis.Client
// keeps its engine alive by its view, so that it gets one only once.
var engines struct {
	sync.Mutex
	m map[any]weak.Pointer[engine]
}

func engineFor(rdb redis.UniversalClient) *engine {
	var key any
	switch c := rdb.(type) {
	case *redis.Client:
		key = weak.Make(c)
	case *redis.ClusterClient:
		key = weak.Make(c)
	default:
		return newEngine(rdb) // somebody's own type: not shared
	}
	engines.Lock()
	defer engines.Unlock()
	if e := engines.m[key].Value(); e != nil {
		return e
	}
	e := newEngine(rdb)
	if engines.m == nil {
		engines.m = make(map[any]weak.Pointer[engine])
	}
	w := weak.Make(e)
	engines.m[key] = w
	runtime.AddCleanup(e, func(key any) {
		engines.Lock()
		defer engines.Unlock()
		if engines.m[key] == w {
			delete(engines.m, key)
		}
	}, key)
	return e
}

func newEngine(rdb redis.UniversalClient) *engine {
	e := &engine{rdb: rdb, inner: wrapped.Client(rdb)}
	switch c := e.inner.(type) {
	case *redis.Client:
		if rdb != e.inner {
			break // whether the calls come there as they are is not known
		}
		e.bounded = true
		e.yields = canYield && isLocal(c.Options())
		c.AddHook(newView(c, e))
	case *redis.ClusterClient:
		e.cluster = c
		o := c.Options()
		e.bounded = o.ContextTimeoutEnabled && rdb == e.inner
		// The hook keeps the engine alive, as a view does.
		c.OnNewNode(func(node *redis.Client) { node.AddHook(clusterNode{eng: e}) })
		if o.ClusterStateReloadInterval > 5*time.Second || o.ClusterStateReloadInterval == 0 {
			slog.Warn("redporch: cluster client reloads its topology slowly; a dead master can stay unnoticed that long",
				"code", "cluster-slow-reload", "interval", o.ClusterStateReloadInterval,
				"advice", "set ClusterOptions.ClusterStateReloadInterval to 1s and ContextTimeoutEnabled to true",
				"docs", "https://github.com/redporch/redporch/blob/main/docs/warnings.md#cluster-slow-reload")
		}
	}
	e.lanes = e.newPair()
	return e
}

// pairFor returns the lanes of the server that holds key.
func (e *engine) pairFor(key string) *lanePair {
	if e.cluster == nil {
		return e.lanes
	}
	if !e.topology.Load() {
		if e.discovering.CompareAndSwap(false, true) {
			go func() {
				_, err := e.cluster.MasterForKey(context.Background(), key)
				e.topology.Store(err == nil)
				e.discovering.Store(false)
			}()
		}
		return e.lanes
	}
	master, err := e.cluster.MasterForKey(context.Background(), key)
	if err != nil {
		return e.lanes
	}
	if p, ok := e.byMaster.Load(master); ok {
		return p.(*lanePair)
	}
	if e.masters.Add(1) > 1024 { // nodes come and go; don't keep those that went
		e.byMaster.Clear()
		e.masters.Store(1)
	}
	p, known := e.byMaster.LoadOrStore(master, e.newPair())
	if !known {
		master.AddHook(clusterNode{eng: e}) // it may be older than the engine
	}
	return p.(*lanePair)
}

// exec runs cmds on the wire until each has its outcome, and tells the breaker
// how it went. A failure after caller ended is the caller's doing and not the
// server's.
func (e *engine) exec(ctx context.Context, l *lane, cmds []redis.Cmder, caller context.Context) {
	if l.clock.due() {
		e.processTimed(ctx, l, cmds)
	} else {
		e.process(ctx, cmds)
	}
	if again := unknownScripts(cmds); again != nil {
		e.process(ctx, again)
	}
	e.retry(ctx, cmds)
	e.learnSlots(cmds)
	switch outcomeOf(cmds) {
	case answered:
		l.brk.report(false)
	case failed:
		if caller.Err() == nil {
			l.failed()
		}
	}
}

// learnSlots notes a server that knows slots behind a client that doesn't, such as a node
// that has them all, as serverless offers and some proxies are. Redis refuses a command
// whose keys can't meet before it does anything.
func (e *engine) learnSlots(cmds []redis.Cmder) {
	if e.cluster != nil || e.slotted.Load() {
		return
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && redis.HasErrorPrefix(err, "CROSSSLOT") {
			e.slotted.Store(true)
			return
		}
	}
}

// outcome is what the commands of a call or flight say of the server.
type outcome uint8

const (
	answered outcome = iota
	failed
	unasked // that it was not asked, for reasons of this process
)

// outcomeOf takes an error reply that is not known for a failure if nothing else was
// answered: a proxy that has no server, a quota that is used up.
func outcomeOf(cmds []redis.Cmder) (o outcome) {
	unknown, good := false, false
	for _, cmd := range cmds {
		err := cmd.Err()
		switch {
		case err == nil || err == redis.Nil:
			good = true
		case isReply(err):
			if isUnknownReply(err) {
				unknown = true
			} else {
				good = true
			}
		case !isOurs(err):
			return failed
		default:
			o = unasked
		}
	}
	if unknown && !good {
		return failed
	}
	return o
}

// failed notes that the server did not answer.
func (l *lane) failed() {
	l.brk.report(true)
	l.clock.doubt() // it may be another one that answers next
	l.eng.nudge()
}

func (e *engine) process(ctx context.Context, cmds []redis.Cmder) {
	ctx = ours{ctx}
	e.yieldSoon()
	if len(cmds) == 1 {
		// The error is on the command as well, but not if a hook returned one.
		if err := e.rdb.Process(ctx, cmds[0]); err != nil && cmds[0].Err() == nil {
			cmds[0].SetErr(err)
		}
		return
	}
	p := e.rdb.Pipeline()
	err := p.BatchProcess(ctx, cmds...)
	if err == nil {
		_, err = p.Exec(ctx)
	}
	if err != nil && !anyErr(cmds) {
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
	}
}

func anyErr(cmds []redis.Cmder) bool {
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			return true
		}
	}
	return false
}

// nudge makes a cluster client look at the topology again after a failure that
// it does not take as a hint itself: only MOVED, ASK and READONLY do, and a dead
// master answers none of them. go-redis runs at most one reload at a time.
func (e *engine) nudge() {
	if e.cluster != nil {
		e.cluster.ReloadState(context.Background())
	}
}

// EachMaster calls fn for every master, concurrently on a cluster, or once for a
// single server, and returns the first error. fn's client must be used with
// commands that are bounded by ctx.
func (c *Conn) EachMaster(ctx context.Context, fn func(ctx context.Context, master redis.UniversalClient) error) error {
	if c.eng.cluster != nil {
		return c.eng.cluster.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error { return fn(ctx, m) })
	}
	return fn(ctx, c.eng.rdb)
}

// firstKey returns the first key of a command that has its keys where most have
// them, or "" for one without.
func firstKey(cmd redis.Cmder) string {
	args := cmd.Args()
	i := 1
	if _, ok := cmd.(runsScript); ok {
		i = scriptKey
	}
	if i >= len(args) {
		return ""
	}
	switch k := args[i].(type) {
	case string:
		return k
	case *string:
		return *k
	case []byte:
		return string(k)
	default:
		return fmt.Sprint(k)
	}
}
