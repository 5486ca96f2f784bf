package roundtrip

import (
	"runtime"
	"sync"
	"time"
)

// Departures decides when the flights of a lane leave. Its methods are called with the
// lane's lock held.
//
// Flights clock themselves. The first call starts one, calls that come while it is in
// the air gather in the next. Two flights may be in the air, so that the server works on
// one half of the calls while this process works on the other; but where calls come in
// crowds the second one has to be that half. Were it to leave with the few that have come
// by then, the rest would wait for both, and process and server for each other: at 64
// callers session loads took 1.1 times as long, reads of a cache 1.2 times. (With two
// thirds of the calls in a flight they took 1.3 to 1.4 times as long, with one third 1.2.)
//
// A second flight that does not fill up leaves when the first has landed, or has been in
// the air for as long as patience, which is more than one takes to a server nearby.
type Departures struct {
	// Late is called when a flight has stayed for longer than it should, by a goroutine of
	// its own and without the lock. It asks StayedLate.
	Late func()

	flying    int       // flights in the air
	tookOff   time.Time // when the last of them did
	crowded   bool      // the last that landed carried many calls for the time it took
	gathering bool      // somebody is in Gather, or about to be
	watched   bool      // the timer is running
	timer     *time.Timer
}

const (
	// maxFlying flights of a lane may be in the air.
	maxFlying = 2
	// maxFlight bounds the calls of a flight and the commands of a pipeline, so that Redis
	// serves others in between.
	maxFlight = 1024
	// patience bounds the time that a flight waits for more calls, and a pilot for a flight.
	patience = time.Millisecond
	// crowd is the time a call has in a flight that is taken for crowded. With fewer calls
	// than that, the time is the network's and goes by whether they share a flight or not.
	crowd = 40 * time.Microsecond
)

// Seats is how many calls a flight takes: half of those that are under way, from 1 to
// maxFlight.
func Seats(callers int64) int { return int(min(max((callers+1)/2, 1), maxFlight)) }

// Next is what is to be done about a lane's next flight.
type Next uint8

const (
	Stay    Next = iota // nothing: it leaves later, or there is none
	TakeOff             // it is in the air, and the caller sends it
	Gather              // the caller has Gather called, by a goroutine that sends it
)

func (d *Departures) takeOff() Next {
	d.flying++
	d.tookOff = time.Now()
	return TakeOff
}

// Alone reports whether a call that has nobody to share a flight with flies by itself.
// It is in the air then.
func (d *Departures) Alone(seats int) bool {
	if d.gathering || d.flying >= maxFlying || d.flying > 0 && seats > 1 && d.crowded {
		return false
	}
	d.takeOff()
	return true
}

// Boarded is for a call that has taken a seat, when calls are in the flight that leaves
// next.
func (d *Departures) Boarded(calls, seats int) Next {
	switch {
	case d.flying >= maxFlying:
		return Stay
	case calls >= seats:
		return d.takeOff()
	case d.gathering:
		return Stay
	case d.flying == 0 || !d.crowded:
		d.gathering = true
		return Gather
	}
	d.watch()
	return Stay
}

// Landed is for a flight that has landed after took, whose woken callers may come again.
// calls are in the flight that leaves next.
func (d *Departures) Landed(woken int, took time.Duration, calls, seats int) Next {
	d.flying--
	d.crowded = took < time.Duration(woken)*crowd
	switch {
	case calls > 0 && calls >= seats:
		return d.takeOff()
	case d.gathering || calls == 0 && woken <= 1:
		return Stay
	case d.flying == 0 || !d.crowded:
		d.gathering = true
		return Gather
	case calls > 0:
		d.watch()
	}
	return Stay
}

// Gather lets the callers that the last flight woke come back with their next call.
// Without it a flight of 64 is followed by one of two or three. It yields while calls
// keep coming and never sleeps. aboard tells how many are in the flight that leaves next,
// and its seats. Gather is called without mu, the lane's lock, and returns with it.
func (d *Departures) Gather(mu *sync.Mutex, aboard func() (calls, seats int)) Next {
	seen := -1
	for try := 0; ; try++ {
		mu.Lock()
		calls, seats := aboard()
		if try < 5 && calls != seen && calls < seats && d.flying < maxFlying {
			mu.Unlock()
			seen = calls
			runtime.Gosched()
			continue
		}
		d.gathering = false
		switch {
		case calls == 0 || d.flying >= maxFlying:
			return Stay
		case calls < seats && d.flying > 0 && d.crowded:
			d.watch()
			return Stay
		}
		return d.takeOff()
	}
}

// StayedLate is for Late, when calls are in the flight that leaves next.
func (d *Departures) StayedLate(calls int) Next {
	d.watched = false
	switch {
	case calls == 0 || d.gathering || d.flying >= maxFlying:
		return Stay
	case d.flying > 0 && time.Since(d.tookOff) < patience:
		d.watch()
		return Stay
	}
	return d.takeOff()
}

func (d *Departures) watch() {
	if d.watched {
		return
	}
	d.watched = true
	if d.timer == nil {
		d.timer = time.AfterFunc(patience, d.Late)
	} else {
		d.timer.Reset(patience)
	}
}

// Pilots are the goroutines that send a lane's flights. One that has nothing to do rests
// for a while, since a new one has to grow its stack first, which took 2 % of the time of
// a session's load and save.
type Pilots[F any] struct {
	fly    func(F)
	calls  chan F
	timers *timers
}

// NewPilots returns pilots that fly.
func NewPilots[F any](fly func(F)) Pilots[F] { return Pilots[F]{fly, make(chan F), new(timers)} }

// Call gives f to a pilot that rests, or to a new one.
func (p *Pilots[F]) Call(f F) {
	select {
	case p.calls <- f:
	default:
		go p.fly(f)
	}
}

// Rest waits for a Call. It reports false if there was none for as long as patience.
func (p *Pilots[F]) Rest() (f F, called bool) {
	timer := p.timers.get()
	defer p.timers.put(timer)
	timer.Reset(patience)
	select {
	case f = <-p.calls:
		return f, true
	case <-timer.C:
		return f, false
	}
}
