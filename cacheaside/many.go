package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

const (
	// maxBulk is how many keys a bulk load is given, and so how many keys are
	// leased together.
	maxBulk = 1000
	// readers is how many calls of GetMany's reads are in flight together.
	readers = 4
	// loaders is how many keys of one GetMany are loaded together without
	// LoadMany.
	loaders = 32
)

// GetMany returns the values of keys: from this process, from Redis in calls of
// 500, and the missing ones from [Funcs.LoadMany], or else from the loader, 32 at a
// time. Everything said of Get holds for each key. Keys that were not found are
// missing from the result.
//
// The error, if any, is a *ManyError with an error for each key that failed; the
// result holds the others nevertheless. Values of several keys are not read at
// one instant.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys []K) (map[K]V, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	c.startBus()
	m := &many[K, V]{values: make(map[K]V, len(keys)), errs: map[K]error{}}
	asked := make(map[K]struct{}, len(keys))
	refs := make([]ref[K], 0, len(keys))
	for _, key := range keys {
		if _, twice := asked[key]; twice {
			continue
		}
		asked[key] = struct{}{}
		if e := c.l1.get(key); e != nil {
			if e.missing {
				c.stats.negative.Add(1)
			} else {
				c.stats.l1Hits.add()
				m.values[key] = c.clone(e.value)
			}
			continue
		}
		r, err := c.ref(key)
		if err != nil {
			m.errs[key] = err
			continue
		}
		refs = append(refs, r)
	}

	missing := c.readMany(ctx, refs, m)
	c.stats.misses.Add(uint64(len(missing)))
	if c.fn.LoadMany == nil {
		c.eachKey(missing, loaders, func(s sightedKey[K]) { m.put(s.ref.key)(c.getSeen(ctx, &s)) })
	} else {
		for at := 0; at < len(missing); at += maxBulk {
			c.getBulk(ctx, missing[at:min(at+maxBulk, len(missing))], m)
		}
	}
	if len(m.errs) > 0 {
		return m.values, &ManyError[K]{Errs: m.errs}
	}
	return m.values, nil
}

// many gathers the answers of a GetMany.
type many[K comparable, V any] struct {
	mu     sync.Mutex
	values map[K]V
	errs   map[K]error
}

// put returns the function that takes a key's answer.
func (m *many[K, V]) put(key K) func(Entry[V], error) {
	return func(e Entry[V], err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case err == nil:
			m.values[key] = e.Value
		case !isAnswer(err):
			m.errs[key] = err
		}
	}
}

// sightedKey is a key that was not answered, and what was seen at Redis.
type sightedKey[K comparable] struct {
	ref  ref[K]
	seen sighting
}

// eachKey calls f for each key, on up to n goroutines.
func (c *Cache[K, V]) eachKey(keys []sightedKey[K], n int, f func(sightedKey[K])) {
	var wg sync.WaitGroup
	places := make(chan struct{}, n)
	for _, k := range keys {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f(k)
		})
	}
	wg.Wait()
}

// getSeen is getRef for a key that has just been read.
func (c *Cache[K, V]) getSeen(ctx context.Context, s *sightedKey[K]) (Entry[V], error) {
	f, seat, own := c.flights.join(ctx, &s.ref, s.seen, false)
	if own {
		go c.run(f)
	}
	return c.awaitOrGet(ctx, f, seat, &s.ref)
}

// awaitOrGet waits for a flight, and looks again if that did not answer it or
// failed: getRef knows what may be served in place of an error.
func (c *Cache[K, V]) awaitOrGet(ctx context.Context, f *flight[K, V], seat int, r *ref[K]) (Entry[V], error) {
	e, err, ok := c.await(ctx, f, seat, false)
	if !ok || err != nil && !isAnswer(err) && c.cfg.StaleIfError > 0 && ctx.Err() == nil {
		return c.getRef(ctx, r)
	}
	return e, err
}

// readMany reads keys from Redis, and returns those that have to be loaded.
func (c *Cache[K, V]) readMany(ctx context.Context, refs []ref[K], m *many[K, V]) (missing []sightedKey[K]) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	places := make(chan struct{}, readers)
	for at := 0; at < len(refs); at += chunk {
		part := refs[at:min(at+chunk, len(refs))]
		read := func() {
			lacking := c.readPart(ctx, part, m)
			mu.Lock()
			missing = append(missing, lacking...)
			mu.Unlock()
		}
		if len(refs) <= chunk {
			read()
			return missing
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			read()
		})
	}
	wg.Wait()
	return missing
}

func (c *Cache[K, V]) readPart(ctx context.Context, refs []ref[K], m *many[K, V]) (missing []sightedKey[K]) {
	marks := make([]mark, len(refs))
	gets := make([]*redis.StringCmd, len(refs))
	cmds := make([]redis.Cmder, len(refs), 2*len(refs))
	tagGets := map[string]*redis.StringCmd{}
	for i := range refs {
		r := &refs[i]
		marks[i] = c.l1.capture(r)
		gets[i] = redis.NewStringCmd(ctx, "get", r.entry)
		cmds[i] = gets[i]
		for _, tag := range r.tags {
			if tagGets[tag] == nil {
				tagGets[tag] = redis.NewStringCmd(ctx, "get", c.tagKey(tag))
				cmds = append(cmds, tagGets[tag])
			}
		}
	}
	err := c.conn.DoEach(ctx, "getmany", cmds...)
	for i := range refs {
		r := &refs[i]
		var now found[V]
		if c.blocked(r) {
			now.state = unavailable
		} else {
			cerr := err
			var versions []tagVersion
			if cerr == nil {
				cerr = c.conn.Classify("getmany", gets[i].Err())
			}
			if len(r.tags) > 0 && err == nil {
				own := make([]*redis.StringCmd, len(r.tags))
				for j, tag := range r.tags {
					own[j] = tagGets[tag]
					if cerr == nil {
						cerr = c.conn.Classify("getmany", own[j].Err())
					}
				}
				if cerr == nil {
					versions = tagVersions(r.tags, own)
				}
			}
			c.judgeRead(r, &now, gets[i], versions, cerr)
		}
		if e, err, ok := c.serve(ctx, r, marks[i], &now); ok {
			m.put(r.key)(e, err)
		} else {
			missing = append(missing, sightedKey[K]{*r, now.sighting()})
		}
	}
	return missing
}

// getBulk answers keys by one bulk load, together with what others are loading.
func (c *Cache[K, V]) getBulk(ctx context.Context, keys []sightedKey[K], m *many[K, V]) {
	type waiting struct {
		f    *flight[K, V]
		seat int
	}
	waits := make([]waiting, len(keys))
	var own []*bulkKey[K, V]
	for i := range keys {
		f, seat, mine := c.flights.join(ctx, &keys[i].ref, keys[i].seen, false)
		waits[i] = waiting{f, seat}
		if mine {
			own = append(own, &bulkKey[K, V]{f: f})
		}
	}
	if len(own) > 0 {
		go c.runBulk(context.WithoutCancel(ctx), own)
	}
	for i := range keys {
		m.put(keys[i].ref.key)(c.awaitOrGet(ctx, waits[i].f, waits[i].seat, &keys[i].ref))
	}
}

// bulkKey is a flight on its way through a bulk load.
type bulkKey[K comparable, V any] struct {
	f        *flight[K, V]
	mark     mark
	lease    string
	versions []tagVersion
	before   int // seats at the begin of the load
	after    int // seats at the fill
	res      result[V]
	e        *entry
	fill     *roundtrip.ScriptCmd
}

// landBulk ends a key's flight, and starts the next if callers wait for one.
func (c *Cache[K, V]) landBulk(b *bulkKey[K, V], res result[V], share int) {
	if next := c.flights.land(b.f, res, share); next != nil {
		go c.run(next)
	}
}

// runBulk carries out flights together. Each of them lands.
func (c *Cache[K, V]) runBulk(ctx context.Context, keys []*bulkKey[K, V]) {
	load := c.acquireBulk(ctx, keys)
	if len(load) == 0 {
		return
	}
	direct := false
	for _, b := range load {
		direct = direct || b.lease == ""
	}
	var then func()
	if direct {
		wait := time.NewTimer(c.cfg.LoadTimeout)
		defer wait.Stop()
		select {
		case c.direct <- struct{}{}:
			then = func() { <-c.direct }
		case <-wait.C:
			for _, b := range load {
				c.landBulk(b, result[V]{err: ErrLoadTimeout}, c.flights.shut(b.f))
			}
			return
		}
	}
	ids := make([]K, len(load))
	for i, b := range load {
		ids[i] = b.f.ref.key
		if b.lease == "" {
			b.before = c.flights.shut(b.f)
		} else {
			b.before = c.flights.seal(b.f)
		}
	}
	begin := time.Now()
	values, err := guard(ctx, c.cfg.LoadTimeout, then, func(ctx context.Context) (map[K]V, error) { return c.fn.LoadMany(ctx, ids) })
	took := time.Since(begin)
	c.loaded(took, len(ids), err)
	if err != nil && isAnswer(err) {
		// Not found is said of one key, by leaving it out.
		err = fmt.Errorf("cacheaside: bulk load: %v", err)
	}
	c.fillBulk(ctx, load, values, took, err)
}

// acquireBulk takes the leases of keys, lands those that turn out to have a
// value, hands those that somebody else has over to flights of their own, and
// returns those that are to be loaded.
func (c *Cache[K, V]) acquireBulk(ctx context.Context, keys []*bulkKey[K, V]) (load []*bulkKey[K, V]) {
	var lead []*bulkKey[K, V]
	var cmds []redis.Cmder
	tagCmds := map[string]*roundtrip.ScriptCmd{}
	for _, b := range keys {
		r, seen := &b.f.ref, &b.f.seen
		if seen.direct {
			load = append(load, b)
			continue
		}
		b.mark = c.l1.capture(r)
		b.before = c.flights.seal(b.f)
		if seen.expired != nil {
			b.lease = seen.expired.prefix
			cmds = append(cmds, c.claimCmd(ctx, r, b.lease, c.cfg.lease(), false))
		} else {
			b.lease = newPrefix(kindLease)
			cmds = append(cmds, c.acquireCmd(ctx, r, b.lease, seen.replace))
		}
		lead = append(lead, b)
	}
	for _, b := range lead {
		for _, tag := range b.f.ref.tags {
			if tagCmds[tag] == nil {
				tagCmds[tag] = c.captureTag(ctx, tag)
				cmds = append(cmds, tagCmds[tag])
			}
		}
	}
	sent := time.Now()
	errs := c.each(ctx, "acquire", cmds)
	for i, b := range lead {
		err := errs[i]
		own := make([]*roundtrip.ScriptCmd, len(b.f.ref.tags))
		for j, tag := range b.f.ref.tags {
			own[j] = tagCmds[tag]
			if err == nil {
				err = c.conn.Classify("acquire", own[j].Err())
			}
		}
		var g grant
		if err == nil {
			b.versions = captured(b.f.ref.tags, own)
			g, err = c.granted(cmds[i].(*roundtrip.ScriptCmd), sent)
		}
		if err != nil { // as in resolve: the lease must not be used
			c.report("acquire", err)
			b.lease = ""
			load = append(load, b)
			continue
		}
		if g.held {
			load = append(load, b)
			continue
		}
		if !g.busy && !g.gone {
			var now found[V]
			c.interpret(&now, &b.f.ref, g.blob, b.versions)
			if now.state == fresh {
				c.l1.put(&b.f.ref, b.mark, &now)
				c.landBulk(b, result[V]{entry: now.entry, err: now.err}, b.before)
				continue
			}
		}
		go c.run(b.f)
	}
	return load
}

// fillBulk stores what a bulk load returned, and lands the flights.
func (c *Cache[K, V]) fillBulk(ctx context.Context, keys []*bulkKey[K, V], values map[K]V, took time.Duration, failed error) {
	var cmds []redis.Cmder
	var stored []*bulkKey[K, V]
	var given []*bulkKey[K, V] // back, without a value
	for _, b := range keys {
		r := &b.f.ref
		value, ok := values[r.key]
		err := failed
		if err == nil && !ok {
			err = ErrNotFound
		}
		b.e, err = c.enclose(r, value, took, err, b.versions)
		b.res = result[V]{entry: Entry[V]{Value: value, Source: SourceLoader, TTL: milliseconds(b.e.fresh)}, err: err}
		switch {
		case b.lease == "":
		case failed != nil || b.e.prefix == "":
			given = append(given, b)
			if b.lease[0] == kindLease || failed == nil {
				cmds = append(cmds, releaseScript.Cmd(ctx, []string{r.entry}, b.lease))
			} else {
				cmds = append(cmds, c.claimCmd(ctx, r, b.lease, max(c.cfg.ErrorBackoff, 0), true))
			}
		default:
			stored = append(stored, b)
		}
	}
	if len(given) > 0 {
		if err := errors.Join(c.each(ctx, "release", cmds)...); err != nil {
			c.report("release", err)
		}
	}
	cmds = cmds[:0]
	for _, b := range stored {
		b.after = c.flights.seal(b.f)
		b.fill = c.fillCmd(ctx, &b.f.ref, b.lease, b.e)
		cmds = append(cmds, b.fill)
	}
	errs := c.each(ctx, "fill", cmds)
	for i, b := range stored {
		n := 0
		if errs[i] == nil {
			n, _ = b.fill.Int()
		}
		c.filled(n > 0, errs[i])
		if n > 0 {
			c.l1.put(&b.f.ref, b.mark, &found[V]{raw: *b.e, entry: b.res.entry, err: b.res.err})
			b.before = b.after
		}
	}
	for _, b := range keys {
		if failed != nil {
			b.before = c.flights.seal(b.f)
		}
		c.landBulk(b, b.res, b.before)
	}
}
