package roundtrip

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// A caller whose timer fires just when its flight has landed is not one that gave it
// up: the flight would be counted as overdue for ever, and after 32 of them the lane
// refuses all calls.
func TestLateLeaveAfterLanding(t *testing.T) {
	_, rdb := redistest.Mini(t)
	c, err := New(rdb, Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.eng.bounded = false // as of a cluster client that does not obey deadlines
	l := &c.eng.lanes.repeatable
	for range 2 * maxOverdue {
		p := c.Start("set", redis.NewStatusCmd(t.Context(), "set", "k", "v"))
		if err := p.Wait(t.Context()); err != nil {
			t.Fatalf("Wait = %v; want nil", err)
		}
		for settled := false; !settled; time.Sleep(time.Microsecond) {
			l.mu.Lock()
			settled = l.departures.flying == 0
			l.mu.Unlock()
		}
		if !l.leave(p.seat.flight, p.seat.at, true) {
			t.Fatal("leave = false; want that the call had left")
		}
		l.mu.Lock()
		flying := l.departures.flying
		l.mu.Unlock()
		if n := l.overdue.Load(); n != 0 || flying != 0 {
			t.Fatalf("overdue = %d, flying = %d; want none", n, flying)
		}
	}
}

// Every call that is begun is over once.
func TestStartCounts(t *testing.T) {
	_, rdb := redistest.Mini(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, cfg := range []Config{{Timeout: 5 * time.Second}, {Timeout: 5 * time.Second, NoCoalesce: true}} {
		c, err := New(rdb, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []func(p *Pending){
			func(p *Pending) { _ = p.Wait(t.Context()) },
			func(p *Pending) { _ = p.Wait(ended) },
			func(p *Pending) { p.Drop() },
		} {
			p := c.Start("set", redis.NewStatusCmd(t.Context(), "set", "k", "v"))
			end(&p)
			if n, seated := c.eng.inflight.Load(), c.eng.lanes.repeatable.callers.Load(); n != 0 || seated != 0 {
				t.Errorf("%+v: %d calls under way, %d with a seat; want none", cfg, n, seated)
			}
		}
	}
}
