package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Cache answers for a loader. Make one with [New]; it is safe for concurrent
// use.
type Cache[K comparable, V any] struct {
	cfg    Config
	conn   *roundtrip.Conn
	loader func(ctx context.Context, key K) (V, error)
	fn     Funcs[K, V]
	keys   *keyCodec[K]
	pack   packer
	base   string // begins every entry's key in Redis
	seed   maphash.Seed

	channelName string // where invalidations are announced
	tagChannel  string // where those of tags are, if tags are shared
	tagBase     string // begins every tag's key in Redis
	origin      string // tells this cache's announcements from others'

	l1      *l1[K, V] // nil without a first level
	bus     *bus      // nil if neither L1 nor OnInvalidate needs one
	flights flights[K, V]
	refresh refreshes
	failing backoffs
	pending pending
	events  events
	stats   counters
	direct  chan struct{} // a place for each load without Redis

	closing context.Context // ends with Close
	close   context.CancelFunc
	closed  atomic.Bool
	bypass  atomic.Bool // see Bypass
	busUp   atomic.Bool
	life    sync.Mutex     // orders starting goroutines before or after Close
	workers sync.WaitGroup // goroutines that Close waits for
}

// New returns a cache called name in front of load, on the Redis of rdb. All
// caches of one name and prefix share their entries, in this process and in
// others, so they must agree about the types and meaning of keys and values.
//
// load returns the value of a key at the source, or [ErrNotFound]. It is called
// with the values of some caller's context, never with its cancellation, and must
// read what was written before it was called: not from a lagging replica.
//
// K must be a string or integer type, or implement encoding.TextMarshaler, or be a
// struct or array of such and of bools. The text of a struct is its fields in their order,
// so a deploy that moves them changes all keys.
//
// New dials nothing. rdb stays the caller's to close, after the cache. Add hooks to
// it, such as those of tracing, before: later ones don't see the cache's calls. The
// error lists everything that is wrong with the arguments.
func New[K comparable, V any](rdb redis.UniversalClient, name string, load func(ctx context.Context, key K) (V, error), cfg Config, more ...Funcs[K, V]) (*Cache[K, V], error) {
	var errs []error
	if load == nil {
		errs = append(errs, errors.New("load is nil; pass the function that reads the source, or use NewInvalidator"))
	}
	if len(more) > 1 {
		errs = append(errs, errors.New("more than one Funcs; pass one with all fields"))
	}
	c, err := newCache(rdb, name, load, cfg)
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("cacheaside: new: %w", err)
	}
	if len(more) == 1 {
		c.fn = more[0]
	}
	c.open()
	return c, nil
}

// newCache returns a cache that nothing runs for yet.
func newCache[K comparable, V any](rdb redis.UniversalClient, name string, load func(ctx context.Context, key K) (V, error), cfg Config) (*Cache[K, V], error) {
	var errs []error
	if err := cfg.complete(name); err != nil {
		errs = append(errs, err)
	}
	keys, err := newKeyCodec[K]()
	if err != nil {
		errs = append(errs, err)
	}
	conn, err := roundtrip.New(rdb, connConfig(&cfg))
	if err != nil {
		errs = append(errs, err)
	}
	if conn != nil && cfg.Tracking && cfg.hasL1() {
		switch conn.Inner().(type) {
		case *redis.Client, *redis.ClusterClient:
		default:
			errs = append(errs, fmt.Errorf("cacheaside: Tracking needs connections of its own to each master, and a %T does not tell how to make them; "+
				"pass the go-redis client, or give the type a method Unwrap() redis.UniversalClient", rdb))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}

	c := &Cache[K, V]{
		cfg:    cfg,
		conn:   conn,
		loader: load,
		keys:   keys,
		pack:   newPacker(&cfg, name),
		base:   cfg.Prefix + name + ":",
		origin: nonce(),
		seed:   maphash.MakeSeed(),
		direct: make(chan struct{}, cfg.MaxDirectLoads),
	}
	c.channelName = cfg.Prefix + name + "#bus"
	c.tagChannel, c.tagBase = c.channelName, cfg.Prefix+name+"#t:"
	if cfg.SharedTags { // no cache has an empty name
		c.tagChannel, c.tagBase = cfg.Prefix+"#bus", cfg.Prefix+"#t:"
	}
	c.events.queue = make(chan Invalidation, maxEvents)
	c.closing, c.close = context.WithCancel(context.Background())
	if cfg.hasL1() {
		c.l1 = newL1[K, V](&c.cfg, keys)
	}
	if cfg.hasL1() || cfg.OnInvalidate != nil {
		c.bus = newBus(conn.Client(), c.channels(), cfg.MaxStaleness)
	}
	return c, nil
}

// channels are where this cache's invalidations are announced.
func (c *Cache[K, V]) channels() []string {
	if c.tagChannel != c.channelName {
		return []string{c.channelName, c.tagChannel}
	}
	return []string{c.channelName}
}

// open starts what a new cache needs before its first call.
func (c *Cache[K, V]) open() {
	if c.cfg.OnInvalidate != nil {
		c.startBus() // who wants to be told of others' doings may never call Get
	}
	if c.cfg.SharedTags {
		sharers.add(c.cfg.Prefix, c)
	}
}

// Bypass switches the cache off, or on again, for this process: while it is off, calls that
// start load for themselves, one at a time for each key and at most MaxDirectLoads, and
// nothing is read from the cache or stored in it. Invalidations go on, so that the cache
// holds nothing old when it is switched on again. It is for times when what is cached is
// thought to be wrong. A new cache is on.
func (c *Cache[K, V]) Bypass(off bool) {
	c.bypass.Store(off)
	c.flights.barTag("") // loads under way may have asked the cache, or not
}

// Plain turns a loader that takes no context into one that New accepts.
func Plain[K comparable, V any](load func(key K) (V, error)) func(context.Context, K) (V, error) {
	return func(_ context.Context, key K) (V, error) { return load(key) }
}

// Close ends the cache's goroutines and connections of its own, and waits for
// them, but not for loaders that are still running. It does not close the client,
// and removes nothing from Redis. Calls after it return [ErrClosed]; a second Close
// does nothing.
func (c *Cache[K, V]) Close() error {
	c.life.Lock()
	already := c.closed.Swap(true)
	c.life.Unlock()
	if already {
		return nil
	}
	c.close()
	sharers.remove(c.cfg.Prefix, c)
	c.workers.Wait()
	if c.l1 != nil {
		c.l1.purge()
	}
	return nil
}

// spawn runs f on a goroutine that Close waits for, unless the cache is closed.
// The caller holds c.life.
func (c *Cache[K, V]) spawn(f func()) {
	if !c.closed.Load() {
		c.workers.Go(f)
	}
}

// ref is a key in the forms that are needed on the way to Redis.
type ref[K comparable] struct {
	key    K
	entry  string // its key in Redis
	text   string // the end of entry
	stripe uint64
	tags   []string // names
}

func (c *Cache[K, V]) ref(key K) (ref[K], error) {
	var space [128]byte
	b, err := c.keys.append(append(space[:0], c.base...), key)
	if err != nil {
		return ref[K]{}, err
	}
	r := c.refOf(key, string(b))
	if c.fn.Tags != nil {
		c.shield(func() { r.tags = c.fn.Tags(key) })
		if len(r.tags) > 1 {
			// The entry holds their versions in this order, in every process. The slice
			// may be the caller's.
			r.tags = slices.Clone(r.tags)
			slices.Sort(r.tags)
			r.tags = slices.Compact(r.tags)
		}
	}
	if len(r.tags) > maxTagCount {
		return r, fmt.Errorf("cacheaside: Funcs.Tags gave %d tags; at most %d", len(r.tags), maxTagCount)
	}
	return r, nil
}

// refOf is ref without tags.
func (c *Cache[K, V]) refOf(key K, entry string) ref[K] {
	text := entry[len(c.base):]
	return ref[K]{key: key, entry: entry, text: text, stripe: maphash.String(c.seed, text)}
}

// now is the time in milliseconds by the clock of the server that holds an entry, so that
// processes agree about its age; by this machine's as long as that is not known. Nothing
// that concerns invalidation depends on it.
func (c *Cache[K, V]) now(entry string) int64 {
	t, _, _ := c.conn.ServerTime(entry)
	return t.UnixMilli()
}
