package ratelimit

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Group commit: calls that come while Redis is busy with earlier ones gather in
// the next flight, which leaves when roundtrip.Departures says so. Calls on the same key
// run the script once, with their costs in order of arrival; see decide.go for what a
// flight sends.

// lane carries the calls of one server, or of one slot of a cluster, where
// flights of different slots are joined by the Conn for each master.
type lane struct {
	mu         sync.Mutex
	waiting    []*flight // the first leaves next
	departures roundtrip.Departures
	pilots     roundtrip.Pilots[*flight]
	room       int          // for the calls of the next flight: what the largest of late took
	callers    atomic.Int64 // in flights, waiting or in the air

	apartUntil atomic.Int64 // nanoseconds after base, see apart.go; 0: not
}

func (c *core) newLane() *lane {
	ln := new(lane)
	ln.departures.Late = func() { c.late(ln) }
	ln.pilots = roundtrip.NewPilots(func(f *flight) { c.pilot(ln, f) })
	return ln
}

// lanes finds the lane of a key.
type lanes struct {
	one    *lane
	bySlot *[16384]atomic.Pointer[lane] // of a cluster
}

func (c *core) newLanes() {
	if c.conn.IsCluster() && !c.cfg.RoutingProxy {
		c.lanes.bySlot = new([16384]atomic.Pointer[lane])
	} else {
		c.lanes.one = c.newLane()
	}
}

func (c *core) lane(base string) *lane {
	if c.lanes.one != nil {
		return c.lanes.one
	}
	p := &c.lanes.bySlot[roundtrip.Slot(base)]
	if ln := p.Load(); ln != nil {
		return ln
	}
	p.CompareAndSwap(nil, c.newLane())
	return p.Load()
}

// call is one caller's part of a flight.
type call struct {
	set   *policySet
	known *knownKey // nil: nothing
	base  string    // of its keys in Redis, see keys
	state string    // the key of the first policy's state, which begins with base
	// cost > 0 is taken whole, < 0 is up to -cost, 0 is a peek.
	cost  int64
	lease string // for sets with leases

	// The outcome, read after landing.
	subject *subject
	left    bool  // the caller left before take-off
	run     int32 // of the subject
	order   int64 // within the run
}

type flight struct {
	calls   []call
	inAir   bool
	until   time.Time // by when its calls need their outcome
	sent    time.Time
	landed  chan struct{} // nil if a caller flies alone
	subject []*subject
}

// fly sends one call and returns its flight and seat, once it has landed. The
// error is non-nil if the caller stopped waiting; took reports whether the call
// may have been sent by then.
func (c *core) fly(ctx context.Context, cl call) (f *flight, seat int, took bool, err error) {
	ln := c.lane(cl.base)
	if ln.apart(cl.set) {
		return nil, 0, false, errApart
	}
	if c.cfg.NoCoalesce {
		f = &flight{calls: []call{cl}}
		c.send(ctx, f)
		return f, 0, true, nil
	}
	defer ln.callers.Add(-1)
	ln.mu.Lock()
	seats := roundtrip.Seats(ln.callers.Add(1)) // with the lock, as an older number would open flights for few
	if len(ln.waiting) == 0 && ln.departures.Alone(seats) {
		// Nobody to share with: the caller flies itself.
		ln.mu.Unlock()
		f = &flight{calls: []call{cl}}
		c.send(ctx, f)
		if next, after := ln.landed(f); next != roundtrip.Stay {
			ln.pilots.Call(after)
		}
		return f, 0, true, nil
	}
	if i := slices.IndexFunc(ln.waiting, func(f *flight) bool { return len(f.calls) < seats }); i >= 0 {
		f = ln.waiting[i]
	} else {
		// Not seats, which are few while the callers of the last flight come back. In fours,
		// so that a small flight now and then does not make the next ones grow.
		f = &flight{landed: make(chan struct{}), calls: make([]call, 0, (ln.room+3)/4*4), until: time.Now().Add(c.cfg.Timeout)}
		ln.waiting = append(ln.waiting, f)
	}
	seat = len(f.calls)
	f.calls = append(f.calls, cl)
	next := ln.departures.Boarded(len(ln.waiting[0].calls), seats)
	var leaves *flight
	if next == roundtrip.TakeOff {
		leaves = ln.takeOff()
	}
	ln.mu.Unlock()
	if next != roundtrip.Stay {
		ln.pilots.Call(leaves)
	}

	// Its first call's time bounds a flight, and the Conn ends it by then. So callers
	// have no timers of their own.
	if !await(ctx, f.landed) {
		return c.leave(ctx, ln, f, seat)
	}
	return f, seat, true, nil
}

// await waits for landed, and reports false if ctx ended first.
func await(ctx context.Context, landed <-chan struct{}) bool {
	done := ctx.Done()
	if done == nil {
		<-landed
		return true
	}
	select {
	case <-landed:
		return true
	case <-done:
		return false
	}
}

// leave gives up the seat of a caller whose context ended.
func (c *core) leave(ctx context.Context, ln *lane, f *flight, seat int) (_ *flight, _ int, took bool, _ error) {
	ln.mu.Lock()
	took = f.inAir
	if !took {
		f.calls[seat].left = true
	}
	ln.mu.Unlock()
	return f, seat, took, ctx.Err()
}

// aboard is for Departures.
func (ln *lane) aboard() (calls, seats int) {
	if len(ln.waiting) > 0 {
		calls = len(ln.waiting[0].calls)
	}
	return calls, roundtrip.Seats(ln.callers.Load())
}

// takeOff takes the next flight out of those that wait.
func (ln *lane) takeOff() *flight {
	f := ln.waiting[0]
	ln.waiting = slices.Delete(ln.waiting, 0, 1)
	f.inAir = true
	ln.room = max(len(f.calls), ln.room*31/32)
	return f
}

// landed is called when a flight has landed, and returns what leaves now.
func (ln *lane) landed(f *flight) (roundtrip.Next, *flight) {
	took := time.Since(f.sent)
	ln.mu.Lock()
	defer ln.mu.Unlock()
	calls, seats := ln.aboard()
	next := ln.departures.Landed(len(f.calls), took, calls, seats)
	if next == roundtrip.TakeOff {
		return next, ln.takeOff()
	}
	return next, nil
}

// late sends a flight that has waited too long for more calls.
func (c *core) late(ln *lane) {
	ln.mu.Lock()
	calls, _ := ln.aboard()
	var f *flight
	if ln.departures.StayedLate(calls) == roundtrip.TakeOff {
		f = ln.takeOff()
	}
	ln.mu.Unlock()
	if f != nil {
		c.pilot(ln, f)
	}
}

// pilot sends f, or what gathers if it is nil, and what is to leave after that.
func (c *core) pilot(ln *lane, f *flight) {
	for called := true; called; f, called = ln.pilots.Rest() {
		if f == nil {
			f = ln.gather()
		}
		for f != nil {
			c.send(context.Background(), f)
			close(f.landed)
			next, leaves := ln.landed(f)
			if f = leaves; next == roundtrip.Gather {
				f = ln.gather()
			}
		}
	}
}

// gather returns the flight that leaves when calls have gathered, or nil.
func (ln *lane) gather() (f *flight) {
	if ln.departures.Gather(&ln.mu, ln.aboard) == roundtrip.TakeOff {
		f = ln.takeOff()
	}
	ln.mu.Unlock()
	return f
}
