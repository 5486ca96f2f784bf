package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

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
