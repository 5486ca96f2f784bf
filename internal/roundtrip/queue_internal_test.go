package roundtrip

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// What a call waited in this process is not the server's, as long as that answers; and
// never trips the breaker.
func TestOwnQueue(t *testing.T) {
	_, rdb := redistest.Mini(t)
	const timeout = 5 * time.Second
	c, err := New(rdb, Config{Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	l := &c.eng.lanes.repeatable
	ctx := t.Context()
	fly := func(waited time.Duration) error {
		cmd := redis.NewIntCmd(ctx, "incr", "n")
		f := &flight{landed: make(chan struct{}), calls: []passenger{{cmds: []redis.Cmder{cmd}}}, n: 1, timeout: timeout,
			until: time.Now().Add(timeout - waited)}
		l.send(f)
		return c.Classify("incr", cmd.Err())
	}
	direct := func(waited time.Duration) error {
		cmd := redis.NewIntCmd(ctx, "incr", "n")
		if err := c.DoEachBy(ctx, time.Now().Add(timeout-waited), "incr", cmd); err != nil {
			return err
		}
		return c.Classify("incr", cmd.Err())
	}
	for name, call := range map[string]func(time.Duration) error{"in a flight": fly, "alone": direct} {
		if err := call(3 * timeout); err != nil {
			t.Errorf("%s, three timeouts late, Redis answers: %v; want nil", name, err)
		}
		err := call(maxQueued * 2 * timeout)
		if !errors.Is(err, ErrOverloaded) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTimeout) || MaybeExecuted(err) {
			t.Errorf("%s, much later: %v; want ErrOverloaded, not executed", name, err)
		}
		if !l.brk.calm() {
			t.Errorf("%s: that counts as a failure; want not", name)
		}
		l.brk.report(true) // now the time is what Redis took
		if err := call(3 * timeout); !errors.Is(err, ErrTimeout) || MaybeExecuted(err) {
			t.Errorf("%s, late after a failure: %v; want ErrTimeout, not executed", name, err)
		}
		if err := call(0); err != nil || !l.brk.calm() {
			t.Errorf("%s, in time after a failure: %v; want nil", name, err)
		}
	}
	// A pool of which all is in use.
	for _, cause := range []error{redis.ErrPoolTimeout, redis.ErrPoolExhausted} {
		cmd := redis.NewIntCmd(ctx, "incr", "n")
		cmd.SetErr(cause)
		if err := c.Classify("incr", cause); !errors.Is(err, ErrOverloaded) || MaybeExecuted(err) || outcomeOf([]redis.Cmder{cmd}) != unasked {
			t.Errorf("%v: %v; want ErrOverloaded, and that the server was not asked", cause, err)
		}
	}
}

// A caller with a timer of its own waits on while nobody gets to sending its flight and
// Redis answers, but not for ever, and not while Redis does not.
func TestOwnQueueHeld(t *testing.T) {
	_, rdb := redistest.Mini(t)
	c, err := New(rdb, Config{Timeout: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l := &c.eng.lanes.repeatable
	ctx := t.Context()
	wait := func() error {
		l.mu.Lock()
		f := &flight{landed: make(chan struct{}), calls: make([]passenger, 1), timeout: c.cfg.Timeout}
		l.waiting = append(l.waiting, f)
		l.mu.Unlock()
		err := c.land(ctx, "get", &seat{lane: l, flight: f}, time.Now().Add(c.cfg.Timeout))
		l.mu.Lock()
		l.waiting = nil
		l.mu.Unlock()
		return err
	}
	start := time.Now()
	if err := wait(); !errors.Is(err, ErrOverloaded) || time.Since(start) < maxQueued*c.cfg.Timeout {
		t.Errorf("nobody sends: %v after %v; want ErrOverloaded after %v", err, time.Since(start), maxQueued*c.cfg.Timeout)
	}
	l.departures.flying = maxFlying // flights that Redis does not answer
	if err := wait(); !errors.Is(err, ErrTimeout) || errors.Is(err, ErrOverloaded) {
		t.Errorf("behind others in the air: %v; want ErrTimeout", err)
	}
	l.departures.flying = 0
	l.brk.report(true)
	if err := wait(); !errors.Is(err, ErrTimeout) || errors.Is(err, ErrOverloaded) {
		t.Errorf("after a failure: %v; want ErrTimeout", err)
	}
}

// A reply that has come is read although the deadline is over.
func TestReplyIsThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := newWire(dialed)
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := conn.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	over := time.Now().Add(-time.Second)
	buf := make([]byte, 16)
	_ = conn.SetReadDeadline(over)
	if n, err := conn.Read(buf); n != 0 || !isTimeout(err) {
		t.Errorf("Read = %d, %v; want a timeout while nothing has come", n, err)
	}
	if _, err := server.Write([]byte("reply")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	redistest.Await(t, "the reply in the socket", func() error {
		if there, _ := peek(conn.(wireSys).sys); !there {
			return io.ErrNoProgress
		}
		return nil
	})
	_ = conn.SetReadDeadline(over)
	if n, err := conn.Read(buf); string(buf[:n]) != "reply" || err != nil {
		t.Errorf("Read = %q, %v; want what has come", buf[:n], err)
	}
	_ = server.Close()
	_, _ = conn.Write([]byte("ask"))
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(buf); err == nil || isUnsent(err) {
		t.Errorf("Read of a connection that was closed after a write = %v; want an error that leaves open what happened", err)
	}
	_ = conn.SetDeadline(time.Time{}) // as the pool does
	if _, err := conn.Read(buf); !isUnsent(err) {
		t.Errorf("Read before a write = %v; want that nothing was sent", err)
	}
}

// What is known of a clock is what its intervals have in common.
func TestClock(t *testing.T) {
	const ms, s = int64(time.Millisecond), int64(time.Second)
	type ask struct{ server, sent, came int64 }
	for name, tt := range map[string]struct {
		asked     []ask
		low, high int64
	}{
		"once":         {[]ask{{100 * s, 10 * s, 10*s + 4*ms}}, 90*s - 4*ms, 90*s + 1000},
		"a slower one": {[]ask{{100 * s, 10 * s, 10*s + 4*ms}, {101 * s, 10*s + 900*ms, 11*s + 100*ms}}, 90*s - 4*ms - 219200, 90*s + 1000 + 219200},
		"a quicker one": {[]ask{{100 * s, 10 * s, 10*s + 40*ms}, {101 * s, 11 * s, 11*s + 1*ms}},
			90*s - 1*ms, 90*s + 1000},
		"the clock was set": {[]ask{{100 * s, 10 * s, 10*s + 4*ms}, {50 * s, 11 * s, 11*s + 1*ms}}, 39*s - 1*ms, 39*s + 1000},
	} {
		var c clock
		for _, a := range tt.asked {
			c.learn(a.server, a.sent, a.came)
		}
		if k := c.known.Load(); k.low != tt.low || k.high != tt.high {
			t.Errorf("%s: between %d and %d; want %d and %d", name, k.low, k.high, tt.low, tt.high)
		}
	}
	var c clock
	if !c.due() || c.due() {
		t.Error("due is not true once")
	}
	if c.doubt(); !c.due() {
		t.Error("due = false after a failure")
	}
}
