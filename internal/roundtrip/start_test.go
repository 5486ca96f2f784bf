package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// Calls that were started share a round trip, and each has its own outcome.
func TestStart(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		for _, cfg := range []roundtrip.Config{{}, {NoCoalesce: true}} {
			var events []roundtrip.Event
			cfg.OnCall = func(e roundtrip.Event) { events = append(events, e) }
			c := newConn(t, rdb, cfg)
			set := redis.NewStatusCmd(ctx, "set", "{a}1", "x")
			get := redis.NewStringCmd(ctx, "get", "{a}1")
			wrong := redis.NewIntCmd(ctx, "incr", "{a}1")
			missing := redis.NewStringCmd(ctx, "get", "{a}2")
			first := c.Start("first", set, get)
			if err := first.Wait(ctx); err != nil || get.Val() != "x" {
				t.Fatalf("%+v: Wait = %v, get = %q; want x", cfg, err, get.Val())
			}
			second, third := c.Start("second", wrong), c.Start("third", missing)
			if err := third.Wait(ctx); err != nil || missing.Err() != redis.Nil {
				t.Errorf("%+v: Wait for a missing key = %v, %v; want nil, redis.Nil", cfg, err, missing.Err())
			}
			if err := second.Wait(ctx); !errors.Is(err, roundtrip.ErrBug) {
				t.Errorf("%+v: Wait for a wrong command = %v; want ErrBug", cfg, err)
			}
			if len(events) != 3 || events[0].Op != "first" || events[0].Commands != 2 || events[0].Coalesced == cfg.NoCoalesce ||
				events[1].Op != "third" || events[2].Err == nil {
				t.Errorf("%+v: events = %+v; want first, third, and second with its error", cfg, events)
			}
		}
	})
}

// Many start and wait, or change their mind, at the same time as others call.
func TestStartConcurrent(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newConn(t, rdb, roundtrip.Config{})
		ctx := t.Context()
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				for n := range 50 {
					key := fmt.Sprintf("k%d", i)
					incr := redis.NewIntCmd(ctx, "incr", key)
					p := c.Start("incr", incr)
					gone := c.Start("get", redis.NewStringCmd(ctx, "get", key))
					err := c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", key))
					gone.Drop()
					if err = errors.Join(err, p.Wait(ctx)); err != nil || incr.Val() != int64(n+1) {
						t.Errorf("%s = %d, %v; want %d", key, incr.Val(), err, n+1)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// Start never waits for a server that hangs, Wait no longer than the timeout since
// Start; and what was dropped before it left is not sent.
func TestStartHanging(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	ctx := context.Background()
	c := newConn(t, rdb, roundtrip.Config{Timeout: 300 * time.Millisecond, NoBreaker: true})
	patient := newConn(t, rdb, roundtrip.Config{Timeout: 10 * time.Second})
	callers(8, 5, func(int) { mustIncrOnce(t, patient) }) // connections are warm
	s.Pause()
	within := redistest.Within(t, 200*time.Millisecond)
	var inTheAir []roundtrip.Pending
	for range 2 {
		inTheAir = append(inTheAir, patient.Start("set", redis.NewStatusCmd(ctx, "set", "sent", "x")))
		time.Sleep(50 * time.Millisecond) // it takes off
	}
	dropped := patient.Start("set", redis.NewStatusCmd(ctx, "set", "dropped", "x"))
	kept := patient.Start("set", redis.NewStatusCmd(ctx, "set", "kept", "x"))
	late := c.Start("set", redis.NewStatusCmd(ctx, "set", "late", "x"))
	if took, most := within(); took > most {
		t.Errorf("five Starts took %v; want them not to wait", took)
	}
	dropped.Drop()
	time.Sleep(300 * time.Millisecond)
	within = redistest.Within(t, 50*time.Millisecond)
	if err := late.Wait(ctx); !errors.Is(err, roundtrip.ErrTimeout) || roundtrip.MaybeExecuted(err) {
		t.Errorf("Wait = %v; want ErrTimeout of a call that never left", err)
	}
	if took, most := within(); took > most {
		t.Errorf("Wait took %v after the timeout had passed; want nothing of note", took)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	gone := patient.Start("set", redis.NewStatusCmd(ctx, "set", "gone", "x"))
	if err := gone.Wait(ended); !errors.Is(err, context.Canceled) || roundtrip.MaybeExecuted(err) {
		t.Errorf("Wait with an ended context = %v; want context.Canceled of a call that never left", err)
	}
	s.Resume()
	for _, p := range append(inTheAir, kept) {
		if err := p.Wait(ctx); err != nil {
			t.Errorf("Wait after the server went on = %v; want nil", err)
		}
	}
	keys, err := rdb.Keys(ctx, "*").Result()
	if len(keys) != 3 || err != nil { // n, sent, kept
		t.Errorf("keys = %q, %v; want what was neither dropped nor late", keys, err)
	}
}

// A server that is known to be down is not waited for.
func TestStartBreaker(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { rdb.Close() })
	c := newConn(t, rdb, roundtrip.Config{Timeout: time.Second})
	ctx := t.Context()
	for range 200 {
		p := c.Start("get", redis.NewStringCmd(ctx, "get", "k"))
		if err := p.Wait(ctx); !errors.Is(err, roundtrip.ErrUnavailable) || roundtrip.MaybeExecuted(err) {
			t.Fatalf("Wait = %v; want ErrUnavailable", err)
		}
	}
	if c.Available("k") {
		t.Error("Available = true after 200 failures; want false")
	}
}
