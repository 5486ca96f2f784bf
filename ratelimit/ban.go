package ratelimit

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

//go:embed ban.lua
var banSource string

var banScript = roundtrip.NewScript(banSource)

// Ban denies every call for key, under all policies and by all limiters with
// this prefix and secret, for the time d, which replaces an earlier ban. d is 1 ms
// to 10 years. Processes that admit notice at their next call. The error is
// non-nil if Redis could not be asked; the ban may then hold or not.
func (l *Limiter) Ban(ctx context.Context, key string, d time.Duration) error {
	if d < minWindow || d > maxWindow {
		return fmt.Errorf("ratelimit: a ban of %v is outside %v to %v", d, minWindow, maxWindow)
	}
	_, err := l.conn.Run(context.WithoutCancel(ctx), "ban", banScript.Cmd(ctx, []string{l.keys.base(key)}, d.Microseconds()))
	l.forget(key)
	return err
}

// Unban lifts a ban. Other processes may deny for up to [Config.MaxStale] more. The
// error is non-nil if Redis could not be asked.
func (l *Limiter) Unban(ctx context.Context, key string) error {
	return l.unlink(ctx, "unban", key, l.keys.base(key))
}

// Reset forgets all that was taken for key under the limiter's policies, leases
// included. It does not lift a ban. Other processes may deny for up to
// [Config.MaxStale] more. The error is non-nil if Redis could not be asked.
func (l *Limiter) Reset(ctx context.Context, key string) error {
	return l.unlink(ctx, "reset", key, l.stateKeys(key, l.set)...)
}

func (l *Limiter) unlink(ctx context.Context, op, key string, keys ...string) error {
	ctx = context.WithoutCancel(ctx)
	args := make([]any, 1, 1+len(keys))
	args[0] = "unlink"
	for _, k := range keys {
		args = append(args, k)
	}
	err := l.conn.Do(ctx, op, redis.NewIntCmd(ctx, args...))
	if redis.IsTryAgainError(err) { // the slot moves, see apart.go
		err = nil
		for _, k := range keys {
			err = cmp.Or(err, l.conn.Do(ctx, op, redis.NewIntCmd(ctx, "unlink", k)))
		}
	}
	l.forget(key)
	l.local.clear(key)
	return err
}
