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

var (
	//go:embed ban.lua
	banSource string
	//go:embed reset.lua
	resetSource string

	banScript   = roundtrip.NewScript(banSource)
	resetScript = roundtrip.NewScript(resetSource)
)

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
	err := l.ban(ctx, key, d)
	if err != nil && crossesSlots(err) { // the client did not know, now it does
		err = l.ban(ctx, key, d)
	}
	l.forget(key)
	return err
}

// ban sets the ban and raises the flag.
func (l *Limiter) ban(ctx context.Context, key string, d time.Duration) error {
	runs := [][]string{{l.keys.base(key), l.keys.flag}}
	if l.conn.IsCluster() { // one slot after the other, so that no ban is there without the flag
		runs = [][]string{{l.keys.flag}, {l.keys.base(key)}}
	}
	for _, keys := range runs {
		if _, err := l.conn.Run(ctx, "ban", banScript.Cmd(ctx, keys, d.Microseconds(), l.keys.flag)); err != nil {
			return err
		}
	}
	return nil
}

// Unban lifts a ban. Other processes may deny for up to [Config.MaxStale] more. The
// error is non-nil if Redis could not be asked.
func (l *Limiter) Unban(ctx context.Context, key string) error {
	ctx = context.WithoutCancel(ctx)
	err := l.conn.Do(ctx, "unban", redis.NewIntCmd(ctx, "unlink", l.keys.base(key)))
	l.forget(key)
	return err
}

// Reset forgets all that was taken for key under the limiter's policies, leases
// included: what was reserved before gives nothing back. It does not lift a ban. Other processes may deny for up to
// [Config.MaxStale] more. The error is non-nil if Redis could not be asked.
func (l *Limiter) Reset(ctx context.Context, key string) error {
	ctx = context.WithoutCancel(ctx)
	keys := refundKeys(l.keys.base(key), l.set)
	np, life := len(l.set.policies), l.set.resetFor().Milliseconds()
	_, err := l.conn.Run(ctx, "reset", resetScript.Cmd(ctx, keys, np, life))
	if redis.IsTryAgainError(err) { // the slot moves, see apart.go
		now, e := l.conn.Run(ctx, "reset", bannedScript.Cmd(ctx, []string{l.keys.base(key)}))
		if err = e; err == nil {
			at, _ := now.Int64Slice()
			for _, k := range keys[np : 2*np] {
				err = cmp.Or(err, l.conn.Do(ctx, "reset", redis.NewStatusCmd(ctx, "set", k, at[0], "px", life)))
			}
		}
		for i, k := range keys {
			if i < np || i >= 2*np {
				err = cmp.Or(err, l.conn.Do(ctx, "reset", redis.NewIntCmd(ctx, "unlink", k)))
			}
		}
	}
	l.local.clear(key)
	l.forget(key)
	return err
}

// resetSuffix ends the name of the key that says when a policy was last reset.
const resetSuffix = ":reset"

// resetFor is how long reservations of the set may hold what still counts.
func (set *policySet) resetFor() time.Duration {
	long := time.Hour // for those made under other policies with the same states
	for i := range set.policies {
		if w := set.policies[i].Window(); w <= maxWindow {
			long = max(long, 2*w)
		} else {
			long = max(long, w)
		}
	}
	return min(long, longest-time.Minute) + time.Second
}
