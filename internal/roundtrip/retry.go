package roundtrip

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	maxRetries   = 2
	firstBackoff = 8 * time.Millisecond
	// maxStale bounds the connections that are found closed, one after another, before a
	// call is sent on one that is not.
	maxStale = 256
)

// retry sends those commands again that failed for a passing reason: their
// connection broke, or the server was loading or has just become a replica. What
// may have been executed and must not be twice is left alone, and what was not sent since
// its connection had been closed is sent on another one at once. If time runs out,
// the commands keep the error they had.
//
// A cluster client retries by itself, since it must follow redirects, but not what
// goes out at most once: there the server's refusal to execute it now, such as
// TRYAGAIN while a slot moves, is a reason to send it again.
func (e *engine) retry(ctx context.Context, cmds []redis.Cmder) {
	looked := 0
	for attempt := 0; attempt < maxRetries; {
		again, fresh := e.passing(cmds)
		if again == nil {
			return
		}
		if looked++; !fresh || looked > maxStale {
			pause := firstBackoff << attempt
			pause = pause/2 + rand.N(pause)
			attempt++
			if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		} else if ctx.Err() != nil {
			return
		}
		for _, cmd := range again {
			cmd.SetErr(nil)
		}
		e.process(ctx, again)
		if unknown := unknownScripts(again); unknown != nil {
			e.process(ctx, unknown)
		}
	}
}

// passing returns the commands that are worth another try, and whether all of them were
// not sent at all, since their connections had been closed.
func (e *engine) passing(cmds []redis.Cmder) (again []redis.Cmder, fresh bool) {
	fresh = true
	for _, cmd := range cmds {
		err := cmd.Err()
		if err == nil || err == redis.Nil {
			continue
		}
		kind, maybe := classify(err)
		stale := isUnsent(err) && kind == ErrUnavailable
		switch {
		case maybe && cmd.NoRetry():
		case e.cluster != nil && !stale && !(cmd.NoRetry() && isReply(err)):
		case kind != ErrUnavailable && kind != ErrTimeout && !redis.IsReadOnlyError(err):
		case isUnknownReply(err):
		case errors.Is(err, redis.ErrClosed), redis.HasErrorPrefix(err, "BUSY"), redis.HasErrorPrefix(err, "MISCONF"):
		default:
			again = append(again, cmd)
			fresh = fresh && stale
		}
	}
	return again, fresh
}
