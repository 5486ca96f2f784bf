package roundtrip

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// lane carries the calls for one server, or for one part of a cluster's slots.
//
// Flights clock themselves: the first call starts one, calls that come while it
// is in the air gather in the next, which leaves when the first has landed. No
// timer holds a call back. Measured on two cores this took 74 % of the time of
// go-redis' autopipeliner at 64 callers and 72 % at 256, and it rests on
// Pipeline, which is a stable API.
type lane struct {
	eng *engine
	brk *breaker

	waits bool // flights wait for replicas, see replicate.go

	mu      sync.Mutex
	waiting []*flight // gather calls; the first leaves next
	flying  int       // flights in the air, without the overdue ones
	last    int       // calls of the last flight, as many as the next may have

	overdue atomic.Int64 // goroutines whose callers have all stopped waiting
}

const (
	// maxFlying flights may be in the air: one is being answered while the next
	// is being written.
	maxFlying = 2
	// maxOverdue bounds the goroutines that wait for a server whose sockets do
	// not obey deadlines.
	maxOverdue = 32
	// maxFlight is how many commands a pipeline holds; a larger flight is sent
	// as several, so that Redis serves others in between.
	maxFlight = 1024
	// minSeats calls share a flight however few there are.
	minSeats = 8
)

// seats is how many calls a flight takes: half of those that are under way, so that
// the server works on one half while this process works on the other. With all in
// one flight each would wait for the other, which took 9 % longer at 64 callers.
func (e *engine) seats() int {
	return min(max(minSeats, int(e.inflight.Load()+1)/2), maxFlight)
}

type flight struct {
	calls   []passenger
	n       int           // commands
	timeout time.Duration // the longest of the calls'
	until   time.Time     // by when the calls that rely on the flight need their outcome; zero: none does
	state   flightState
	landed  chan struct{} // closed when every command has its outcome
}

type passenger struct {
	cmds []redis.Cmder
	left bool // stopped waiting before take-off
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
	b := c.board(l, cmds, by)
	if b.relies {
		by = time.Time{}
	} else if end := time.Now().Add(c.cfg.Timeout); by.IsZero() || end.Before(by) {
		by = end
	}
	return c.land(ctx, op, &b, by)
}

// seat is a call's place in a flight.
type seat struct {
	lane   *lane
	flight *flight
	at     int
	relies bool // on the flight to end in time
}

// board gives cmds a seat in the lane's next flight, which leaves by itself.
func (c *Conn) board(l *lane, cmds []redis.Cmder, by time.Time) seat {
	l.mu.Lock()
	var f *flight
	seats := l.eng.seats()
	if i := slices.IndexFunc(l.waiting, func(f *flight) bool { return len(f.calls) < seats }); i >= 0 {
		f = l.waiting[i]
	} else {
		f = &flight{landed: make(chan struct{}), calls: make([]passenger, 0, l.last+4)}
		l.waiting = append(l.waiting, f)
	}
	b := seat{l, f, len(f.calls), !l.waits && by.IsZero() && c.relies()}
	f.calls = append(f.calls, passenger{cmds: cmds})
	f.n += len(cmds)
	f.timeout = max(f.timeout, c.cfg.Timeout)
	if b.relies && f.until.IsZero() {
		f.until = time.Now().Add(c.cfg.Timeout)
	}
	start := l.flying < maxFlying
	if start {
		l.flying++
	}
	l.mu.Unlock()
	if start {
		go l.fly()
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
		timer := timers.Get().(*time.Timer)
		timer.Reset(time.Until(by))
		landed := await(ctx, b.flight.landed, timer.C)
		timer.Stop()
		timers.Put(timer)
		if landed {
			return nil
		}
	}
	tookOff := b.lane.leave(b.flight, b.at, ctx.Err() == nil)
	return c.late(ctx, op, tookOff)
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

// timers keeps stopped timers. Since Go 1.23 a stopped or reset timer's channel
// never holds an old tick.
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

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
			l.flying--
			l.overdue.Add(1)
			l.brk.report(true)
			l.eng.nudge()
			if len(l.waiting) > 0 {
				l.flying++
				go l.fly()
			}
		}
	}
	return true
}

// fly sends flights until nobody waits.
func (l *lane) fly() {
	for {
		l.gather()
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.flying--
			l.mu.Unlock()
			return
		}
		f := l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
		f.state = inTheAir
		l.last = len(f.calls)
		l.mu.Unlock()

		// A seat that was left is never written again after take-off.
		var together merger
		cmds := make([]redis.Cmder, 0, f.n)
		if l.eng.cluster == nil && !l.waits {
			cmds = together.merge(f.calls, cmds)
		} else {
			for i := range f.calls {
				if !f.calls[i].left {
					cmds = append(cmds, f.calls[i].cmds...)
				}
			}
		}
		until := f.until
		if until.IsZero() {
			until = time.Now().Add(f.timeout)
		}
		ctx, cancel := context.WithDeadline(context.Background(), until)
		if l.waits {
			l.eng.execReplicated(ctx, l, cmds, f.timeout)
		} else {
			for part := range slices.Chunk(cmds, maxFlight) {
				l.eng.exec(ctx, l, part, context.Background())
			}
		}
		cancel()
		together.settle()
		close(f.landed)

		l.mu.Lock()
		overdue := f.state == givenUp
		f.state = over // a passenger may be late, and must not give up on it any more
		l.mu.Unlock()
		if overdue { // another goroutine has taken this one's place
			l.overdue.Add(-1)
			return
		}
	}
}

// gather lets the callers that the last flight woke come back with their next
// call before the next flight leaves. Without it a flight of 64 is followed by
// one of two or three. It yields while calls keep coming and never sleeps.
func (l *lane) gather() {
	seen := -1
	for range 5 {
		l.mu.Lock()
		n := 0
		if len(l.waiting) > 0 {
			n = len(l.waiting[0].calls)
		}
		l.mu.Unlock()
		if n == seen || n >= l.eng.seats() {
			return
		}
		seen = n
		runtime.Gosched()
	}
}
