package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
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
	share    int  // seats of the flight that may have the result
	landed   bool // the flight has ended

	value V
	err   error
	e     *entry
	fill  *roundtrip.ScriptCmd
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
	if a.landed {
		return
	}
	a.landed = true
	if a.f == nil {
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
		if a.landed {
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
	for {
		load, busy := c.acquire(ctx, waiting)
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
			c.load(ctx, load, bulk, then)
			return
		}
		if len(load) > 0 {
			go c.load(ctx, load, bulk, nil)
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
// returns those to be loaded and those that somebody else loads.
func (c *Cache[K, V]) acquire(ctx context.Context, waiting []*attempt[K, V]) (load, busy []*attempt[K, V]) {
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
		captures := map[string]*roundtrip.ScriptCmd{}
		for _, a := range asked {
			for _, tag := range a.ref.tags {
				if captures[tag] == nil {
					captures[tag] = c.captureTag(ctx, tag)
					cmds = append(cmds, captures[tag])
				}
			}
		}
		errs := c.each(ctx, "acquire", cmds)
		for i, a := range asked {
			g, err := grant{}, errs[i]
			if err == nil {
				a.versions, err = c.captured(a.ref.tags, captures)
			}
			if err == nil {
				g, err = c.granted(cmds[i].(*roundtrip.ScriptCmd))
			}
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
func (c *Cache[K, V]) load(ctx context.Context, as []*attempt[K, V], bulk bool, then func()) {
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
	c.store(ctx, as, took)
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

// store keeps what was loaded, or gives the leases back, and lands the keys.
func (c *Cache[K, V]) store(ctx context.Context, as []*attempt[K, V], took time.Duration) {
	var back, fills []redis.Cmder
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
	if len(back) > 0 {
		if err := errors.Join(c.each(ctx, "release", back)...); err != nil {
			c.report("release", err)
		}
	}
	res := func(a *attempt[K, V]) result[V] {
		return result[V]{entry: Entry[V]{Value: a.value, Source: SourceLoader}, err: a.err}
	}
	if len(stored) > 0 {
		vouched := make([]int, len(stored))
		reads := map[string]*redis.StringCmd{}
		for i, a := range stored {
			vouched[i] = c.seats(a)
			a.fill = c.fillCmd(ctx, a.ref, a.lease, a.e)
			fills = append(fills, a.fill)
		}
		for _, a := range stored {
			for _, tag := range a.ref.tags {
				if a.f != nil && reads[tag] == nil {
					reads[tag] = redis.NewStringCmd(ctx, "get", c.tagKey(tag))
					fills = append(fills, reads[tag])
				}
			}
		}
		errs := c.each(ctx, "fill", fills)
		for i, a := range stored {
			n := 0
			if errs[i] == nil {
				n, _ = a.fill.Int()
			}
			c.filled(n > 0, errs[i])
			if n == 0 {
				continue
			}
			r := res(a)
			r.entry.TTL = milliseconds(a.e.fresh)
			c.l1.put(a.ref, a.mark, &found[V]{raw: *a.e, entry: r.entry, err: r.err})
			if a.seen.force { // other processes may still hold the old value
				c.announce(ctx, a.ref)
			}
			if c.unchanged(a, reads) {
				a.share = max(a.share, vouched[i])
			}
			c.land(a, r, a.share)
		}
	}
	for _, a := range as {
		c.land(a, res(a), a.share)
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

// judge tells the hooks and the back-off how a load went, and returns its error, which
// matches ErrNotFound if it means that.
func (c *Cache[K, V]) judge(r *ref[K], err error) error {
	if err == nil || c.isAnswer(err) {
		c.failing.clear(r.entry)
		if err != nil && !errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return err
	}
	c.stats.loadErrors.Add(1)
	c.failing.note(r.entry, c.cfg.ErrorBackoff)
	c.report("load", err)
	return err
}

// isAnswer reports whether a loader's error says that the key does not exist.
func (c *Cache[K, V]) isAnswer(err error) bool {
	if errors.Is(err, ErrNotFound) {
		return true
	}
	for _, means := range c.cfg.NotFound {
		if errors.Is(err, means) {
			return true
		}
	}
	return false
}

type previousKey struct{}

// Previous tells a loader what it is asked to renew: the value that is cached for the
// key, past its time or soon to be. There is one in refreshes, early, late or by
// Refresh, and none in bulk loads. The loader may ask its source whether the value has
// changed, by an ETag in it for instance, and return [ErrNotModified] if not.
func Previous[V any](ctx context.Context) (old Entry[V], ok bool) {
	if e, is := ctx.Value(previousKey{}).(*Entry[V]); is {
		return *e, true
	}
	return old, false
}

type outcome[T any] struct {
	value T
	err   error
}

// guard calls f, a user's loader, on a goroutine of its own, and waits for at
// most timeout. A panic or Goexit in f becomes an error.
func guard[T any](ctx context.Context, timeout time.Duration, then func(), f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan outcome[T], 1)
	go func() {
		var out outcome[T]
		returned := false
		defer func() {
			if !returned {
				value := recover()
				if value == nil {
					value = errGoexit
				}
				out = outcome[T]{err: &PanicError{Value: value, Stack: debug.Stack()}}
			}
			if then != nil {
				then()
			}
			done <- out
		}()
		out.value, out.err = f(ctx)
		returned = true
	}()
	var out outcome[T]
	select {
	case out = <-done:
	case <-ctx.Done():
		// A loader that heeds its context returns now, with its own account of it.
		grace := time.NewTimer(min(timeout/10, 100*time.Millisecond))
		defer grace.Stop()
		select {
		case out = <-done:
			if errors.Is(out.err, context.DeadlineExceeded) {
				out.err = errors.Join(ErrLoadTimeout, out.err)
			}
		case <-grace.C:
			out.err = ErrLoadTimeout
		}
	}
	return out.value, out.err
}
