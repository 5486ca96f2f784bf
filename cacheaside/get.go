package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Source says where a value came from.
type Source uint8

const (
	SourceNone     Source = iota // nowhere: there is no answer, and an error says why
	SourceL1                     // this process
	SourceRedis                  // Redis
	SourceStale                  // Redis, past its TTL, see StaleWhileRevalidate and StaleIfError
	SourceNegative               // Redis or this process: known not to exist
	SourceLoader                 // the loader, called for this caller or for one that waited with it; its errors too
)

// String returns "none", "l1", "redis", "stale", "negative" or "loader".
func (s Source) String() string {
	if int(s) < len(sourceNames) {
		return sourceNames[s]
	}
	return fmt.Sprintf("source(%d)", uint8(s))
}

var sourceNames = [...]string{"none", "l1", "redis", "stale", "negative", "loader"}

// Entry is a value and what is known about it.
type Entry[V any] struct {
	Value  V
	Source Source
	Age    time.Duration // since it was loaded, by the clock of the Redis server
	TTL    time.Duration // how long it stays fresh; zero if it is stale, or was not cached in time
}

// Get returns the value of key, from the cache or from the loader.
//
// The error is the loader's, such as ErrNotFound, a *PanicError or
// ErrLoadTimeout; or that of ctx; or about key. Redis being down is not an error:
// the loader answers.
func (c *Cache[K, V]) Get(ctx context.Context, key K) (V, error) {
	if e, due := c.kept(key); e != nil {
		if e.missing {
			c.stats.negative.Add(1)
			var zero V
			return zero, ErrNotFound
		}
		c.stats.l1Hits.add()
		if due {
			c.refreshKept(ctx, key, e)
		}
		if c.fn.Clone != nil {
			return c.clone(e.value)
		}
		return e.value, nil
	}
	e, err := c.get(ctx, key)
	return e.Value, err
}

// GetEntry is Get, and tells where the value came from and how old it is. With
// ErrNotFound from the cache the source is SourceNegative.
func (c *Cache[K, V]) GetEntry(ctx context.Context, key K) (Entry[V], error) {
	if e, due := c.kept(key); e != nil {
		if e.missing {
			c.stats.negative.Add(1)
			return Entry[V]{Source: SourceNegative, Age: e.age(), TTL: e.ttl()}, ErrNotFound
		}
		c.stats.l1Hits.add()
		if due {
			c.refreshKept(ctx, key, e)
		}
		v, err := c.clone(e.value)
		return Entry[V]{Value: v, Source: SourceL1, Age: e.age(), TTL: e.ttl()}, err
	}
	return c.get(ctx, key)
}

// kept is what the first level may serve.
func (c *Cache[K, V]) kept(key K) (e *kept[V], due bool) {
	if c.bypass.Load() {
		return nil, false
	}
	return c.l1.get(key)
}

// clone copies a value for a caller. The error is a panic of the app's function.
func (c *Cache[K, V]) clone(v V) (own V, err error) {
	if c.fn.Clone == nil {
		return v, nil
	}
	err = c.shield(func() { own = c.fn.Clone(v) })
	return own, err
}

// Peek returns the value of key if it is cached and fresh, and never loads. The
// error says that Redis could not be asked, or is about key.
func (c *Cache[K, V]) Peek(ctx context.Context, key K) (V, bool, error) {
	var zero V
	if e, _ := c.kept(key); e != nil {
		if e.missing {
			return zero, false, nil
		}
		v, err := c.clone(e.value)
		return v, err == nil, err
	}
	if c.closed.Load() {
		return zero, false, ErrClosed
	}
	r, err := c.ref(key)
	if err != nil || c.blocked(&r) {
		return zero, false, err
	}
	var now found[V]
	mark := c.l1.capture(&r)
	c.read(ctx, &r, &now)
	switch now.state {
	case unavailable:
		return zero, false, now.err
	case fresh:
		c.l1.put(&r, mark, &now)
		if now.err == nil {
			v, err := c.clone(now.entry.Value)
			return v, err == nil, err
		}
	}
	return zero, false, nil
}

// maxTries is how often a caller looks again after its flight could not answer
// it, before it takes a seat that is good for any result.
const maxTries = 2

// get is Get beyond the first level.
func (c *Cache[K, V]) get(ctx context.Context, key K) (Entry[V], error) {
	if c.closed.Load() {
		return Entry[V]{}, ErrClosed
	}
	c.startBus()
	r, err := c.ref(key)
	if err != nil {
		return Entry[V]{}, err
	}
	return c.getRef(ctx, &r)
}

func (c *Cache[K, V]) getRef(ctx context.Context, r *ref[K]) (Entry[V], error) {
	left := c.cfg.Timeout
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return Entry[V]{}, fmt.Errorf("cacheaside: get: %w", err)
		}
		begin := mono()
		var now found[V]
		mark := c.l1.capture(r)
		if c.blocked(r) {
			now.state = unavailable
		} else {
			c.read(ctx, r, &now)
		}
		e, err, ok := c.serve(ctx, r, mark, &now)
		if ok {
			return e, err
		}
		if ctx.Err() != nil {
			continue
		}
		if try == 0 {
			c.stats.misses.Add(1)
		}
		left -= time.Duration(mono() - begin)
		f, seat, own := c.flights.join(ctx, r, now.sighting(left), try >= maxTries)
		if own {
			go c.run(f, nil)
		}
		var soft *patience
		if c.mayServeOnError(r, &now) {
			soft = newPatience(c.cfg.SoftTimeout)
		}
		e, err, ok = c.awaitOr(ctx, f, seat, &now, soft)
		soft.stop()
		if ok {
			return e, err
		}
	}
}

// patience ends when a caller who could have something else has waited long enough.
type patience struct {
	over  chan struct{}
	timer *time.Timer
}

func newPatience(d time.Duration) *patience {
	p := &patience{over: make(chan struct{})}
	p.timer = time.AfterFunc(d, func() { close(p.over) })
	return p
}

func (p *patience) stop() {
	if p != nil {
		p.timer.Stop()
	}
}

// serve answers from what a key holds, if that may be served at once.
func (c *Cache[K, V]) serve(ctx context.Context, r *ref[K], mark mark, now *found[V]) (e Entry[V], err error, ok bool) {
	switch now.state {
	case fresh:
		c.hit(r, mark, now)
		if c.early(&now.raw, now.entry.TTL) {
			c.refreshLater(ctx, r, now)
		}
	case stale:
		c.stats.stale.Add(1)
		c.refreshLater(ctx, r, now)
	case expiredValue:
		if !c.failing.pausing(r.entry) || !c.mayServeOnError(r, now) {
			return e, nil, false
		}
		c.stats.stale.Add(1)
	default:
		return e, nil, false
	}
	e, err = c.own(now.entry, now.err)
	return e, err, true
}

// own makes an answer its caller's own.
func (c *Cache[K, V]) own(e Entry[V], err error) (Entry[V], error) {
	if err == nil {
		e.Value, err = c.clone(e.Value)
	}
	return e, err
}

// sighting is what a flight has to know about what a key holds. left is how long its
// caller waits for Redis from now on.
func (now *found[V]) sighting(left time.Duration) (seen sighting[V]) {
	seen.left = left
	switch now.state {
	case unavailable, fenced, uncached:
		seen.direct = true
	case expiredValue:
		raw, old := now.raw, now.entry
		seen.expired = &raw
		if now.err == nil {
			seen.old = &old
		}
	case unreadable, outdated:
		blob := now.blob
		seen.replace = &blob
	}
	return seen
}

var errSoftTimeout = errors.New("cacheaside: soft timeout")

// awaitOr is await for a caller who may be served what was found instead of an error,
// or when soft, if not nil, is over.
func (c *Cache[K, V]) awaitOr(ctx context.Context, f *flight[K, V], seat int, now *found[V], soft *patience) (e Entry[V], err error, ok bool) {
	e, err, ok = c.await(ctx, f, seat, soft)
	if ok && soft != nil && err != nil && !c.isAnswer(err) && ctx.Err() == nil {
		c.stats.stale.Add(1)
		e, err = c.own(now.entry, nil)
	}
	return e, err, ok
}

// await waits for a flight. ok is false if the caller has to look again.
func (c *Cache[K, V]) await(ctx context.Context, f *flight[K, V], seat int, patient *patience) (e Entry[V], err error, ok bool) {
	var soft <-chan struct{}
	if patient != nil {
		soft = patient.over
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		c.flights.leave(f)
		return e, fmt.Errorf("cacheaside: get: %w", ctx.Err()), true
	case <-soft:
		c.flights.leave(f)
		return e, errSoftTimeout, true
	}
	if seat >= f.share {
		return e, nil, false
	}
	e, err = c.own(f.result.entry, f.result.err)
	return e, err, true
}

// mayServeOnError reports whether an expired entry may stand in for a failed
// load.
func (c *Cache[K, V]) mayServeOnError(r *ref[K], now *found[V]) bool {
	return now.state == expiredValue && c.cfg.StaleIfError > 0 &&
		c.now(r.entry) < now.raw.expires()+c.cfg.StaleIfError.Milliseconds()
}

type state uint8

const (
	absent state = iota
	fresh
	stale        // may be served while it is refreshed
	expiredValue // must be refreshed first
	leased
	fenced
	uncached   // a load has just ended with an outcome that is not cached
	outdated   // one of its tags was invalidated
	unreadable // damaged or foreign, or not even a string
	unavailable
)

// found is what a key holds.
type found[V any] struct {
	state state
	raw   entry
	entry Entry[V]
	err   error // ErrNotFound of a negative entry, or why the state is unreadable or unavailable
	blob  string
}

// read asks Redis for a key: one GET, and one more for each tag in the same
// round trip.
func (c *Cache[K, V]) read(ctx context.Context, r *ref[K], now *found[V]) {
	call := new(struct { // one allocation
		key  string
		args [2]any
		get  redis.StringCmd
		cmds [1]redis.Cmder
	})
	call.key = r.entry
	call.args = [2]any{"get", &call.key}
	call.get = *redis.NewStringCmd(ctx, call.args[:]...)
	get := &call.get
	var err error
	var versions []tagVersion
	if len(r.tags) == 0 {
		call.cmds[0] = get
		err = c.conn.Do(ctx, "get", call.cmds[:]...)
	} else {
		versions, err = c.readTags(ctx, r, get)
	}
	c.judgeRead(r, now, get, versions, err)
}

// judgeRead interprets the outcome of a GET.
func (c *Cache[K, V]) judgeRead(r *ref[K], now *found[V], get *redis.StringCmd, versions []tagVersion, err error) {
	switch {
	case errors.Is(err, roundtrip.ErrBug):
		// Not a string: somebody else's, in our place.
		now.state, now.err = unreadable, errForeign
		c.unread(now.err)
	case err != nil:
		now.state, now.err = unavailable, err
		if !errors.Is(err, context.Canceled) { // the caller left
			c.report("get", err)
		}
	case get.Err() == redis.Nil:
		now.state = absent
	default:
		c.interpret(now, r, get.Val(), versions)
	}
}

// interpret tells what a stored string means. versions are the present versions
// of the key's tags.
func (c *Cache[K, V]) interpret(now *found[V], r *ref[K], blob string, versions []tagVersion) {
	now.blob = blob
	if len(blob) == prefixSize && blob[0] == kindLease {
		now.state = leased
		return
	}
	if len(blob) > 0 && blob[0] == kindFence && len(blob)%16 == 1 {
		now.state = fenced
		return
	}
	if len(blob) == prefixSize && blob[0] == kindUncached {
		now.state = uncached
		return
	}
	err := parseEntry(&now.raw, r.entry, stringToBytes(blob))
	if err == nil && !sameTags(now.raw.tags, versions) {
		now.state = outdated
		return
	}
	if err == nil && now.raw.kind == kindValue {
		err = c.pack.unpack(&now.raw, &now.entry.Value)
	}
	if err != nil {
		now.state, now.err = unreadable, err
		var zero V
		now.entry.Value = zero
		c.unread(err)
		return
	}
	t := c.now(r.entry)
	now.entry.Age = max(milliseconds(t-now.raw.written), 0)
	// A clock that is wrong makes nothing fresher than it was at first.
	now.entry.TTL = milliseconds(min(max(now.raw.expires()-t, 0), now.raw.fresh))
	now.entry.Source = SourceRedis
	switch {
	case now.raw.kind == kindNegative:
		now.entry.Source = SourceNegative
		now.err = ErrNotFound
		now.state = fresh
	case t < now.raw.expires() || c.cfg.keep(0) <= time.Millisecond:
		// Without a stale window Redis alone decides when it is over.
		now.state = fresh
	case t < now.raw.expires()+c.cfg.StaleWhileRevalidate.Milliseconds():
		now.state = stale
		now.entry.Source = SourceStale
	default:
		now.state = expiredValue
		now.entry.Source = SourceStale
	}
}

// hit counts a value found at Redis and keeps it in this process.
func (c *Cache[K, V]) hit(r *ref[K], mark mark, now *found[V]) {
	if now.err != nil {
		c.stats.negative.Add(1)
	} else {
		c.stats.redisHits.add()
	}
	c.l1.put(r, mark, now)
}

// early decides by XFetch whether a value that stays fresh for ttl is to be loaded
// again.
func (c *Cache[K, V]) early(e *entry, ttl time.Duration) bool {
	if c.cfg.EarlyRefresh == 0 || e.kind != kindValue {
		return false
	}
	left := float64(ttl.Milliseconds())
	// −ln(random) is never above 37: most of the time there is nothing to draw.
	return left < 37*float64(max(e.delta, 1))*c.cfg.EarlyRefresh && left < c.cfg.lead(e)
}

// lead draws how many milliseconds before its end an entry is to be refreshed:
// delta · beta · −ln(random), as in XFetch.
func (cfg *Config) lead(e *entry) float64 {
	return float64(max(e.delta, 1)) * cfg.EarlyRefresh * -math.Log(1-rand.Float64())
}
