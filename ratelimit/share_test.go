package ratelimit

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Every policy that New accepts has a share that it accepts as well, which admits about
// that part of the limit: at once, and in the long run.
func TestSharesOfAllPolicies(t *testing.T) {
	for _, seed := range []uint64{9624421299995590803, rand.Uint64()} {
		testShares(t, seed)
	}
}

func testShares(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	any := func(most int64) int64 { return 1 + rng.Int64N(max(1, most>>rng.IntN(50))) }
	checked := 0
	for range 20_000 {
		window := time.Duration(any(maxWindow.Microseconds())) * time.Microsecond
		p := []Policy{FixedWindow("p", any(maxUnits), window), SlidingLog("p", any(maxUnits), window), SlidingWindow("p", any(maxUnits), window),
			TokenBucket("p", any(maxUnits), window, any(maxUnits)), Concurrency("p", any(maxLeases), window)}[rng.IntN(5)]
		if p.check() != nil {
			continue
		}
		checked++
		share := []float64{1, 0.25, 0.5, 1.0 / 3, 0.01, 0.001, 1e-6}[rng.IntN(7)]
		part := localPolicy(p, share)
		if err := part.check(); err != nil {
			t.Fatalf("seed %d: a share of %v of %v is %v: %v", seed, share, p, part, err)
		}
		if part.Limit() > max(1, int64(float64(p.Limit())*share)) {
			t.Fatalf("seed %d: a share of %v of %v is %v", seed, share, p, part)
		}
		if p.algo == tokenBucket {
			fills := float64(part.burst+1) / float64(part.limit) * float64(part.window)
			if want := scale(p.burst, share); part.burst > want || part.burst < want && fills <= float64(longest)*0.999 {
				t.Fatalf("seed %d: a share of %v of %v is %v; want a burst of %d", seed, share, p, part, want)
			}
		}
		if p.algo == tokenBucket {
			whole, some := float64(p.limit)/float64(p.window), float64(part.limit)/float64(part.window)
			if some > whole*share*1.01 && part.limit > 1 || some < whole*share*0.95 && part.window < maxWindow && part.limit > 1 && float64(part.limit) < float64(part.burst)*float64(part.window.Microseconds())*0.9 {
				t.Fatalf("seed %d: a share of %v of %v is %v, %v of its rate", seed, share, p, part, some/whole)
			}
		}
	}
	if checked < 1000 {
		t.Errorf("seed %d: %d policies were accepted; that proves little", seed, checked)
	}
}
