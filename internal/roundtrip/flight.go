package roundtrip

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// lane carries the calls for one server, or for one part of a cluster's slots. Its
// flights leave when Departures says so. Measured on two cores, calls that share flights
// took 74 % of the time of go-redis' autopipeliner at 64 callers and 72 % at 256, and
// they rest on Pipeline, which is a stable API.
type lane struct {
	eng   *engine
	brk   *breaker
	clock *clock

	waits bool // flights wait for replicas, see replicate.go

	mu         sync.Mutex
	waiting    []*flight // gather calls; the first leaves next
	departures Departures
	pilots     Pilots[*flight]
	timers     timers
	last       int // calls of the last flight, as many as the next may have

	callers atomic.Int64 // with a seat in a flight
	overdue atomic.Int64 // goroutines whose callers have all stopped waiting
}

// maxOverdue bounds the goroutines that wait for a server whose sockets do not obey
// deadlines.
const maxOverdue = 32

type flight struct {
	calls   []passenger
	n       int           // commands
	absent  int64         // calls that nobody waits for yet
	timeout time.Duration // the longest of the calls'
	until   time.Time     // by when the calls that rely on the flight need their outcome; zero: none does
	sent    time.Time     // when it took off
	state   flightState
	landed  chan struct{} // closed when every command has its outcome
}

type passenger struct {
	cmds   []redis.Cmder
	left   bool // stopped waiting before take-off
	absent bool // nobody waits yet, see Start
}

type flightState uint8

const (
	boarding flightState = iota
	inTheAir
	givenUp // overdue: no longer counted in flying
	over    // landed, and all is settled
)

// join sends cmds with the lane's next flight.
func (c *Conn) join(ctx context.Context, op string, l *lane, cmds []redis.Cmder, by time.Time) error {
	if l.overdue.Load() >= maxOverdue {
		return &Error{Package: c.cfg.Name, Op: op, Kind: ErrUnavailable, Err: errCrowded}
	}
	b := c.board(l, passenger{cmds: cmds}, by)
	if b.relies {
		by = time.Time{}
	} else if end := time.Now().Add(c.cfg.Timeout); by.IsZero() || end.Before(by) {
		by = end
	}
	err := c.land(ctx, op, &b, by)
	l.callers.Add(-1)
	return err
}

// seat is a call's place in a flight.
type seat struct {
	lane   *lane
	flight *flight
	at     int
	relies bool // on the flight to end in time
}

// board gives a call a seat in the lane's next flight, which leaves by itself.
func (c *Conn) board(l *lane, p passenger, by time.Time) seat {
	l.mu.Lock()
	seats := Seats(l.callers.Add(1)) // with the lock, as an older number would open flights for few
	var f *flight
	if i := slices.IndexFunc(l.waiting, func(f *flight) bool { return len(f.calls) < seats }); i >= 0 {
		f = l.waiting[i]
	} else {
		f = &flight{landed: make(chan struct{}), calls: make([]passenger, 0, l.last+4)}
		l.waiting = append(l.waiting, f)
	}
	b := seat{l, f, len(f.calls), !l.waits && by.IsZero() && c.relies()}
	f.calls = append(f.calls, p)
	f.n += len(p.cmds)
	if p.absent {
		f.absent++
	}
	f.timeout = max(f.timeout, c.cfg.Timeout)
	if b.relies && f.until.IsZero() {
		f.until = time.Now().Add(c.cfg.Timeout)
	}
	next := l.departures.Boarded(len(l.waiting[0].calls), seats)
	var leaves *flight
	if next == TakeOff {
		leaves = l.takeOff()
	}
	sent := l.departures.flying > 0
	l.mu.Unlock()
	if next != Stay {
		l.pilots.Call(leaves)
	} else if sent {
		l.eng.yieldSeat(b.at)
	}
	return b
}

// land waits until a flight has landed, ctx ends or it is by; zero means no such time.
func (c *Conn) land(ctx context.Context, op string, b *seat, by time.Time) error {
	if by.IsZero() {
		if await(ctx, b.flight.landed, nil) {
			return nil
		}
	} else {
		last := by.Add(maxQueued * c.cfg.Timeout)
		timer := b.lane.timers.get()
		defer b.lane.timers.put(timer)
		for {
			timer.Reset(time.Until(by))
			if await(ctx, b.flight.landed, timer.C) {
				return nil
			}
			if ctx.Err() != nil {
				break
			}
			later, ours := b.lane.held(b.flight, c.cfg.Timeout, last)
			if later.IsZero() {
				if ours && !b.lane.leave(b.flight, b.at, false) {
					return &Error{Package: c.cfg.Name, Op: op, Kind: ErrOverloaded, Err: errQueued}
				}
				break
			}
			by = later
		}
	}
	tookOff := b.lane.leave(b.flight, b.at, ctx.Err() == nil)
	return c.late(ctx, op, tookOff)
}

// maxQueued times its timeout may a call wait in this process, while Redis answers.
const maxQueued = 8

// held returns how much longer a call waits for a flight that has not landed in time,
// since the time was spent in this process and not by Redis; zero: no longer. ours is true
// if that is since it waited for so long.
func (l *lane) held(f *flight, timeout time.Duration, last time.Time) (by time.Time, ours bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.brk.calm() || f.state == givenUp {
		return by, false
	}
	now := time.Now()
	switch {
	case f.state == boarding && l.departures.flying < maxFlying: // nobody got to sending it
		if now.After(last) {
			return by, true
		}
		return now.Add(timeout), false
	case f.state == inTheAir && now.Before(f.sent.Add(timeout)):
		return f.sent.Add(timeout), false
	case f.state == over: // it has landed this moment
		return now.Add(timeout), false
	}
	return by, false
}

// relies reports whether a call may leave it to its flight to end in time. A flight
// does so if the sockets obey deadlines: it ends by that of its first call, and the
// one that waits behind it was first boarded later. So a caller needs no timer of its
// own, which took 7 % of a limiter's time at 64 callers. A Conn with a shorter timeout than
// others that share its flights keeps its own.
func (c *Conn) relies() bool {
	return c.eng.bounded && int64(c.cfg.Timeout) >= c.eng.longest.Load()
}

// await waits for landed, and reports false if ctx or the timer ended first.
func await(ctx context.Context, landed <-chan struct{}, timer <-chan time.Time) bool {
	done := ctx.Done()
	if done == nil && timer == nil {
		<-landed
		return true
	}
	select {
	case <-landed:
		return true
	case <-done:
	case <-timer:
	}
	return false
}

// timers keeps stopped timers, those of one client: one that was made in a bubble of
// testing/synctest ends the process if it is used outside. Since Go 1.23 a stopped or reset
// timer's channel never holds an old tick.
type timers struct{ pool sync.Pool }

func (t *timers) get() *time.Timer {
	if timer, ok := t.pool.Get().(*time.Timer); ok {
		return timer
	}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return timer
}

func (t *timers) put(timer *time.Timer) {
	timer.Stop()
	t.pool.Put(timer)
}

// leave takes a passenger out of a flight that has not taken off, and gives up on
// one that is overdue, so that later calls don't queue behind it.
func (l *lane) leave(f *flight, seat int, overdue bool) (tookOff bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch f.state {
	case boarding:
		f.calls[seat].left = true
		return false
	case inTheAir:
		if overdue && !l.eng.bounded {
			f.state = givenUp
			l.overdue.Add(1)
			l.failed()
			if next, leaves := l.landed(f, time.Hour); next != Stay {
				l.pilots.Call(leaves)
			}
		}
	}
	return true
}

// aboard is for Departures.
func (l *lane) aboard() (calls, seats int) {
	if len(l.waiting) > 0 {
		calls = len(l.waiting[0].calls)
	}
	return calls, Seats(l.callers.Load())
}

// takeOff takes the next flight out of those that wait.
func (l *lane) takeOff() *flight {
	f := l.waiting[0]
	l.waiting = slices.Delete(l.waiting, 0, 1)
	f.state = inTheAir
	f.sent = time.Now()
	l.last = len(f.calls)
	return f
}

// landed is called when a flight has landed or is given up, and returns what leaves now.
func (l *lane) landed(f *flight, took time.Duration) (Next, *flight) {
	calls, seats := l.aboard()
	next := l.departures.Landed(len(f.calls), took, calls, seats)
	if next == TakeOff {
		return next, l.takeOff()
	}
	return next, nil
}

// late sends a flight that has waited too long for more calls.
func (l *lane) late() {
	l.mu.Lock()
	calls, _ := l.aboard()
	var f *flight
	if l.departures.StayedLate(calls) == TakeOff {
		f = l.takeOff()
	}
	l.mu.Unlock()
	if f != nil {
		l.fly(f)
	}
}

// fly sends f, or what gathers if it is nil, and what is to leave after that.
func (l *lane) fly(f *flight) {
	for called := true; called; f, called = l.pilots.Rest() {
		if f == nil {
			f = l.gather()
		}
		for f != nil {
			start := time.Now()
			l.send(f)
			f = l.over(f, time.Since(start))
		}
	}
}

// gather returns the flight that leaves when calls have gathered, or nil.
func (l *lane) gather() (f *flight) {
	if l.departures.Gather(&l.mu, l.aboard) == TakeOff {
		f = l.takeOff()
	}
	l.mu.Unlock()
	return f
}

// over settles a flight that took so long, and returns the one that its pilot sends next,
// if there is one.
func (l *lane) over(f *flight, took time.Duration) *flight {
	l.mu.Lock()
	overdue := f.state == givenUp
	f.state = over           // a passenger may be late, and must not give up on it any more
	l.callers.Add(-f.absent) // who knows when they come
	if overdue {             // something else has taken its place
		l.mu.Unlock()
		l.overdue.Add(-1)
		return nil
	}
	next, leaves := l.landed(f, took)
	l.mu.Unlock()
	if next == Gather {
		return l.gather()
	}
	return leaves
}

// send carries a flight's commands to the server and tells their callers.
func (l *lane) send(f *flight) {
	// A seat that was left is never written again after take-off.
	var together merger
	cmds := make([]redis.Cmder, 0, f.n)
	if l.eng.cluster == nil && !l.waits && !l.eng.slotted.Load() {
		cmds = together.merge(f.calls, cmds)
	} else {
		for i := range f.calls {
			if !f.calls[i].left {
				cmds = append(cmds, f.calls[i].cmds...)
			}
		}
	}
	until, err := l.deadline(f.until, f.timeout)
	if err != nil {
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
		together.settle()
		close(f.landed)
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	if l.waits {
		l.eng.execReplicated(ctx, l, cmds, f.timeout)
	} else {
		for part := range slices.Chunk(cmds, maxFlight) {
			l.eng.exec(ctx, l, part, context.Background())
		}
		if again := together.apart(); again != nil {
			for part := range slices.Chunk(again, maxFlight) {
				l.eng.exec(ctx, l, part, context.Background())
			}
		}
	}
	cancel()
	together.settle()
	close(f.landed)
}

// deadline returns by when what is sent now must be answered, if those who rely on it
// began so long ago that they need it by until; zero: nobody does. While Redis answers it
// has all of timeout: what passed before was this process' own time. The error is non-nil
// if nothing is to be sent.
func (l *lane) deadline(until time.Time, timeout time.Duration) (time.Time, error) {
	now := time.Now()
	switch {
	case until.IsZero():
	case !l.brk.calm():
		if now.After(until) {
			return until, unsent{context.DeadlineExceeded}
		}
		return until, nil
	case now.After(until.Add((maxQueued - 1) * timeout)):
		return until, errQueued
	}
	return now.Add(timeout), nil
}
