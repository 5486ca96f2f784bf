// Package ratelimit decides whether a call may proceed, by limits whose state is
// in Redis: exact, atomic over several policies, and charged at most once.
package ratelimit
