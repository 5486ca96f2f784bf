package cacheaside

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// Hooks are told what a cache does. All are optional, run before it goes on,
// must be safe for concurrent use, and should be quick. A panic in one is recovered
// and counted in Stats. BeforeInvalidate and AfterInvalidate run on the caller's
// goroutine, the others on one of their own.
type Hooks struct {
	// BeforeInvalidate runs before Invalidate, InvalidateTags, Clear, Update and
	// Fence. An error vetoes: nothing is invalidated (and Update does not write),
	// and the caller gets it, wrapped with ErrVetoed. It may append to Keys and
	// Tags, and what it appends is invalidated along. A panic vetoes as well.
	BeforeInvalidate func(ctx context.Context, inv *Invalidation) error

	// AfterInvalidate is told of the outcome, before the caller is.
	AfterInvalidate func(ctx context.Context, inv Invalidation, err error)

	// Load is told of each finished call of the loader.
	Load func(LoadEvent)

	// Fill is told whether Redis accepted a loaded value.
	Fill func(FillEvent)

	// Error is told of what went wrong without reaching a caller, and of load
	// errors, with an operation such as "get", "fill", "decode" or "load". The
	// text of errors from loaders and codecs is theirs.
	Error func(op string, err error)
}

// LoadEvent describes a finished call of the loader.
type LoadEvent struct {
	Keys     int // 1, or more for LoadMany
	Duration time.Duration
	Err      error
}

// FillEvent describes an attempt to store a loaded value.
type FillEvent struct {
	Accepted bool  // false: an invalidation came between load and fill
	Err      error // Redis could not be asked
}

// InvalidationKind says what an Invalidation is about.
type InvalidationKind uint8

const (
	KindKeys    InvalidationKind = iota // Keys, Tags, or both
	KindClear                           // all of the cache
	KindBusLost                         // announcements may have been missed; the first level was emptied
)

// String returns "keys", "clear" or "bus lost".
func (k InvalidationKind) String() string {
	switch k {
	case KindKeys:
		return "keys"
	case KindClear:
		return "clear"
	case KindBusLost:
		return "bus lost"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Cause says what led to an invalidation.
type Cause uint8

const (
	CauseInvalidate Cause = iota // Invalidate, InvalidateTags or Clear
	CauseUpdate                  // a fence was set or lifted, by Update or Fence
	CauseSet                     // Set replaced the value
	CauseRetry                   // a queued invalidation succeeded
	CauseServer                  // Redis reported a change by anybody, fills included, see Config.Tracking
	CauseBus                     // the connection for announcements
)

// String returns "invalidate", "update", "set", "retry", "server" or "bus".
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

var causeNames = [...]string{"invalidate", "update", "set", "retry", "server", "bus"}

// Invalidation describes what was, or is about to be, invalidated.
type Invalidation struct {
	Kind   InvalidationKind
	Cause  Cause
	Remote bool     // another process did it
	Keys   []string // as text: integers in decimal, strings as they are, others by MarshalText
	Tags   []string
}

// events hands invalidations to Config.OnInvalidate.
type events struct {
	queue chan Invalidation
}

const maxEvents = 1024

// emit queues an event for OnInvalidate, or drops it when the queue is full.
func (c *Cache[K, V]) emit(inv Invalidation) {
	if c.cfg.OnInvalidate == nil {
		return
	}
	select {
	case c.events.queue <- inv:
	default:
		c.stats.hookDropped.Add(1)
	}
}

// deliver calls OnInvalidate until the cache is closed.
func (c *Cache[K, V]) deliver() {
	for {
		select {
		case inv := <-c.events.queue:
			c.apart(func() { c.cfg.OnInvalidate(inv) })
		case <-c.closing.Done():
			return
		}
	}
}

// shield calls a function of the app and survives its panic. It is for goroutines
// that are the caller's, or that owe nobody anything should they end by Goexit.
func (c *Cache[K, V]) shield(f func()) (err error) {
	defer func() {
		if value := recover(); value != nil {
			c.stats.hookPanics.Add(1)
			err = &PanicError{Value: value, Stack: debug.Stack()}
		}
	}()
	f()
	return nil
}

// apart calls a function of the app on a goroutine of its own, and survives its
// Goexit as well, which is what FailNow of a test does.
func (c *Cache[K, V]) apart(f func()) (err error) {
	done := make(chan struct{})
	go func() {
		returned := false
		defer func() {
			if !returned {
				value := recover()
				if value == nil {
					value = errGoexit
				}
				c.stats.hookPanics.Add(1)
				err = &PanicError{Value: value, Stack: debug.Stack()}
			}
			close(done)
		}()
		f()
		returned = true
	}()
	<-done
	return err
}

// report tells the Error hook.
func (c *Cache[K, V]) report(op string, err error) {
	if op != "load" && op != "encode" && op != "decode" {
		c.stats.redisErrors.Add(1)
	}
	if c.cfg.Hooks.Error != nil {
		c.apart(func() { c.cfg.Hooks.Error(op, err) })
	}
}

// unread counts a stored value that could not be used.
func (c *Cache[K, V]) unread(err error) {
	c.stats.unreadable.Add(1)
	c.report("decode", err)
}

// loaded counts a call of the loader.
func (c *Cache[K, V]) loaded(took time.Duration, keys int, err error) {
	c.stats.loads.Add(uint64(keys))
	if c.cfg.Hooks.Load != nil {
		c.apart(func() { c.cfg.Hooks.Load(LoadEvent{Keys: keys, Duration: took, Err: err}) })
	}
}

// filled counts an attempt to store a loaded value.
func (c *Cache[K, V]) filled(accepted bool, err error) {
	switch {
	case err != nil:
		c.report("fill", err)
	case accepted:
		c.stats.fills.Add(1)
	default:
		c.stats.refused.Add(1)
	}
	if c.cfg.Hooks.Fill != nil {
		c.apart(func() { c.cfg.Hooks.Fill(FillEvent{Accepted: accepted, Err: err}) })
	}
}

// before runs the veto hook.
func (c *Cache[K, V]) before(ctx context.Context, inv *Invalidation) (err error) {
	hook := c.cfg.Hooks.BeforeInvalidate
	if hook == nil {
		return nil
	}
	vetoed := fmt.Errorf("%w: the hook panicked", ErrVetoed)
	c.shield(func() {
		if err := hook(ctx, inv); err != nil {
			vetoed = fmt.Errorf("%w: %w", ErrVetoed, err)
			return
		}
		vetoed = nil
	})
	return vetoed
}

// after runs the hook for outcomes.
func (c *Cache[K, V]) after(ctx context.Context, inv Invalidation, err error) {
	if hook := c.cfg.Hooks.AfterInvalidate; hook != nil {
		c.shield(func() { hook(ctx, inv, err) })
	}
}
