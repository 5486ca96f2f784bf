package ratelimit

import "time"

// LookEvery sets for how long the limiter believes that a subject is not banned while the
// flag is not there, and how long it looks at all bans once it was.
func (l *Limiter) LookEvery(d time.Duration) { l.lookEvery = d }

// ForgetFlag lets the limiter forget that there was a ban.
func (l *Limiter) ForgetFlag() { l.bansUntil.Store(0) }

// ApartFor sets for how long a slot that was found moving is taken to be.
func (l *Limiter) ApartFor(d time.Duration) { l.apartFor = d }

// Waiting is how many calls of Wait for key stand in line.
func (l *Limiter) Waiting(key string) (n int) {
	l.waits.mu.Lock()
	defer l.waits.mu.Unlock()
	for _, q := range l.waits.byKey[key] {
		n += q.waiting.Len()
	}
	return n
}

// Queues is how many queues of such calls there are.
func (l *Limiter) Queues() int64 { return l.waits.n.Load() }
