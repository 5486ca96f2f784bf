package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
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
// missing from the result. When ctx ends no further load is begun.
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
		if e, due := c.kept(key); e != nil {
			if e.missing {
				c.stats.negative.Add(1)
				continue
			}
			c.stats.l1Hits.add()
			if due {
				c.refreshKept(ctx, key, e)
			}
			m.put(key)(c.own(Entry[V]{Value: e.value}, nil))
			continue
		}
		r, err := c.ref(key)
		if err != nil {
			m.errs[key] = err
			continue
		}
		refs = append(refs, r)
	}

	left := c.cfg.Timeout
	for try := 0; len(refs) > 0; try++ {
		missing, took := c.readMany(ctx, refs, m)
		left -= took
		if try == 0 {
			c.stats.misses.Add(uint64(len(missing)))
		}
		refs = c.loadMany(ctx, missing, m, left, try >= maxTries)
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
		case !errors.Is(err, ErrNotFound):
			m.errs[key] = err
		}
	}
}

// fail notes that a key was not answered.
func (m *many[K, V]) fail(key K, err error) { m.put(key)(Entry[V]{}, err) }

// missingKey is a key that was not answered, and what was found at Redis.
type missingKey[K comparable, V any] struct {
	ref ref[K]
	now found[V]
}

// loadMany answers keys by loads, its own and those of others that are under way, and
// returns those that have to be looked at again.
func (c *Cache[K, V]) loadMany(ctx context.Context, missing []missingKey[K, V], m *many[K, V], left time.Duration, fresh bool) (again []ref[K]) {
	if len(missing) == 0 {
		return nil
	}
	var soft *patience
	for i := range missing {
		if c.mayServeOnError(&missing[i].ref, &missing[i].now) {
			soft = newPatience(c.cfg.SoftTimeout)
			defer soft.stop()
			break
		}
	}
	var mu sync.Mutex
	answer := func(k *missingKey[K, V], f *flight[K, V], seat int) {
		own := soft
		if own != nil && !c.mayServeOnError(&k.ref, &k.now) {
			own = nil
		}
		if e, err, ok := c.awaitOr(ctx, f, seat, &k.now, own); ok {
			m.put(k.ref.key)(e, err)
			return
		}
		mu.Lock()
		again = append(again, k.ref)
		mu.Unlock()
	}
	gone := func(rest []missingKey[K, V]) {
		for i := range rest {
			m.fail(rest[i].ref.key, fmt.Errorf("cacheaside: get: %w", ctx.Err()))
		}
	}
	if c.fn.LoadMany != nil {
		for at := 0; at < len(missing); at += maxBulk {
			if ctx.Err() != nil {
				gone(missing[at:])
				break
			}
			c.loadBulk(ctx, missing[at:min(at+maxBulk, len(missing))], left, fresh, answer)
		}
		return again
	}

	var wg sync.WaitGroup
	places := make(chan struct{}, loaders)
	for i := range missing {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			gone(missing[i:])
			break
		}
		k := &missing[i]
		f, seat, own := c.flights.join(ctx, &k.ref, k.now.sighting(left), fresh)
		leave := func() { <-places }
		if own { // the place is taken for as long as the load lasts, not the wait
			go c.run(f, leave)
		}
		wg.Go(func() {
			answered := false
			defer func() {
				if !answered {
					m.fail(k.ref.key, &PanicError{Value: errGoexit})
				}
			}()
			answer(k, f, seat)
			answered = true
			if !own {
				leave()
			}
		})
	}
	wg.Wait()
	return again
}

// loadBulk answers keys by one bulk load, together with what others are loading.
func (c *Cache[K, V]) loadBulk(ctx context.Context, keys []missingKey[K, V], left time.Duration, fresh bool, answer func(*missingKey[K, V], *flight[K, V], int)) {
	type waiting struct {
		f    *flight[K, V]
		seat int
	}
	waits := make([]waiting, len(keys))
	var own []*attempt[K, V]
	for i := range keys {
		f, seat, mine := c.flights.join(ctx, &keys[i].ref, keys[i].now.sighting(left), fresh)
		waits[i] = waiting{f, seat}
		if mine {
			own = append(own, newAttempt(f))
		}
	}
	if len(own) > 0 {
		go c.runAll(context.WithoutCancel(ctx), own, true, nil)
	}
	for i := range keys {
		answer(&keys[i], waits[i].f, waits[i].seat)
	}
}

// readMany reads keys from Redis, and returns those that have to be loaded, and how long
// the longest of its calls took.
func (c *Cache[K, V]) readMany(ctx context.Context, refs []ref[K], m *many[K, V]) (missing []missingKey[K, V], took time.Duration) {
	if len(refs) <= chunk {
		begin := mono()
		missing = c.readPart(ctx, refs, m)
		return missing, time.Duration(mono() - begin)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	places := make(chan struct{}, readers)
	for at := 0; at < len(refs); at += chunk {
		part := refs[at:min(at+chunk, len(refs))]
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			begin := mono()
			var lacking []missingKey[K, V]
			if err := c.apart(func() { lacking = c.readPart(ctx, part, m) }); err != nil {
				for i := range part {
					m.fail(part[i].key, err)
				}
			}
			mu.Lock()
			missing = append(missing, lacking...)
			took = max(took, time.Duration(mono()-begin))
			mu.Unlock()
		})
	}
	wg.Wait()
	return missing, took
}

func (c *Cache[K, V]) readPart(ctx context.Context, refs []ref[K], m *many[K, V]) (missing []missingKey[K, V]) {
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
			missing = append(missing, missingKey[K, V]{*r, now})
		}
	}
	return missing
}
