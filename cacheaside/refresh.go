package cacheaside

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// refreshLater loads a value again in the background, unless this process or
// another is at it already. The value stays readable meanwhile.
func (c *Cache[K, V]) refreshLater(ctx context.Context, r *ref[K], old *entry) {
	if c.closed.Load() || c.failing.pausing(r.entry) || !c.refresh.begin(r.entry) {
		return
	}
	rr, prefix := *r, old.prefix
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer c.refresh.end(rr.entry)
		mark := c.l1.capture(&rr)
		g, err := c.claim(ctx, &rr, prefix, c.cfg.lease(), false)
		if err != nil {
			c.report("claim", err)
			return
		}
		if !g.held {
			return
		}
		c.stats.refreshes.Add(1)
		c.loadAndFill(ctx, &rr, prefix, g.versions, mark, nil)
	}()
}

// loadAndFill loads a value and stores it in place of what begins with prefix,
// which is the caller's lease, or an entry that it has claimed. It calls
// beforeFill before it asks Redis to store. accepted is false if the key was
// invalidated meanwhile, or if there is nothing to store.
func (c *Cache[K, V]) loadAndFill(ctx context.Context, r *ref[K], prefix string, versions []tagVersion, mark mark, beforeFill func()) (res result[V], accepted bool) {
	value, took, err := c.load(ctx, r.key)
	e, err := c.enclose(r, value, took, err, versions)
	res = result[V]{entry: Entry[V]{Value: value, Source: SourceLoader, TTL: milliseconds(e.fresh)}, err: err}
	switch {
	case err == nil || isAnswer(err):
	case prefix[0] == kindLease:
		c.release(ctx, r, prefix)
		return res, false
	default:
		// Others may try again after the pause that this process makes too.
		if _, err := c.claim(ctx, r, prefix, max(c.cfg.ErrorBackoff, 0), true); err != nil {
			c.report("claim", err)
		}
		return res, false
	}
	if e.prefix == "" { // not to be cached; an old value is out of date and goes
		c.release(ctx, r, prefix)
		return res, false
	}
	if beforeFill != nil {
		beforeFill()
	}
	accepted, ferr := c.fill(ctx, r, prefix, e)
	c.filled(accepted, ferr)
	if accepted {
		c.l1.put(r, mark, &found[V]{raw: *e, entry: res.entry, err: err})
	}
	return res, accepted
}

// Refresh loads the value of key now, whatever is cached, and caches it. Until it
// is loaded the old value, if any, stays readable, and it remains if the loader
// fails. The error is the loader's, or about key.
func (c *Cache[K, V]) Refresh(ctx context.Context, key K) (V, error) {
	var zero V
	if c.closed.Load() {
		return zero, ErrClosed
	}
	r, err := c.ref(key)
	if err != nil {
		return zero, err
	}
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("cacheaside: refresh: %w", err)
	}
	type answer struct {
		value V
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := c.refreshNow(context.WithoutCancel(ctx), &r)
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return c.clone(a.value), a.err
	case <-ctx.Done():
		return zero, fmt.Errorf("cacheaside: refresh: %w", ctx.Err())
	}
}

func (c *Cache[K, V]) refreshNow(ctx context.Context, r *ref[K]) (V, error) {
	for try := 0; ; try++ {
		seen := sighting{direct: true}
		if !c.blocked(r) {
			var now found[V]
			mark := c.l1.capture(r)
			c.read(ctx, r, &now)
			switch now.state {
			case fresh, stale, expiredValue:
				g, err := c.claim(ctx, r, now.raw.prefix, c.cfg.lease(), true)
				if err == nil && g.held {
					res, accepted := c.loadAndFill(ctx, r, now.raw.prefix, g.versions, mark, nil)
					if accepted { // other processes may still hold the old value
						c.announce(ctx, r)
					}
					return res.entry.Value, res.err
				}
			case unavailable, fenced:
			case absent:
				seen = sighting{}
			default: // what is there is worth nothing, or being loaded since before this call
				seen = sighting{replace: &now.blob}
			}
		}
		f, _, own := c.flights.join(ctx, r, seen, true)
		if own {
			go c.run(f)
		}
		<-f.done
		if f.err == nil && f.entry.Source != SourceLoader && try < maxTries {
			continue // somebody's load from before this call
		}
		return f.entry.Value, f.err
	}
}

// announce tells other processes to forget a key.
func (c *Cache[K, V]) announce(ctx context.Context, r *ref[K]) {
	cmd := redis.NewIntCmd(ctx, "publish", c.channelName, c.message(KindKeys, false, CauseSet, r.text))
	if err := c.conn.Do(ctx, "announce", cmd); err != nil {
		c.report("announce", err)
	}
}
