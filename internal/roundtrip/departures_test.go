package roundtrip

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

const (
	swift = time.Microsecond // what a flight took, in a crowd
	slow  = time.Second      // and otherwise
)

func TestSeats(t *testing.T) {
	for callers, want := range map[int64]int{0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 64: 32, 1 << 20: maxFlight} {
		if got := Seats(callers); got != want {
			t.Errorf("Seats(%d) = %d; want %d", callers, got, want)
		}
	}
}

func TestDepartures(t *testing.T) {
	inAir := func(n int, crowded bool) *Departures {
		// It has just left, however long a busy machine takes from here on.
		return &Departures{flying: n, crowded: crowded, tookOff: time.Now().Add(time.Minute), Late: func() {}}
	}
	gathering := inAir(1, true)
	gathering.gathering = true
	for name, c := range map[string]struct {
		d    *Departures
		do   func(d *Departures) Next
		want Next
	}{
		"the first call":                          {inAir(0, true), func(d *Departures) Next { return d.Boarded(1, 8) }, Gather},
		"the first call, with a seat for it":      {inAir(0, true), func(d *Departures) Next { return d.Boarded(1, 1) }, TakeOff},
		"a second flight, half full":              {inAir(1, true), func(d *Departures) Next { return d.Boarded(4, 8) }, Stay},
		"a second flight, full":                   {inAir(1, true), func(d *Departures) Next { return d.Boarded(8, 8) }, TakeOff},
		"a second flight where nobody crowds":     {inAir(1, false), func(d *Departures) Next { return d.Boarded(1, 8) }, Gather},
		"a third flight, full":                    {inAir(2, true), func(d *Departures) Next { return d.Boarded(8, 8) }, Stay},
		"while somebody gathers":                  {gathering, func(d *Departures) Next { return d.Boarded(4, 8) }, Stay},
		"full while somebody gathers":             {gathering, func(d *Departures) Next { return d.Boarded(8, 8) }, TakeOff},
		"landed, the next one full":               {inAir(2, true), func(d *Departures) Next { return d.Landed(8, swift, 8, 8) }, TakeOff},
		"landed, the next one half full":          {inAir(2, true), func(d *Departures) Next { return d.Landed(8, swift, 4, 8) }, Stay},
		"landed, no crowd, the next half full":    {inAir(2, true), func(d *Departures) Next { return d.Landed(8, slow, 4, 8) }, Gather},
		"the last landed, callers come back":      {inAir(1, true), func(d *Departures) Next { return d.Landed(8, swift, 0, 8) }, Gather},
		"the last landed, half full":              {inAir(1, true), func(d *Departures) Next { return d.Landed(1, swift, 4, 8) }, Gather},
		"the last landed, with one call":          {inAir(1, true), func(d *Departures) Next { return d.Landed(1, swift, 0, 1) }, Stay},
		"late, with nothing to send":              {inAir(1, true), func(d *Departures) Next { return d.StayedLate(0) }, Stay},
		"late, but one has just left":             {inAir(1, true), func(d *Departures) Next { return d.StayedLate(4) }, Stay},
		"late, with the last in the air for long": {&Departures{flying: 1, crowded: true, tookOff: time.Now().Add(-time.Minute)}, func(d *Departures) Next { return d.StayedLate(4) }, TakeOff},
		"late, with two in the air":               {&Departures{flying: 2, tookOff: time.Now().Add(-time.Minute)}, func(d *Departures) Next { return d.StayedLate(4) }, Stay},
	} {
		before := c.d.flying
		if got := c.do(c.d); got != c.want {
			t.Errorf("%s: %d; want %d", name, got, c.want)
		} else if got == TakeOff && c.d.flying < 1 || got == Gather && !c.d.gathering || c.d.flying > before+1 {
			t.Errorf("%s: %+v after it; want it counted", name, c.d)
		}
	}
	for name, c := range map[string]struct {
		d     *Departures
		seats int
		want  bool
	}{
		"nobody":                        {inAir(0, true), 8, true},
		"one other":                     {inAir(1, true), 1, true},
		"a crowd":                       {inAir(1, true), 2, false},
		"some, with time to themselves": {inAir(1, false), 8, true},
		"two in the air":                {inAir(2, false), 1, false},
	} {
		if got := c.d.Alone(c.seats); got != c.want {
			t.Errorf("Alone beside %s = %t; want %t", name, got, c.want)
		}
	}
}

// Calls that wait for a flight to fill up do not wait for one that is stuck.
func TestSecondFlightLeavesAStuckOne(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.TCP())
	proxy := redistest.NewProxy(t, "tcp", s.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	t.Cleanup(func() { rdb.Close() })
	c, err := New(rdb, Config{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	const stuck = 900 * time.Millisecond
	proxy.Set(redistest.Fault{Match: "stuck", Times: 1, DelayReply: stuck})
	l := &c.eng.lanes.repeatable
	// As it is found to be where many call.
	l.departures.crowded = true
	l.callers.Add(20)
	begin := func(key string) *Pending {
		p := c.Start("get", redis.NewStringCmd(context.Background(), "get", key))
		return &p
	}
	first := begin("stuck")
	for taken := false; !taken; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		taken = l.departures.flying == 1
		l.mu.Unlock()
	}
	within := redistest.Within(t, stuck/4)
	other := begin("k")
	if err := other.Wait(context.Background()); err != nil {
		t.Errorf("Wait = %v", err)
	}
	if took, most := within(); took > most {
		t.Errorf("a call beside a stuck flight took %v; want little more than %v", took, patience)
	}
	if err := first.Wait(context.Background()); err != nil {
		t.Errorf("the stuck call: %v", err)
	}
}

// A flight that has landed counts the calls out that nobody waits for yet.
func TestAbsentCallsAreCountedOut(t *testing.T) {
	_, rdb := redistest.Mini(t)
	c, err := New(rdb, Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	l := &c.eng.lanes.repeatable
	var pending []Pending
	for range 10 {
		pending = append(pending, c.Start("set", redis.NewStatusCmd(t.Context(), "set", "k", "v")))
	}
	for end := time.Now().Add(5 * time.Second); l.callers.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d calls are counted though all have landed; want none", l.callers.Load())
		}
	}
	for i := range pending {
		if err := pending[i].Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := l.callers.Load(); n != 0 {
		t.Errorf("%d calls are counted in the end; want none", n)
	}
}
