package demo

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(live)
		points, sum := l.points()
		if len(points) != 59 || sum.HitRate != -1 || sum.P50us != -1 {
			t.Errorf("nothing happened: %d points, %+v; want 59 and no figures", len(points), sum)
		}
		hook := latencyHook{l}
		for i := range 100 {
			hook.record(time.Millisecond, nil)
			if i < 3 {
				hook.record(100*time.Millisecond, redis.Nil) // an answer as well
				hook.record(time.Second, errors.New("no connection"))
			}
		}
		l.now(func(s *second) { s.hits, s.misses, s.allowed, s.denied = 3, 1, 50, 9 })
		if points, _ = l.points(); points[58].Hits != 0 {
			t.Error("the running second is shown before it is over")
		}
		time.Sleep(time.Second)
		points, sum = l.points()
		p := points[len(points)-1]
		if p.Hits != 3 || p.Misses != 1 || p.Allowed != 50 || p.Denied != 9 || p.Errors != 3 {
			t.Errorf("last second = %+v; want what happened in it", p)
		}
		// Classes grow by a quarter, and report their end.
		if p.P50us < 1000 || p.P50us > 1250 || p.P99us < 100_000 || p.P99us > 125_000 {
			t.Errorf("p50 %d µs, p99 %d µs; want 1000 and 100000, up to a quarter more", p.P50us, p.P99us)
		}
		if sum.HitRate != 0.75 || sum.Decisions != 1 || sum.Errors != 3 || sum.P50us != p.P50us {
			t.Errorf("minute = %+v; want hit rate 0.75, 1 decision a second, 3 errors", sum)
		}
		time.Sleep(time.Minute)
		if _, sum = l.points(); sum.HitRate != -1 || sum.Errors != 0 {
			t.Errorf("a minute later: %+v; want nothing left", sum)
		}
	})
	var h histogram
	h.add(0)
	h.add(time.Hour)
	if h[0] != 1 || h[len(h)-1] != 1 {
		t.Error("extremes are not in the first and last class")
	}
}
