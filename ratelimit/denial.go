package ratelimit

import (
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A denial by Redis at server time s of cost n with RetryAfter R proves that every
// cost of n or more is denied until s+R: only admissions change the state in the
// meantime, and they only take away. denials keeps such certificates, counted
// from the moment the call was sent, which is before s, so that no call is denied
// that Redis would admit. It assumes that the server's clock is not stepped
// forward.
//
// The table is of fixed size: buckets of a few slots, read without locks. A full
// bucket loses the certificate that ends first.
type denials struct {
	mask    uint64
	buckets []bucket
	stale   time.Duration // < 0: no bound
}

const (
	slotsPerBucket = 8
	maxCachedKey   = 1024 // bytes; longer keys are not kept, to bound memory to some 2 kB a denial
	refreshAfter   = time.Second
)

type bucket struct {
	// epoch counts what may have loosened a limit of the bucket's keys. A denial
	// that was under way meanwhile is not kept.
	epoch atomic.Uint64
	slots [slotsPerBucket]atomic.Pointer[certificate]
}

// certificate proves denials. It does not change, except for shown.
type certificate struct {
	key    string
	set    int64
	cost   int64         // 0 for a ban: denies whatever the cost
	until  time.Duration // since base: proves denials before
	landed time.Duration // since base: result's durations count from here
	result Result
	shown  atomic.Pointer[shown]

	subject *subject // what the denial was decided on
	totals  []int64
}

// shown is a Policies slice counted down to a moment.
type shown struct {
	at       time.Duration
	policies []PolicyResult
}

// base is the origin of the process's monotonic times.
var base = time.Now()

func newDenials(size int, stale time.Duration) *denials {
	n := max(1, (size+slotsPerBucket-1)/slotsPerBucket)
	n = 1 << bits.Len(uint(n-1))
	return &denials{mask: uint64(n - 1), buckets: make([]bucket, n), stale: stale}
}

// bucket returns the bucket of the keys with a hash.
func (d *denials) bucket(hash uint64) *bucket { return &d.buckets[hash&d.mask] }

// empty reports whether the bucket proves nothing.
func (b *bucket) empty() bool {
	for i := range b.slots {
		if b.slots[i].Load() != nil {
			return false
		}
	}
	return true
}

// find returns a proof that cost is denied, or nil. One with a lower cost than
// asked for is returned only if there is none for just that cost.
func (b *bucket) find(key string, set, cost int64, now time.Duration) *certificate {
	var best *certificate
	for i := range b.slots {
		c := b.slots[i].Load()
		if c == nil || c.cost > cost || c.set != set && c.cost != 0 || now >= c.until || c.key != key {
			continue
		}
		if c.cost == cost || c.cost == 0 {
			return c
		}
		if best == nil || c.cost > best.cost {
			best = c
		}
	}
	return best
}

// add keeps c unless the bucket's epoch has moved on from epoch.
func (b *bucket) add(c *certificate, epoch uint64, now time.Duration) {
	if b.epoch.Load() != epoch {
		return
	}
	var slot *atomic.Pointer[certificate]
	var soonest time.Duration
	for i := range b.slots {
		old := b.slots[i].Load()
		if old == nil || now >= old.until || old.set == c.set && old.cost == c.cost && old.key == c.key {
			slot = &b.slots[i]
			break
		}
		if slot == nil || old.until < soonest {
			slot, soonest = &b.slots[i], old.until
		}
	}
	slot.Store(c)
	if b.epoch.Load() != epoch {
		slot.CompareAndSwap(c, nil)
	}
}

// drop forgets what is known of key, also of denials that are under way.
func (b *bucket) drop(key string) {
	b.epoch.Add(1)
	for i := range b.slots {
		if c := b.slots[i].Load(); c != nil && c.key == key {
			b.slots[i].CompareAndSwap(c, nil)
		}
	}
}

// outdate forgets denials of key under one set that say that something else
// remains than Redis just said.
func (b *bucket) outdate(key string, set, remaining int64) {
	for i := range b.slots {
		if c := b.slots[i].Load(); c != nil && c.key == key && c.set == set && c.result.Remaining != remaining {
			b.slots[i].CompareAndSwap(c, nil)
		}
	}
}

// answer returns the denial that c proves at now. It allocates at most once in
// refreshAfter.
func (c *certificate) answer(now time.Duration) Result {
	r := c.result
	gone := now - c.landed
	r.Source = SourceDenied
	r.At = r.At.Add(gone)
	r.RetryAfter = countdown(r.RetryAfter, gone)
	r.NextAfter = countdown(r.NextAfter, gone)
	r.ResetAfter = countdown(r.ResetAfter, gone)
	s := c.shown.Load()
	if s == nil {
		if gone < refreshAfter {
			return r
		}
	} else if now-s.at < refreshAfter {
		r.Policies = s.policies
		return r
	}
	policies := make([]PolicyResult, len(r.Policies))
	for i, p := range c.result.Policies {
		p.RetryAfter = countdown(p.RetryAfter, gone)
		p.NextAfter = countdown(p.NextAfter, gone)
		p.ResetAfter = countdown(p.ResetAfter, gone)
		policies[i] = p
	}
	c.shown.Store(&shown{at: now, policies: policies})
	r.Policies = policies
	return r
}

// countdown returns d less gone. A wait does not count down to nothing, so that
// a denial never says "now".
func countdown(d, gone time.Duration) time.Duration {
	if d == 0 || d == Never {
		return d
	}
	return max(d-gone, time.Microsecond)
}

// certify makes a certificate of a denial that was sent at sent, or returns nil
// if it proves nothing beyond itself.
func (d *denials) certify(key string, set *policySet, cost int64, r *Result, s *subject, totals []int64, sent, landed time.Duration) *certificate {
	if len(key) > maxCachedKey {
		return nil
	}
	proven := r.RetryAfter
	for i := range r.Policies {
		// A lease may be given back at any moment.
		if p := &r.Policies[i]; !p.Allowed && !p.Shadow && set.policies[i].algo == concurrency {
			return nil
		}
	}
	if proven > maxWindow*2 {
		proven = maxWindow * 2
	}
	// Against clocks that run apart, a thousandth less.
	proven -= proven / 1024
	if d.stale >= 0 {
		proven = min(proven, d.stale)
	}
	until := sent + proven
	if until <= landed {
		return nil
	}
	if r.Banned {
		cost = 0
	}
	// Copies: a key may be a piece of a request's body, and what s and r point to is a
	// piece of what a whole flight took.
	c := &certificate{key: strings.Clone(key), set: set.id, cost: cost, until: until, landed: landed, result: *r, totals: totals}
	c.result.Policies = slices.Clone(r.Policies)
	c.subject = &subject{set: s.set, now: s.now, banned: s.banned, snaps: slices.Clone(s.snaps)}
	return c
}

// derive returns a certificate for a larger cost than c denies, or nil if only
// Redis knows when that will be admitted.
func (c *certificate) derive(cost int64) *certificate {
	s := c.subject
	r := run{cost: cost, calls: 1, np: int32(len(c.totals)), nums: make([]int64, s.set.numbers())}
	copy(r.before(), c.totals)
	for i := range s.set.policies {
		p := &s.set.policies[i]
		if left := p.left(s.snaps[i], c.totals[i], s.now); p.listed() && (left < 0 || cost <= p.cap && left < cost) {
			return nil
		}
	}
	res := s.result(&r, 0, nil)
	return &certificate{key: c.key, set: c.set, cost: cost, until: c.until, landed: c.landed, result: res, subject: s, totals: c.totals}
}
