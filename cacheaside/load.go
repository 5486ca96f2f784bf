package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// errEmptyFlight ends a flight that nobody waits for; it reaches no caller.
var errEmptyFlight = errors.New("cacheaside: nobody waits")

// attempt is what happens to one key between its lease and its fill: of a flight,
// alone or together with others in one bulk load, or of a refresh in the background,
// for which nobody waits.
type attempt[K comparable, V any] struct {
	f        *flight[K, V] // nil in the background
	ref      *ref[K]
	seen     sighting[V]
	mark     mark
	lease    string // prefix that the fill expects; empty if it loads without one
	versions []tagVersion
	share    int         // seats of the flight that may have the result
	landed   atomic.Bool // the flight has ended

	value V
	err   error
	e     *entry
}

func newAttempt[K comparable, V any](f *flight[K, V]) *attempt[K, V] {
	return &attempt[K, V]{f: f, ref: &f.ref, seen: f.seen}
}

// seats tells how many seats the flight of an attempt has given out.
func (c *Cache[K, V]) seats(a *attempt[K, V]) int {
	if a.f == nil {
		return 0
	}
	return c.flights.seal(a.f)
}

// land ends an attempt, and starts the next flight if callers wait for one.
func (c *Cache[K, V]) land(a *attempt[K, V], res result[V], share int) {
	if a.landed.Swap(true) || a.f == nil {
		return
	}
	if next := c.flights.land(a.f, res, share); next != nil {
		go c.run(next, nil)
	}
}

// settle ends attempts that a panic or Goexit left in the air. It is deferred.
func (c *Cache[K, V]) settle(as []*attempt[K, V]) {
	value := recover()
	for _, a := range as {
		if a.landed.Load() {
			continue
		}
		if value == nil {
			value = errGoexit
		}
		c.stats.hookPanics.Add(1)
		if a.lease != "" && a.lease[0] == kindLease {
			go c.release(context.Background(), a.ref, a.lease)
		}
		c.land(a, result[V]{err: &PanicError{Value: value, Stack: debug.Stack()}}, c.seats(a))
	}
}

// run carries out a flight. then, if not nil, is called when no loader runs for it any
// more.
func (c *Cache[K, V]) run(f *flight[K, V], then func()) {
	c.runAll(f.ctx, []*attempt[K, V]{newAttempt(f)}, false, then)
}

// runAll gets the values of keys: it takes their leases and loads, in bulk or each
// alone, or waits for whoever has a lease.
func (c *Cache[K, V]) runAll(ctx context.Context, all []*attempt[K, V], bulk bool, then func()) {
	waiting := all
	defer func() { c.settle(waiting) }()
	begin := time.Now()
	left := all[0].seen.left // bulk loads are of one caller
	for first := true; ; first = false {
		var load, busy []*attempt[K, V]
		if first {
			load, busy = c.acquire(ctx, waiting, bulk, left)
			left -= time.Since(begin)
		} else { // somebody else loads: each look has a Timeout of its own
			load, busy = c.acquire(ctx, waiting, bulk, c.cfg.Timeout)
		}
		waited := time.Since(begin)
		still := busy[:0]
		for _, a := range busy {
			switch {
			case c.flights.empty(a.f):
				c.land(a, result[V]{err: errEmptyFlight}, 0)
			case waited > 2*c.cfg.lease():
				a.lease = ""
				load = append(load, a)
			default:
				still = append(still, a)
			}
		}
		waiting = still
		if len(waiting) == 0 {
			c.load(ctx, load, bulk, left, then)
			return
		}
		if len(load) > 0 {
			go c.load(ctx, load, bulk, left, nil)
		}
		// A poll costs Redis less than a microsecond, and grows with the wait, so it
		// lengthens the wait by a quarter at most.
		pause := min(max(waited/4, time.Millisecond), maxPause)
		time.Sleep(pause/2 + rand.N(pause))
	}
}

// maxPause is between two looks at a lease that somebody else has.
const maxPause = 50 * time.Millisecond

// uncachedFor is how long others know of an outcome that is not cached. It is longer
// than any pause between two looks.
const uncachedFor = 3 * maxPause

// acquire takes the leases of keys, lands those that turn out to have a value, and
// returns those to be loaded and those that somebody else loads. It waits for Redis no
// longer than left.
func (c *Cache[K, V]) acquire(ctx context.Context, waiting []*attempt[K, V], bulk bool, left time.Duration) (load, busy []*attempt[K, V]) {
	by := time.Now().Add(left)
	for len(waiting) > 0 {
		var asked, again []*attempt[K, V]
		var cmds []redis.Cmder
		for _, a := range waiting {
			if a.seen.direct {
				a.lease = ""
				load = append(load, a)
				continue
			}
			// Everything that may answer the callers comes after these two.
			a.mark = c.l1.capture(a.ref)
			a.share = c.seats(a)
			if a.seen.expired != nil {
				a.lease = a.seen.expired.prefix
				cmds = append(cmds, c.claimCmd(ctx, a.ref, a.lease, c.cfg.lease(), a.seen.force))
			} else {
				a.lease = newPrefix(kindLease)
				cmds = append(cmds, c.acquireCmd(ctx, a.ref, a.lease, a.seen.replace))
			}
			asked = append(asked, a)
		}
		if len(asked) == 0 {
			break
		}
		var captures map[string]*roundtrip.ScriptCmd
		for _, a := range asked {
			for _, tag := range a.ref.tags {
				if captures[tag] == nil {
					if captures == nil {
						captures = make(map[string]*roundtrip.ScriptCmd)
					}
					captures[tag] = c.captureTag(ctx, tag)
					cmds = append(cmds, captures[tag])
				}
			}
		}
		q := &leaseQuery[K, V]{c: c, cmds: cmds, captures: captures}
		if left := time.Until(by); c.whole(left) {
			c.shield(func() { q.ask(ctx) })
		} else if !c.askWithin(ctx, left, q, asked, bulk) {
			return append(load, asked...), busy
		}
		for i, a := range asked {
			g, err := q.answer(a, i)
			switch {
			case err != nil:
				// The lease may have been taken nevertheless, even later. It must not
				// be used: an invalidation may have come before it and after the load
				// began. It only stands in the way.
				c.report("acquire", err)
				if a.lease[0] == kindLease {
					go c.release(context.WithoutCancel(ctx), a.ref, a.lease)
				}
				a.lease = ""
				load = append(load, a)
			case g.held:
				load = append(load, a)
			case g.gone:
				a.seen.expired, a.seen.old = nil, nil
				again = append(again, a)
			case g.busy:
				busy = append(busy, a)
			default:
				switch c.look(ctx, a, &g) {
				case lookLanded:
				case lookAgain:
					again = append(again, a)
				case lookDirect:
					a.lease = ""
					load = append(load, a)
				case lookBusy:
					busy = append(busy, a)
				}
			}
		}
		waiting = again
	}
	return load, busy
}

// leaseQuery asks for leases and for the versions of tags in one round trip.
type leaseQuery[K comparable, V any] struct {
	c        *Cache[K, V]
	cmds     []redis.Cmder
	captures map[string]*roundtrip.ScriptCmd // of tags
	errs     []error
}

func (q *leaseQuery[K, V]) ask(ctx context.Context) { q.errs = q.c.each(ctx, "acquire", q.cmds) }

// answer is what was said of the i-th key, that of a.
func (q *leaseQuery[K, V]) answer(a *attempt[K, V], i int) (g grant, err error) {
	if i >= len(q.errs) { // a hook of the client panicked
		return g, errReply
	}
	if err = q.errs[i]; err == nil {
		a.versions, err = q.c.captured(a.ref.tags, q.captures)
	}
	if err == nil {
		g, err = q.c.granted(q.cmds[i].(*roundtrip.ScriptCmd))
	}
	return g, err
}

// askWithin asks for no longer than left, and reports whether the answer is there. If not,
// what was asked for is to be loaded without a lease.
func (c *Cache[K, V]) askWithin(ctx context.Context, left time.Duration, q *leaseQuery[K, V], asked []*attempt[K, V], bulk bool) bool {
	given := make(chan []*attempt[K, V], 1)
	if c.within(left, func() { q.ask(ctx) }, func() { c.leasedLate(ctx, <-given, asked, bulk, q.answer) }) {
		return true
	}
	c.report("acquire", errSlow)
	late := make([]*attempt[K, V], len(asked))
	for i, a := range asked {
		late[i] = &attempt[K, V]{ref: a.ref, seen: a.seen, mark: a.mark, lease: a.lease}
		a.lease = ""
	}
	given <- late
	return false
}

// whole reports whether nearly all of Timeout is left, to a sixteenth: then a round trip,
// which ends by itself after Timeout, needs no goroutine and timer that end the wait for it.
func (c *Cache[K, V]) whole(left time.Duration) bool { return left >= c.cfg.Timeout-c.cfg.Timeout/16 }

// leasedLate uses leases that came after the callers had left for loads without: to load
// once more when those, direct, have ended, so that there is a value for those who come
// next. It leaves that to a flight that callers wait for already.
func (c *Cache[K, V]) leasedLate(ctx context.Context, as, direct []*attempt[K, V], bulk bool, answer func(*attempt[K, V], int) (grant, error)) {
	var held []*attempt[K, V]
	for i, a := range as {
		g, err := answer(a, i)
		own := false
		if err == nil && g.held {
			<-direct[i].f.done
			a.f, _, own = c.flights.join(ctx, a.ref, a.seen, false)
			c.flights.leave(a.f)
		}
		switch {
		case own:
			held = append(held, a)
		case (err != nil || g.held) && a.lease[0] == kindLease:
			c.release(ctx, a.ref, a.lease)
		}
	}
	if len(held) > 0 {
		c.stats.refreshes.Add(uint64(len(held)))
		c.load(ctx, held, bulk, 0, nil)
	}
}

// within runs f on a goroutine of its own and reports whether it ended in time. If not,
// late is called when it does.
func (c *Cache[K, V]) within(d time.Duration, f, late func()) bool {
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if over.Swap(true) {
				late()
			}
		}()
		c.shield(f)
	}()
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	}
	if !over.Swap(true) {
		return false
	}
	<-done
	return true
}

// what came of a look at what a key holds.
const (
	lookLanded = iota // it was the answer
	lookAgain         // ask again, for something else
	lookDirect        // load without a lease
	lookBusy          // somebody else loads
)

// look decides about a key that was not free to be leased.
func (c *Cache[K, V]) look(ctx context.Context, a *attempt[K, V], g *grant) int {
	var now found[V]
	if err := c.apart(func() { c.interpret(&now, a.ref, g.blob, a.versions) }); err != nil {
		now.state = unreadable
	}
	if a.seen.force {
		switch now.state {
		case fresh, stale, expiredValue:
			now.state = expiredValue
		case leased: // by somebody who may have begun before this call
			now.state = unreadable
		}
	}
	switch now.state {
	case fresh:
		c.l1.put(a.ref, a.mark, &now)
		c.land(a, result[V]{entry: now.entry, err: now.err}, a.share)
		return lookLanded
	case stale:
		c.refreshLater(ctx, a.ref, &now)
		c.land(a, result[V]{entry: now.entry}, a.share)
		return lookLanded
	case expiredValue:
		a.seen.expired, a.seen.old = &now.raw, &now.entry
		if now.err != nil {
			a.seen.old = nil
		}
		return lookAgain
	case unreadable, outdated:
		a.seen.replace = &g.blob
		return lookAgain
	case fenced, uncached:
		return lookDirect
	}
	return lookBusy
}

// load calls the loader for keys that are leased or to be loaded without, stores what
// it returns, and lands them.
func (c *Cache[K, V]) load(ctx context.Context, as []*attempt[K, V], bulk bool, left time.Duration, then func()) {
	defer func() { c.settle(as) }()
	over := sync.OnceFunc(func() {
		if then != nil {
			then()
		}
	})
	as, place := c.place(as)
	if len(as) == 0 {
		over()
		return
	}
	ids := make([]K, len(as))
	for i, a := range as {
		ids[i] = a.ref.key
		if a.f == nil {
			continue
		}
		if a.lease == "" {
			// Nothing will tell whether the value was superseded before later callers
			// came.
			a.share = c.flights.shut(a.f)
		} else {
			a.share = c.flights.seal(a.f)
		}
	}
	ended := func() {
		if place {
			<-c.direct
		}
		over()
	}
	begin := time.Now()
	var err error
	if bulk {
		var values map[K]V
		values, err = guard(ctx, c.cfg.LoadTimeout, ended, func(ctx context.Context) (map[K]V, error) { return c.fn.LoadMany(ctx, ids) })
		c.deal(as, values, err)
	} else {
		a := as[0]
		if a.seen.old != nil {
			old := *a.seen.old
			if old.Value, err = c.clone(old.Value); err == nil {
				ctx = context.WithValue(ctx, previousKey{}, &old)
			}
		}
		a.value, err = guard(ctx, c.cfg.LoadTimeout, ended, func(ctx context.Context) (V, error) { return c.loader(ctx, a.ref.key) })
		if err != nil && a.seen.old != nil && errors.Is(err, ErrNotModified) {
			a.value, err = a.seen.old.Value, nil
		}
		if err != nil {
			var zero V
			a.value = zero
		}
		a.err = err
	}
	took := time.Since(begin)
	c.loaded(took, len(as), err)
	c.store(ctx, as, took, left)
}

// place waits for a place among the loads without a lease, if one of the keys has
// none. Those that get none in time are landed.
func (c *Cache[K, V]) place(as []*attempt[K, V]) (rest []*attempt[K, V], taken bool) {
	direct := false
	for _, a := range as {
		direct = direct || a.lease == ""
	}
	if !direct {
		return as, false
	}
	wait := time.NewTimer(c.cfg.LoadTimeout)
	defer wait.Stop()
	select {
	case c.direct <- struct{}{}:
		return as, true
	case <-wait.C:
	}
	for _, a := range as {
		if a.lease != "" {
			rest = append(rest, a)
		} else {
			c.land(a, result[V]{err: ErrLoadTimeout}, c.seats(a))
		}
	}
	return rest, false
}

// deal gives each key its part of what a bulk load returned.
func (c *Cache[K, V]) deal(as []*attempt[K, V], values map[K]V, err error) {
	var each *ManyError[K]
	if errors.As(err, &each) {
		err = nil
	} else if err != nil && c.isAnswer(err) {
		// Not found is said of one key, by leaving it out.
		err = fmt.Errorf("cacheaside: bulk load: %v", err)
	}
	for _, a := range as {
		a.err = err
		if err != nil {
			continue
		}
		if each != nil {
			if a.err = each.Errs[a.ref.key]; a.err != nil {
				continue
			}
		}
		var ok bool
		if a.value, ok = values[a.ref.key]; !ok {
			a.err = ErrNotFound
		}
	}
}
