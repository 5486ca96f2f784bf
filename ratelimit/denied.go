package ratelimit

// Denied reports whether AllowN with the same arguments would deny without asking
// Redis, since an earlier denial still holds. It tells no hook and takes nothing; it
// is for those who would prepare for a call that is let through.
func (l *Limiter) Denied(key string, cost int64) bool {
	if l.denied == nil || cost <= 0 {
		return false
	}
	_, ok := l.proven(l.denied.bucket(hashOf(key)), key, min(cost, l.set.most+1))
	return ok
}
