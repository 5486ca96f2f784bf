package roundtrip_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// The server's time is known after the first call, within its bound, and costs no command
// of a call's.
func TestServerTime(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		c := newConn(t, rdb, roundtrip.Config{})
		_ = rdb.Ping(ctx).Err() // topology and connections are there
		if now, _, ok := c.ServerTime("{k}"); ok || time.Since(now) > time.Minute {
			t.Errorf("before any call: %v, %t; want this host's time, and false", now, ok)
		}
		count := redistest.Count(t, rdb, func() {
			for i := range 100 {
				mustIncr(t, c, "{k}")
				if _, _, ok := c.ServerTime("{k}"); !ok {
					t.Fatalf("after %d calls the time is not known", i+1)
				}
			}
		})
		if count.Total != 100 || count.RoundTrips > 101 {
			t.Errorf("100 calls took %+v; want 100 commands and round trips, or one more with a script that was not known", count)
		}
		before := rdb.Time(ctx).Val()
		now, bound, ok := c.ServerTime("{k}")
		after := rdb.Time(ctx).Val().Add(time.Microsecond)
		if !ok || now.Add(bound).Before(before) || now.Add(-bound).After(after) {
			t.Errorf("ServerTime = %v within %v, %t; want between %v and %v", now, bound, ok, before, after)
		}
	})
}

// A server whose clock was set, or another one, is noticed when it is asked next.
func TestServerTimeSteps(t *testing.T) {
	m, rdb := redistest.Mini(t)
	c := newConn(t, rdb, roundtrip.Config{})
	for _, skew := range []time.Duration{0, 9 * time.Hour, -2 * time.Hour, 300 * time.Millisecond} {
		at := time.Now().Add(skew)
		m.SetTime(at)
		roundtrip.RelearnServerTime(rdb)
		mustIncr(t, c, "k")
		now, bound, ok := c.ServerTime("k")
		// It stands still since it was set.
		if off := now.Sub(at); !ok || off < -bound || off > bound+time.Since(at.Add(-skew)) {
			t.Errorf("%v ahead: ServerTime = %v within %v, %t; want %v", skew, now, bound, ok, at)
		}
	}
}

// Where TIME is not permitted, calls work and the time is not known.
func TestServerTimeRefused(t *testing.T) {
	s := redistest.Start(t, redistest.Set("user", "default on nopass ~* &* +@all -time"))
	c := newConn(t, s.Client(), roundtrip.Config{})
	for range 3 {
		mustIncr(t, c, "k")
	}
	if _, _, ok := c.ServerTime("k"); ok {
		t.Error("ServerTime is known; want not")
	}
	if !c.Available("k") {
		t.Error("the breaker counted the refusal of TIME")
	}
}

func ExampleConn_ServerTime() {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, _ := roundtrip.New(rdb, roundtrip.Config{})
	_, _, ok := c.ServerTime("key")
	fmt.Println(ok) // no call has succeeded
	// Output: false
}
