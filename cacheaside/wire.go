package cacheaside

import (
	"errors"
	"io"

	"github.com/redis/go-redis/v9"
)

// Invalidations are announced whether or not this process has a first level,
// since another may have one.

// message is what is announced: kind, cause, origin, and the text of a key or
// the name of a tag.
func (c *Cache[K, V]) message(kind InvalidationKind, tag bool, cause Cause, text string) string {
	k := byte('k')
	switch {
	case kind == KindClear:
		k = 'c'
	case tag:
		k = 't'
	}
	b := make([]byte, 0, messageHead+len(text))
	b = append(b, k, '0'+byte(cause))
	b = append(b, c.origin...)
	return string(append(b, text...))
}

const messageHead = 2 + 16

// receive applies an announcement.
func (c *Cache[K, V]) receive(payload string) {
	if len(payload) < messageHead || payload[2:messageHead] == c.origin {
		return
	}
	text := payload[messageHead:]
	inv := Invalidation{Kind: KindKeys, Cause: Cause(payload[1] - '0'), Remote: true}
	switch payload[0] {
	case 'k':
		r, err := c.refOfText(text)
		if err != nil {
			return
		}
		c.forget([]ref[K]{r}, nil)
		inv.Keys = []string{text}
	case 't':
		c.forget(nil, []string{text})
		inv.Tags = []string{text}
	case 'c':
		c.forgetAll()
		inv.Kind = KindClear
	default:
		return
	}
	c.stats.remote.Add(1)
	c.emit(inv)
}

// startBus makes sure that announcements are heard.
func (c *Cache[K, V]) startBus() {
	if c.bus == nil || c.busUp.Load() {
		return
	}
	c.life.Lock()
	defer c.life.Unlock()
	if c.busUp.Swap(true) {
		return
	}
	if c.cfg.Tracking {
		c.spawn(c.track)
	} else {
		c.bus.message = c.receive
		c.bus.proved = c.proved
		c.bus.lost = c.lost
		c.bus.failed = c.refused
		c.spawn(func() { c.bus.run(c.closing) })
	}
	if c.cfg.OnInvalidate != nil {
		c.spawn(c.deliver)
	}
}

// proved extends the time for which the first level may be served.
func (c *Cache[K, V]) proved(at int64) {
	if c.l1 == nil {
		return
	}
	if at != 0 { // in a bubble of testing/synctest mono may be negative
		at += int64(c.cfg.MaxStaleness)
	}
	c.l1.horizon.Store(at)
}

// lost empties the first level.
func (c *Cache[K, V]) lost() {
	if c.l1 != nil {
		c.l1.horizon.Store(0)
		c.l1.purge()
	}
	if c.closing.Err() != nil {
		return
	}
	c.stats.busLost.Add(1)
	c.emit(Invalidation{Kind: KindBusLost, Cause: CauseBus, Remote: true})
}

// refused counts a SUBSCRIBE that Redis has answered with an error, and reports it. Other
// failures are of a Redis that is away, and shown by what else fails.
func (c *Cache[K, V]) refused(err error) {
	if reply := redis.Error(nil); !errors.As(err, &reply) || errors.Is(err, io.EOF) {
		return
	}
	c.stats.busRefused.Add(1)
	c.report("subscribe", c.conn.Classify("subscribe", err))
}
