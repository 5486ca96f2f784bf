package cacheaside

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// refreshLater loads a value again in the background, unless this process or
// another is at it already. The value stays readable meanwhile.
func (c *Cache[K, V]) refreshLater(ctx context.Context, r *ref[K], old *found[V]) {
	if c.closed.Load() || c.failing.pausing(r.entry) || !c.refresh.begin(r.entry) {
		return
	}
	rr, raw, value := *r, old.raw, old.entry
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer c.refresh.end(rr.entry)
		c.refreshEntry(ctx, &rr, &raw, &value)
	}()
}

// refreshEntry loads a value again if this process gets the claim on it.
func (c *Cache[K, V]) refreshEntry(ctx context.Context, r *ref[K], raw *entry, value *Entry[V]) {
	a := &attempt[K, V]{ref: r, seen: sighting[V]{expired: raw, old: value}, mark: c.l1.capture(r), lease: raw.prefix}
	cmds := []redis.Cmder{c.claimCmd(ctx, r, raw.prefix, c.cfg.lease(), false)}
	captures := map[string]*roundtrip.ScriptCmd{}
	for _, tag := range r.tags {
		captures[tag] = c.captureTag(ctx, tag)
		cmds = append(cmds, captures[tag])
	}
	err := c.each(ctx, "claim", cmds)[0]
	var g grant
	if err == nil {
		a.versions, err = c.captured(r.tags, captures)
	}
	if err == nil {
		g, err = c.granted(cmds[0].(*roundtrip.ScriptCmd))
	}
	if err != nil {
		c.report("claim", err)
		return
	}
	if !g.held {
		return
	}
	c.stats.refreshes.Add(1)
	c.load(ctx, []*attempt[K, V]{a}, false, 0, nil)
}

// refreshKept has a value of the first level loaded again in the background, unless
// another process has done so already.
func (c *Cache[K, V]) refreshKept(ctx context.Context, key K, kept *kept[V]) {
	r, err := c.ref(key)
	if err != nil || c.closed.Load() || c.blocked(&r) || c.failing.pausing(r.entry) || !c.refresh.begin(r.entry) {
		return
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer c.refresh.end(r.entry)
		var now found[V]
		mark := c.l1.capture(&r)
		if c.apart(func() { c.read(ctx, &r, &now) }) != nil || now.state != fresh || now.err != nil {
			return
		}
		if now.entry.TTL > kept.ttl()+10*time.Millisecond { // a newer one
			c.l1.put(&r, mark, &now)
			return
		}
		c.refreshEntry(ctx, &r, &now.raw, &now.entry)
	}()
}

// Refresh loads the value of key now, whatever is cached, and caches it. Until it
// is loaded the old value, if any, stays readable, and it remains if the loader
// fails. Calls for a key share a load that began after all of them. The error is the
// loader's, or about key.
func (c *Cache[K, V]) Refresh(ctx context.Context, key K) (V, error) {
	var zero V
	if c.closed.Load() {
		return zero, ErrClosed
	}
	r, err := c.ref(key)
	if err != nil {
		return zero, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return zero, fmt.Errorf("cacheaside: refresh: %w", err)
		}
		f, seat, own := c.flights.join(ctx, &r, sighting[V]{force: true, direct: c.blocked(&r), left: c.cfg.Timeout}, true)
		if own {
			go c.run(f, nil)
		}
		if e, err, ok := c.await(ctx, f, seat, nil); ok {
			return e.Value, err
		}
	}
}

// announce tells other processes to forget a key.
func (c *Cache[K, V]) announce(ctx context.Context, r *ref[K]) {
	cmd := redis.NewIntCmd(ctx, "publish", c.channelName, c.message(KindKeys, false, CauseSet, r.text))
	if err := c.conn.Do(ctx, "announce", cmd); err != nil {
		c.report("announce", err)
	}
}
