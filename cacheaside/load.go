package cacheaside

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

// errEmptyFlight ends a flight that nobody waits for; it reaches no caller.
var errEmptyFlight = errors.New("cacheaside: nobody waits")

// run carries out a flight and those that gather behind it.
func (c *Cache[K, V]) run(f *flight[K, V]) {
	for f != nil {
		res, share := c.resolve(f)
		f = c.flights.land(f, res, share)
	}
}

// resolve gets the value of a flight's key: it takes the lease and loads, or
// waits for whoever has the lease.
func (c *Cache[K, V]) resolve(f *flight[K, V]) (res result[V], share int) {
	if f.seen.direct {
		return c.loadDirect(f)
	}
	ctx := f.ctx
	expired, replace := f.seen.expired, f.seen.replace
	begin := time.Now()
	for {
		// Everything that may answer the callers comes after these two.
		mark := c.l1.capture(&f.ref)
		seats := c.flights.seal(f)

		var g grant
		var err error
		lease := newPrefix(kindLease)
		if expired != nil {
			lease = expired.prefix
			g, err = c.claim(ctx, &f.ref, lease, c.cfg.lease(), false)
		} else {
			g, err = c.acquire(ctx, &f.ref, lease, replace)
		}
		switch {
		case err != nil:
			// The lease may have been taken nevertheless, even later. It must not
			// be used: an invalidation may have come before it and after the load
			// began. It only stands in the way.
			c.report("acquire", err)
			if expired == nil {
				go c.release(context.WithoutCancel(ctx), &f.ref, lease)
			}
			return c.loadDirect(f)
		case g.held:
			return c.loadLeased(f, lease, &g, mark)
		case g.gone:
			expired = nil
			continue
		case !g.busy:
			var now found[V]
			c.interpret(&now, &f.ref, g.blob, g.versions)
			switch now.state {
			case fresh:
				c.l1.put(&f.ref, mark, &now)
				return result[V]{entry: now.entry, err: now.err}, seats
			case stale:
				c.refreshLater(ctx, &f.ref, &now.raw)
				return result[V]{entry: now.entry}, seats
			case expiredValue:
				expired = &now.raw
				continue
			case unreadable, outdated:
				replace = &g.blob
				continue
			case fenced:
				return c.loadDirect(f)
			}
		}
		// Leased by somebody else. A poll costs Redis less than a microsecond, and
		// grows with the wait, so it lengthens the wait by a quarter at most.
		waited := time.Since(begin)
		if c.flights.empty(f) {
			return result[V]{err: errEmptyFlight}, 0
		}
		if waited > 2*c.cfg.lease() {
			return c.loadDirect(f)
		}
		pause := min(max(waited/4, time.Millisecond), 50*time.Millisecond)
		time.Sleep(pause/2 + rand.N(pause))
	}
}

// loadLeased loads for a flight that has the lease, or the claim on an expired
// entry.
func (c *Cache[K, V]) loadLeased(f *flight[K, V], lease string, g *grant, mark mark) (result[V], int) {
	before := c.flights.seal(f)
	after := before
	res, accepted := c.loadAndFill(f.ctx, &f.ref, lease, g.versions, mark, func() { after = c.flights.seal(f) })
	switch {
	case res.err != nil && !isAnswer(res.err):
		return res, c.flights.seal(f) // a failure is not out of date for anybody
	case accepted:
		return res, after
	default:
		return res, before
	}
}

// loadDirect loads for a flight without a lease. Callers that come from now on
// are not served by it, since nothing will tell whether the value was superseded
// before they came.
func (c *Cache[K, V]) loadDirect(f *flight[K, V]) (result[V], int) {
	wait := time.NewTimer(c.cfg.LoadTimeout)
	defer wait.Stop()
	select {
	case c.direct <- struct{}{}:
	case <-wait.C:
		return result[V]{err: ErrLoadTimeout}, c.flights.shut(f)
	}
	seats := c.flights.shut(f)
	value, _, err := c.loadThen(f.ctx, f.ref.key, func() { <-c.direct })
	err = c.judge(&f.ref, err)
	return result[V]{entry: Entry[V]{Value: value, Source: SourceLoader}, err: err}, seats
}

// enclose makes the entry for what a loader returned. Its prefix is empty if the
// answer is not to be cached. The error is the loader's.
func (c *Cache[K, V]) enclose(r *ref[K], value V, took time.Duration, err error, versions []tagVersion) (*entry, error) {
	err = c.judge(r, err)
	ttl := c.cfg.TTL
	e := &entry{kind: kindValue, delta: took.Milliseconds(), tags: versions}
	switch {
	case err == nil:
		if perr := c.pack.pack(e, value); perr != nil {
			c.report("encode", perr)
			return e, nil
		}
		if c.fn.Version != nil {
			e.version = c.version(value)
		}
	case isAnswer(err):
		if c.cfg.NegativeTTL < 0 {
			return e, err
		}
		e.kind, ttl = kindNegative, c.cfg.NegativeTTL
	default:
		return e, err
	}
	e.prefix = newPrefix(e.kind)
	e.written = c.clock.now()
	e.fresh = max(c.jitter(ttl).Milliseconds(), 1)
	return e, err
}

func (c *Cache[K, V]) jitter(d time.Duration) time.Duration {
	return d - time.Duration(c.cfg.Jitter*rand.Float64()*float64(d))
}

// judge tells the hooks and the back-off how a load went, and returns its error.
func (c *Cache[K, V]) judge(r *ref[K], err error) error {
	if err == nil || isAnswer(err) {
		c.failing.clear(r.entry)
		return err
	}
	c.stats.loadErrors.Add(1)
	c.failing.note(r.entry, c.cfg.ErrorBackoff)
	c.report("load", err)
	return err
}

// isAnswer reports whether a loader's error says that the key does not exist.
func isAnswer(err error) bool { return errors.Is(err, ErrNotFound) }

// load calls the loader, for at most LoadTimeout.
func (c *Cache[K, V]) load(ctx context.Context, key K) (V, time.Duration, error) {
	return c.loadThen(ctx, key, nil)
}

// loadThen is load, and calls then when the loader has really returned, which can
// be later.
func (c *Cache[K, V]) loadThen(ctx context.Context, key K, then func()) (V, time.Duration, error) {
	begin := time.Now()
	value, err := guard(ctx, c.cfg.LoadTimeout, then, func(ctx context.Context) (V, error) { return c.loader(ctx, key) })
	took := time.Since(begin)
	c.loaded(took, 1, err)
	return value, took, err
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
	if out.err != nil {
		var zero T
		out.value = zero
	}
	return out.value, out.err
}
