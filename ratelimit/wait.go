package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrNever says that Wait was asked for more units than a policy ever admits.
var ErrNever = errors.New("ratelimit: more units than a policy can admit at once")

// ErrTooLate says that Wait's deadline is too near: the call would be admitted
// only after it. errors.Is finds context.DeadlineExceeded in it as well.
var ErrTooLate = fmt.Errorf("ratelimit: the call would be admitted only after the %w", context.DeadlineExceeded)

// closedRetry is the RetryAfter of calls that a failure policy denies, since
// nobody knows when Redis will be back.
const closedRetry = time.Second

// Wait blocks until a unit is taken for key, and returns nil then. It fails at
// once, with ErrTooLate, if ctx ends before that can be, and with ErrNever if it
// never can. Who waits keeps no place: others may come first. Errors are those of
// Allow beside these, and that of ctx.
func (l *Limiter) Wait(ctx context.Context, key string) error { return l.WaitN(ctx, key, 1) }

// WaitN is Wait for n units at once. n is 1 or more.
func (l *Limiter) WaitN(ctx context.Context, key string, n int64) error {
	if n < 1 {
		return fmt.Errorf("ratelimit: cost %d is less than 1", n)
	}
	for {
		r, err := l.take(ctx, key, n)
		switch {
		case err != nil:
			return err
		case r.Allowed:
			return nil
		case r.RetryAfter == Never:
			return ErrNever
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < r.RetryAfter {
			return ErrTooLate
		}
		timer := timers.Get().(*time.Timer)
		timer.Reset(r.RetryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		timers.Put(timer)
	}
}

// timers keeps stopped timers, whose channels hold no old tick since Go 1.23.
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}
