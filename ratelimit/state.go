package ratelimit

import "time"

// snap is what a policy held before a call, in the three numbers the scripts
// return. Times are microseconds since the Unix epoch, except that a token
// bucket's x is in ticks.
//
//	fixed window    x start of the window, y units used
//	token bucket    x time from which it drains, in ticks, y level in token·ticks,
//	                z units that had entered, see tokenbucket.lua
//	sliding window  x start of the window, y units of the window before, z units of this one
//	sliding log     x units used, y time of the oldest live entry, z of the newest
//	concurrency     x units held, y end of the lease that ends first, z of the last
//
// w is the window of a sliding window's counters, if it is not the policy's: it
// counts on until units are taken.
type snap struct{ x, y, z, w int64 }

// counters is a sliding window in ticks of k microseconds, wt to the window.
type counters struct{ x, y, z, w, wt, k int64 }

// counters returns the state of a sliding window after total units were taken at
// now.
func (c *compiled) counters(s snap, total, now int64) counters {
	n := counters{x: s.x, y: s.y, z: s.z, w: c.win, k: c.tickUS}
	if s.w != 0 {
		if total == 0 {
			n.w = s.w
		} else {
			from := max(now, s.x)
			n = counters{x: from - floorMod(from, c.win), z: c.limit - c.left(s, 0, now), w: c.win, k: c.tickUS}
		}
	}
	n.z += total
	n.coarsen(max(c.limit, n.y, n.z-total))
	return n
}

// coarsen raises the tick until units·window is exact, which it is by itself
// unless large limits were lowered.
func (n *counters) coarsen(units int64) {
	for units*(n.w/n.k) > maxExact/2+1 {
		n.k *= 10
	}
	n.wt = n.w / n.k
}

// logTime returns the time at which a sliding log enters units taken at now: no
// two entries have the same.
func (s snap) logTime(now int64) int64 { return max(now, s.z+1) }

// left returns how many units the policy admits after total units were taken on
// top of s. It is negative if a limit was lowered below what is used.
func (c *compiled) left(s snap, total, now int64) int64 {
	switch c.algo {
	case fixedWindow:
		return c.limit - s.y - total
	case tokenBucket:
		return floorDiv(c.burst*c.wt-s.y, c.wt) - total
	case slidingWindow:
		n := c.counters(s, 0, now)
		e := min(max(0, now-n.x)/n.k, n.wt)
		return floorDiv((c.limit-n.z)*n.wt-n.y*(n.wt-e), n.wt) - total
	default:
		return c.limit - s.x - total
	}
}

// listed reports whether the script tells when the policy admits, since s does
// not.
func (c *compiled) listed() bool { return c.algo == slidingLog || c.algo == concurrency }

// when returns the time at which need units fit that don't now, for policies
// that are not listed. need is at most c.cap.
func (c *compiled) when(s snap, total, need, now int64) int64 {
	switch c.algo {
	case tokenBucket:
		over := s.y + (total+need-c.burst)*c.wt
		return (s.x + ceilDiv(over, c.rate)) * c.tickUS
	case slidingWindow:
		n := c.counters(s, total, now)
		if spare := c.limit - n.z - need; spare >= 0 {
			return n.x + (n.wt-spare*n.wt/n.y)*n.k
		}
		n.k = c.tickUS
		n.coarsen(max(c.limit, n.z)) // what is in the next window
		e := max(0, n.wt-(c.limit-need)*n.wt/n.z)
		return n.x + n.w + e*n.k
	default:
		return s.x + c.win
	}
}

// next returns the time at which more units fit than now, 0 if none are used. over
// is the script's answer for listed policies that hold more than their limit.
func (c *compiled) next(s snap, total, left, now, over int64) int64 {
	if left < 0 && c.listed() {
		return over
	}
	switch c.algo {
	case slidingLog:
		switch {
		case s.x > 0:
			return s.y + c.win
		case total > 0:
			return s.logTime(now) + c.win
		}
		return 0
	case concurrency:
		switch {
		case s.x > 0 && total > 0:
			return min(s.y, now+c.win)
		case s.x > 0:
			return s.y
		case total > 0:
			return now + c.win
		}
		return 0
	}
	if left >= c.cap {
		return 0
	}
	return c.when(s, total, max(left, 0)+1, now)
}

// reset returns the time at which nothing is used, 0 if nothing is.
func (c *compiled) reset(s snap, total, now int64) int64 {
	switch c.algo {
	case fixedWindow:
		if s.y+total > 0 {
			return s.x + c.win
		}
	case tokenBucket:
		if l := s.y + total*c.wt; l > 0 {
			return (s.x + ceilDiv(l, c.rate)) * c.tickUS
		}
	case slidingWindow:
		switch n := c.counters(s, total, now); {
		case n.z > 0:
			return n.x + 2*n.w
		case n.y > 0:
			return n.x + n.w
		}
	case slidingLog:
		switch {
		case total > 0:
			return s.logTime(now) + c.win
		case s.x > 0:
			return s.z + c.win
		}
	case concurrency:
		switch {
		case total > 0:
			return max(s.z, now+c.win)
		case s.x > 0:
			return s.z
		}
	}
	return 0
}

// result describes the policy to a call that needed need units, after total
// units were taken. admitted is what this policy by itself said; when is the
// script's answer for listed policies that denied, over that for those that hold
// more than their limit.
func (c *compiled) result(s snap, total, need, now, when, over int64, admitted bool) PolicyResult {
	left := c.left(s, total, now)
	r := PolicyResult{
		Name: c.name, Allowed: admitted, Shadow: c.shadow,
		Limit: c.cap, Remaining: max(left, 0), Window: c.Window(),
		NextAfter:  after(c.next(s, total, left, now, over), now),
		ResetAfter: after(c.reset(s, total, now), now),
	}
	switch {
	case admitted:
	case need > c.cap:
		r.RetryAfter = Never
	case c.listed():
		r.RetryAfter = after(when, now)
	default:
		r.RetryAfter = after(c.when(s, total, need, now), now)
	}
	return r
}

// longest is the longest wait that is told, since Never is none.
const longest = (Never - 1) / time.Microsecond * time.Microsecond

// after returns the wait from now until at, both microseconds.
func after(at, now int64) time.Duration {
	if at <= now {
		return 0
	}
	if at-now > int64(longest/time.Microsecond) {
		return longest
	}
	return time.Duration(at-now) * time.Microsecond
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func ceilDiv(a, b int64) int64 { return -floorDiv(-a, b) }
