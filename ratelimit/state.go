package ratelimit

import "time"

// snap is what a policy held before a call, in the three numbers the scripts
// return. Times are microseconds since the Unix epoch, except that a token
// bucket's x is in ticks.
//
//	fixed window    x start of the window, y units used
//	token bucket    x time from which it drains, in ticks, y level in token·ticks
//	sliding window  x start of the window, y units of the window before, z units of this one
//	sliding log     x units used, y time of the oldest live entry, z of the newest
//	concurrency     x units held, y end of the lease that ends first, z of the last
type snap struct{ x, y, z int64 }

// left returns how many units the policy admits after total units were taken on
// top of s. It is negative if a limit was lowered below what is used.
func (c *compiled) left(s snap, total, now int64) int64 {
	switch c.algo {
	case fixedWindow:
		return c.limit - s.y - total
	case tokenBucket:
		return floorDiv(c.burst*c.wt-s.y, c.wt) - total
	case slidingWindow:
		e := max(0, now-s.x) / c.tickUS
		return floorDiv((c.limit-s.z)*c.wt-s.y*(c.wt-e), c.wt) - total
	default:
		return c.limit - s.x - total
	}
}

// listed reports whether the script tells when the policy admits, since s does
// not.
func (c *compiled) listed() bool { return c.algo == slidingLog || c.algo == concurrency }

// when returns the time at which need units fit that don't now, for policies
// that are not listed. need is at most c.cap.
func (c *compiled) when(s snap, total, need int64) int64 {
	switch c.algo {
	case tokenBucket:
		over := s.y + (total+need-c.burst)*c.wt
		return (s.x + ceilDiv(over, c.limit)) * c.tickUS
	case slidingWindow:
		cur := s.z + total
		if spare := c.limit - cur - need; spare >= 0 {
			return s.x + (c.wt-spare*c.wt/s.y)*c.tickUS
		}
		e := max(0, c.wt-(c.limit-need)*c.wt/cur)
		return s.x + (c.wt+e)*c.tickUS
	default:
		return s.x + c.win
	}
}

// next returns the time at which more units fit than now, 0 if none are used.
func (c *compiled) next(s snap, total, left, now int64) int64 {
	switch c.algo {
	case slidingLog:
		switch {
		case s.x > 0:
			return s.y + c.win
		case total > 0:
			return max(s.z, now) + c.win
		}
		return 0
	case concurrency:
		switch {
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
	return c.when(s, total, max(left, 0)+1)
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
			return (s.x + ceilDiv(l, c.limit)) * c.tickUS
		}
	case slidingWindow:
		switch {
		case s.z+total > 0:
			return s.x + 2*c.win
		case s.y > 0:
			return s.x + c.win
		}
	case slidingLog:
		switch {
		case total > 0:
			return max(s.z, now) + c.win
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
// script's answer for listed policies that denied.
func (c *compiled) result(s snap, total, need, now, when int64, admitted bool) PolicyResult {
	left := c.left(s, total, now)
	r := PolicyResult{
		Name: c.name, Allowed: admitted, Shadow: c.shadow,
		Limit: c.cap, Remaining: max(left, 0), Window: c.Window(),
		NextAfter:  after(c.next(s, total, left, now), now),
		ResetAfter: after(c.reset(s, total, now), now),
	}
	switch {
	case admitted:
	case need > c.cap:
		r.RetryAfter = Never
	case c.listed():
		r.RetryAfter = after(when, now)
	default:
		r.RetryAfter = after(c.when(s, total, need), now)
	}
	return r
}

// after returns the wait from now until at, both microseconds.
func after(at, now int64) time.Duration {
	if at <= now {
		return 0
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
