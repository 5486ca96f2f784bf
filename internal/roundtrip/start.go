package roundtrip

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// Pending is a call that Start began. Exactly one of Wait and Drop must be called on
// it, by one goroutine.
type Pending struct {
	conn  *Conn
	op    string
	cmds  []redis.Cmder
	seat  seat // zero: not sent yet
	start time.Time
	err   error // it was refused
}

// Start begins a call whose outcome is waited for later, so that its round trip
// overlaps another. It takes a seat in a flight, and never holds up the caller; with
// Config.NoCoalesce it is Wait that sends cmds. Config.Timeout is counted from here.
func (c *Conn) Start(op string, cmds ...redis.Cmder) Pending {
	p := Pending{conn: c, op: op, cmds: cmds, start: time.Now()}
	if c.cfg.NoCoalesce {
		return p
	}
	pair := c.eng.pairFor(firstKey(cmds[0]))
	l := &pair.repeatable
	if isOnce(cmds) {
		l = &pair.once
	}
	switch {
	case !c.cfg.NoBreaker && !l.brk.allow():
		p.err = &Error{Package: c.cfg.Name, Op: op, Kind: ErrUnavailable, Err: errBreakerOpen}
	case l.overdue.Load() >= maxOverdue:
		p.err = &Error{Package: c.cfg.Name, Op: op, Kind: ErrUnavailable, Err: errCrowded}
	default:
		c.eng.inflight.Add(1)
		p.seat = c.board(l, passenger{cmds: cmds, absent: true}, time.Time{})
	}
	return p
}

// Wait returns the outcome, as Do does.
func (p *Pending) Wait(ctx context.Context) error {
	if p.err == nil && p.seat.flight == nil {
		return p.conn.Do(ctx, p.op, p.cmds...)
	}
	err := p.err
	if err == nil {
		err = p.land(ctx)
	}
	for i := 0; err == nil && i < len(p.cmds); i++ {
		err = p.conn.Classify(p.op, p.cmds[i].Err())
	}
	if p.conn.cfg.OnCall != nil {
		p.conn.cfg.OnCall(Event{Op: p.op, Commands: len(p.cmds), Duration: time.Since(p.start), Coalesced: true, Err: err})
	}
	return err
}

func (p *Pending) land(ctx context.Context) error {
	defer p.out(p.claim())
	select {
	case <-p.seat.flight.landed: // also if the time is over by now
		return nil
	default:
	}
	if err := ctx.Err(); err != nil {
		return p.conn.gone(p.op, err, p.seat.lane.leave(p.seat.flight, p.seat.at, false))
	}
	by := time.Time{}
	if !p.seat.relies {
		by = p.start.Add(p.conn.cfg.Timeout)
	}
	return p.conn.land(ctx, p.op, &p.seat, by)
}

// Drop says that nobody is interested any more. What has not been sent is not.
func (p *Pending) Drop() {
	if p.seat.flight != nil {
		p.seat.lane.leave(p.seat.flight, p.seat.at, false)
		p.out(p.claim())
	}
}

// claim reports whether the call is still counted among those of its lane, and that it
// is for the caller to count it out. A flight counts out the calls that nobody waits for
// when it has landed: it may take long until somebody does, and flights would wait for
// them to come again.
func (p *Pending) claim() bool {
	l, f := p.seat.lane, p.seat.flight
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.state == over || !f.calls[p.seat.at].absent {
		return false
	}
	f.calls[p.seat.at].absent = false
	f.absent--
	return true
}

// out counts the call out.
func (p *Pending) out(claimed bool) {
	if claimed {
		p.seat.lane.callers.Add(-1)
	}
	p.conn.eng.inflight.Add(-1)
}
