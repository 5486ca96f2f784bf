package roundtrip

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"":                true, // localhost:6379
		"localhost:6379":  true,
		"127.0.0.1:7000":  true,
		"[::1]:6379":      true,
		"/run/redis.sock": true,
		"10.0.0.7:6379":   false,
		"redis:6379":      false,
		"localhost":       false, // no address
	} {
		rdb := redis.NewClient(&redis.Options{Addr: addr})
		defer rdb.Close()
		if got, e := isLocal(rdb.Options()), engineFor(rdb); got != want || e.yields != (want && canYield) {
			t.Errorf("Addr %q: local = %t, yields = %t; want %t", addr, got, e.yields, want)
		}
	}
	for name, rdb := range map[string]redis.UniversalClient{
		"cluster":  redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:6379"}}),
		"sentinel": redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:26379"}}),
	} {
		defer rdb.Close()
		if engineFor(rdb).yields {
			t.Errorf("%s: yields = true; want false, as it is not known where the server is", name)
		}
	}
}

// Somebody who is not the server and keeps the core gets it once a second, not for each
// flight.
func TestYieldStopsWhereTheCoreIsTaken(t *testing.T) {
	e := new(engine)
	yields := 0
	quick := func() { yields++ }
	for range 3 {
		e.yield(quick)
	}
	if yields != 3 {
		t.Errorf("yielded %d times; want 3", yields)
	}
	e.yield(func() { time.Sleep(2 * maxYield) })
	if e.yield(quick); yields != 3 {
		t.Error("the core was yielded again after it had been kept; want a pause")
	}
	if left := time.Duration(e.keep.Load()) - time.Since(base); left <= 0 || left > yieldPause {
		t.Errorf("the pause lasts %v; want up to %v", left, yieldPause)
	}
	e.keep.Store(int64(time.Since(base)))
	if e.yield(quick); yields != 4 {
		t.Error("the core was not yielded after the pause")
	}
}
