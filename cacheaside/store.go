package cacheaside

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// store keeps what was loaded, or gives the leases back, and lands the keys. Its callers
// wait for Redis no longer than left.
func (c *Cache[K, V]) store(ctx context.Context, as []*attempt[K, V], took, left time.Duration) {
	var back []redis.Cmder
	var stored []*attempt[K, V]
	for _, a := range as {
		a.e, a.err = c.enclose(a.ref, a.value, took, a.err, a.versions)
		failed := a.err != nil && !c.isAnswer(a.err)
		if failed {
			var zero V
			a.value = zero
			a.share = c.seats(a) // a failure is not out of date for anybody
		}
		switch {
		case a.lease == "":
		case failed && a.lease[0] != kindLease:
			// The entry stays. Others may try again after the pause that this process
			// makes too.
			back = append(back, c.claimCmd(ctx, a.ref, a.lease, max(c.cfg.ErrorBackoff, 0), true))
		case a.e.prefix == "":
			// An old value is out of date and goes.
			back = append(back, c.releaseCmd(ctx, a.ref, a.lease, newPrefix(kindUncached)))
		default:
			stored = append(stored, a)
		}
	}
	if len(back)+len(stored) > 0 {
		write := func() {
			c.giveBack(ctx, back)
			c.fill(ctx, stored)
		}
		switch {
		case as[0].f == nil: // nobody waits
			write()
		case c.whole(left):
			c.shield(write)
		default:
			// Who came before the load may have what it returned, whatever Redis says of
			// it, so they don't wait for longer than is left to them.
			c.within(left, write, func() {})
		}
	}
	for _, a := range as {
		c.land(a, a.result(), a.share)
	}
}

// result is what an attempt's loader returned.
func (a *attempt[K, V]) result() result[V] {
	return result[V]{entry: Entry[V]{Value: a.value, Source: SourceLoader}, err: a.err}
}

// giveBack sends what ends leases without a value.
func (c *Cache[K, V]) giveBack(ctx context.Context, back []redis.Cmder) {
	if len(back) == 0 {
		return
	}
	if err := errors.Join(c.each(ctx, "release", back)...); err != nil {
		c.report("release", err)
	}
}

// fill stores what was loaded, and lands the keys for which Redis accepted it.
func (c *Cache[K, V]) fill(ctx context.Context, stored []*attempt[K, V]) {
	if len(stored) == 0 {
		return
	}
	vouched := make([]int, len(stored))
	fills := make([]*roundtrip.ScriptCmd, len(stored))
	cmds := make([]redis.Cmder, len(stored), 2*len(stored))
	for i, a := range stored {
		vouched[i] = c.seats(a)
		fills[i] = c.fillCmd(ctx, a.ref, a.lease, a.e)
		cmds[i] = fills[i]
	}
	reads := map[string]*redis.StringCmd{}
	for _, a := range stored {
		for _, tag := range a.ref.tags {
			if a.f != nil && reads[tag] == nil {
				reads[tag] = redis.NewStringCmd(ctx, "get", c.tagKey(tag))
				cmds = append(cmds, reads[tag])
			}
		}
	}
	errs := c.each(ctx, "fill", cmds)
	for i, a := range stored {
		n := 0
		if errs[i] == nil {
			n, _ = fills[i].Int()
		}
		c.filled(n > 0, errs[i])
		if n == 0 {
			continue
		}
		r := a.result()
		r.entry.TTL = milliseconds(a.e.fresh)
		c.l1.put(a.ref, a.mark, &found[V]{raw: *a.e, entry: r.entry, err: r.err})
		if a.seen.force { // other processes may still hold the old value
			c.announce(ctx, a.ref)
		}
		share := a.share
		if c.unchanged(a, reads) {
			share = max(share, vouched[i])
		}
		c.land(a, r, share)
	}
}

// unchanged reports whether the key's tags still have the versions from before the
// load.
func (c *Cache[K, V]) unchanged(a *attempt[K, V], reads map[string]*redis.StringCmd) bool {
	if a.f == nil {
		return false
	}
	for i, tag := range a.ref.tags {
		read := reads[tag]
		if read.Err() != nil || read.Val() != string(a.versions[i].version[:]) {
			return false
		}
	}
	return true
}

// enclose makes the entry for what a loader returned. Its prefix is empty if the
// answer is not to be cached. The error is the loader's.
func (c *Cache[K, V]) enclose(r *ref[K], value V, took time.Duration, err error, versions []tagVersion) (*entry, error) {
	err = c.judge(r, err)
	ttl := c.cfg.TTL
	e := &entry{kind: kindValue, delta: took.Milliseconds(), tags: versions}
	switch {
	case err == nil:
		var perr error
		if gone := c.apart(func() { // the functions are the app's
			if perr = c.pack.pack(e, value); perr == nil {
				ttl, e.version = c.lifetime(value), c.version(value)
			}
		}); gone != nil {
			perr = gone
		}
		if perr != nil {
			c.stats.uncacheable.Add(1)
			c.report("encode", perr)
			return e, nil
		}
	case c.isAnswer(err):
		if c.cfg.NegativeTTL < 0 {
			return e, err
		}
		e.kind, ttl = kindNegative, c.cfg.NegativeTTL
	default:
		return e, err
	}
	e.prefix = newPrefix(e.kind)
	e.written = c.now(r.entry)
	e.fresh = max(c.jitter(ttl).Milliseconds(), 1)
	return e, err
}

// lifetime is how long a value is fresh.
func (c *Cache[K, V]) lifetime(value V) time.Duration {
	if c.fn.TTL == nil {
		return c.cfg.TTL
	}
	var ttl time.Duration
	c.shield(func() { ttl = c.fn.TTL(value) })
	if ttl <= 0 {
		return c.cfg.TTL
	}
	return min(ttl, maxTTL)
}

func (c *Cache[K, V]) jitter(d time.Duration) time.Duration {
	return d - time.Duration(c.cfg.Jitter*rand.Float64()*float64(d))
}
