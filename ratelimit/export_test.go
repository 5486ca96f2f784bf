package ratelimit

import "time"

// LookEvery sets for how long the limiter believes that a subject is not banned while the
// flag is not there, and how long it looks at all bans once it was.
func (l *Limiter) LookEvery(d time.Duration) { l.lookEvery = d }

// ForgetFlag lets the limiter forget that there was a ban.
func (l *Limiter) ForgetFlag() { l.bansUntil.Store(0) }

// ApartFor sets for how long a slot that was found moving is taken to be.
func (l *Limiter) ApartFor(d time.Duration) { l.apartFor = d }
