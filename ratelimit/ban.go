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

// Bans are few, and to ask for that of every subject takes half of the keys that are
// sent and a tenth of the script's time. So Ban raises a flag, a key of the prefix that
// is there as long as any ban may be. While it is, bucket.lua and one.lua decide nothing
// unless they are given the bans of all their subjects. While it is not, a subject's own
// ban is looked at once in lookEvery all the same: the flag may have been lost, and what
// is in the place of the ban may be foreign. On a cluster, where the flag is in a slot
// of its own, every ban is looked at.

const (
	// lookEvery is how long it is believed that a subject is not banned while the flag
	// is not there, and how long all bans are looked at from the start once it was seen.
	lookEvery = time.Second
	// mayBan is what the scripts say instead of deciding since the flag is there. The
	// end of no ban is so early.
	mayBan = -2
)

// looks puts those of a part in front whose bans are to be looked at, and returns how
// many they are; all asks for every one.
func (c *core) looks(f *flight, part []*subject, all bool) (n int) {
	sent := f.sent.Sub(base)
	switch {
	case part[0].set.alone:
		return 0
	case all || int64(sent) < c.bansUntil.Load() || c.conn.IsCluster():
		return len(part)
	}
	for i, s := range part {
		if f.of(s).known.lookedBefore(sent - c.lookEvery) {
			part[i], part[n] = part[n], part[i]
			n++
		}
	}
	if n+1 >= len(part) {
		return len(part) // the flag would take the place of the last
	}
	return n
}

// lookedBefore reports whether a subject's ban was not looked at since a time.
func (k *knownKey) lookedBefore(since time.Duration) bool {
	if k == nil {
		return true
	}
	at := k.looked.Load()
	return at == 0 || at <= int64(since)
}

// looked notes that subjects were found not to be banned.
func (f *flight) looked(part []*subject) {
	sent := f.sent.Sub(base)
	for _, s := range part {
		if known := f.of(s).known; known != nil && s.err == nil && s.banned == 0 {
			known.looked.Store(int64(sent))
		}
	}
}

// mayBan reports whether a script decided nothing since the flag is there, and notes it.
func (c *core) mayBan(cmd *roundtrip.IntsCmd) bool {
	v := cmd.Val()
	if len(v) != 2 || v[1] != mayBan {
		return false
	}
	c.bansUntil.Store(int64(time.Since(base) + c.lookEvery))
	return true
}

// Ban denies every call for key, under all policies and by all limiters with
// this prefix and secret, for the time d, which replaces an earlier ban. d is 1 ms
// to 10 years. Processes that admit notice at their next call, or within a second if
// the key that tells of bans was deleted or evicted. The error is non-nil if Redis
// could not be asked; the ban may then hold or not.
func (l *Limiter) Ban(ctx context.Context, key string, d time.Duration) error {
	if d < minWindow || d > maxWindow {
		return fmt.Errorf("ratelimit: a ban of %v is outside %v to %v", d, minWindow, maxWindow)
	}
	ctx = context.WithoutCancel(ctx)
	runs := [][]string{{l.keys.base(key), l.keys.flag}}
	if l.conn.IsCluster() { // one slot after the other, so that no ban is there without the flag
		runs = [][]string{{l.keys.flag}, {l.keys.base(key)}}
	}
	var err error
	for _, keys := range runs {
		if _, err = l.conn.Run(ctx, "ban", banScript.Cmd(ctx, keys, d.Microseconds(), l.keys.flag)); err != nil {
			break
		}
	}
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
