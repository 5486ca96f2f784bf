package main

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/ratelimit"
)

const (
	length = 6 * time.Minute
	tick   = 125 * time.Millisecond // divides all times of the traffic
)

// phase is evenly spaced traffic from one time to another.
type phase struct {
	name     string
	from, to time.Duration
	every    time.Duration // 0: no calls
	hold     time.Duration // how long an admitted call holds its unit; Concurrency only
}

// Phases that are spoken of elsewhere.
const (
	overload = "overload: 120 a minute"
	slow     = "slow work: 50 s each"
	quick    = "quick work"
	die      = "callers die"
	after    = "quick work again"
)

// calls is the traffic for all algorithms that limit a rate. The burst lies across
// the end of the fixed window's third minute.
var calls = []phase{
	{"steady: 24 a minute", 0, 110 * time.Second, 2500 * time.Millisecond, 0},
	{"burst", 110 * time.Second, 130 * time.Second, 125 * time.Millisecond, 0},
	{"pause", 130 * time.Second, 210 * time.Second, 0, 0},
	{overload, 210 * time.Second, 330 * time.Second, 500 * time.Millisecond, 0},
}

// work is the traffic for Concurrency.
var work = []phase{
	{"quick work: 12.5 s each", 0, 90 * time.Second, 2500 * time.Millisecond, 12500 * time.Millisecond},
	{slow, 90 * time.Second, 180 * time.Second, 2500 * time.Millisecond, 50 * time.Second},
	{quick, 180 * time.Second, 240 * time.Second, 2500 * time.Millisecond, 12500 * time.Millisecond},
	{die, 240 * time.Second, 260 * time.Second, 2500 * time.Millisecond, length},
	{after, 260 * time.Second, 340 * time.Second, 2500 * time.Millisecond, 12500 * time.Millisecond},
}

// run is what happened. Times count from its beginning.
type run struct {
	policy ratelimit.Policy
	calls  []call
	states []state
}

type call struct {
	at, hold time.Duration
	phase    string
	admitted bool
}

// state is what the limiter told at a time, by a call or a peek.
type state struct {
	at    time.Duration
	used  int64
	reset time.Duration // until nothing is used
}

// play lets the traffic happen, as fast as miniredis answers: its clock is driven.
func play(p ratelimit.Policy, traffic []phase) (run, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return run{}, err
	}
	defer m.Close()
	m.ClockTTL(true) // TTLs follow the driven clock
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	defer rdb.Close()
	limiter, err := ratelimit.New(rdb, ratelimit.Config{
		Timeout:       time.Minute, // of the real clock, on which nothing may depend
		NoDenialCache: true,        // it goes by the real clock, too
	}, p)
	if err != nil {
		return run{}, err
	}
	ctx := context.Background()
	const key = "203.0.113.7"
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := run{policy: p}
	held := map[time.Duration][]*ratelimit.Reservation{} // by when they end
	for at := time.Duration(0); at <= length; at += tick {
		m.SetTime(start.Add(at))
		note := func(res ratelimit.Result, err error) error {
			if err == nil && res.Source != ratelimit.SourceRedis {
				err = fmt.Errorf("decided by %v: %w", res.Source, res.Err)
			}
			r.states = append(r.states, state{at, res.Limit - res.Remaining, res.ResetAfter})
			return err
		}
		for _, unit := range held[at] {
			if err := unit.Cancel(ctx); err != nil {
				return r, err
			}
		}
		for _, ph := range traffic {
			if at < ph.from || at >= ph.to || ph.every == 0 || (at-ph.from)%ph.every != 0 {
				continue
			}
			c := call{at: at, hold: ph.hold, phase: ph.name}
			if ph.hold == 0 {
				res, err := limiter.Allow(ctx, key)
				if err := note(res, err); err != nil {
					return r, err
				}
				c.admitted = res.Allowed
			} else {
				unit, err := limiter.Reserve(ctx, key, 1)
				if err := note(unit.Result, err); err != nil {
					return r, err
				}
				if c.admitted = unit.Allowed; c.admitted {
					held[at+ph.hold] = append(held[at+ph.hold], unit)
				}
			}
			r.calls = append(r.calls, c)
		}
		if at%time.Second == 0 {
			if err := note(limiter.Peek(ctx, key)); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// lastMinute returns how many calls were admitted in the minute that ends at the
// time at, which itself is counted.
func (r run) lastMinute(at time.Duration) (n int64) {
	for _, c := range r.calls {
		if c.admitted && c.at <= at && c.at > at-span {
			n++
		}
	}
	return n
}

// most returns the most calls that were admitted within any minute. One that has
// the most can be moved to end with a call.
func (r run) most() (most int64) {
	for _, c := range r.calls {
		most = max(most, r.lastMinute(c.at))
	}
	return most
}

// wouldHold returns how many units were held at the time at if each call were
// admitted.
func (r run) wouldHold(at time.Duration) (n int64) {
	for _, c := range r.calls {
		if c.at <= at && at < c.at+min(c.hold, span) {
			n++
		}
	}
	return n
}

// peak returns the most that the limiter said was used.
func (r run) peak() (peak int64) {
	for _, s := range r.states {
		peak = max(peak, s.used)
	}
	return peak
}

func (r run) count(phase string, admitted bool) (n int) {
	for _, c := range r.calls {
		if c.phase == phase && c.admitted == admitted {
			n++
		}
	}
	return n
}

func (r run) admitted(phase string) int { return r.count(phase, true) }
func (r run) denied(phase string) int   { return r.count(phase, false) }

// admittedFirst returns how many calls of a phase were admitted before the first
// denial.
func (r run) admittedFirst(phase string) (n int) {
	for _, c := range r.calls {
		if c.phase == phase {
			if !c.admitted {
				break
			}
			n++
		}
	}
	return n
}

// first returns when the first call of a phase came.
func (r run) first(phase string) time.Duration {
	for _, c := range r.calls {
		if c.phase == phase {
			return c.at
		}
	}
	return 0
}

// share says how many of all calls were admitted.
func (r run) share() string {
	n := 0
	for _, c := range r.calls {
		if c.admitted {
			n++
		}
	}
	return fmt.Sprintf("%d of %d calls", n, len(r.calls))
}
