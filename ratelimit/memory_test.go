package ratelimit_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// What a key costs in Redis, by algorithm. docs/ratelimit.md holds the table.
func TestBytesPerKey(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		for _, tt := range []struct {
			name  string
			p     ratelimit.Policy
			calls int
			cost  int64
			most  int64
		}{
			{"FixedWindow", ratelimit.FixedWindow("api", 1000, time.Hour), 20, 1, 176},
			{"SlidingWindow", ratelimit.SlidingWindow("api", 1000, time.Hour), 20, 1, 176},
			{"TokenBucket", ratelimit.TokenBucket("api", 1000, time.Hour, 1000), 20, 1, 192},
			{"SlidingLog 1 call", ratelimit.SlidingLog("api", 1000, time.Hour), 1, 1, 176},
			{"SlidingLog 1 call of 900", ratelimit.SlidingLog("api", 1000, time.Hour), 1, 900, 176},
			{"SlidingLog 100 calls", ratelimit.SlidingLog("api", 1000, time.Hour), 100, 1, 3000},
			{"SlidingLog 1000 calls", ratelimit.SlidingLog("api", 1000, time.Hour), 1000, 1, 130_000},
			{"Concurrency 10 leases", ratelimit.Concurrency("api", 1000, time.Hour), 10, 1, 700},
		} {
			if err := rdb.FlushDB(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			l := newLimiter(t, rdb, ratelimit.Config{}, tt.p)
			for range tt.calls {
				if r, err := l.AllowN(t.Context(), "203.0.113.7", tt.cost); err != nil || !r.Allowed {
					t.Fatalf("%s: AllowN = %+v, %v; want allowed", tt.name, r, err)
				}
			}
			keys, err := rdb.Keys(t.Context(), "*").Result()
			if err != nil || len(keys) != 1 {
				t.Fatalf("%s: keys %v, %v; want one", tt.name, keys, err)
			}
			bytes, err := rdb.MemoryUsage(t.Context(), keys[0], 0).Result()
			if err != nil || bytes > tt.most {
				t.Errorf("%s: %d bytes, %v; want at most %d", tt.name, bytes, err, tt.most)
			}
			t.Logf("%-26s %7d bytes", tt.name, bytes)
		}
	})
}

// A log of 100,000 entries is answered by as few commands as one of a thousand,
// each of them on one entry, and cleared up a little at a time.
func TestLongLogStaysQuick(t *testing.T) {
	s := redistest.Start(t)
	rdb := s.Client()
	const window = time.Hour
	key := "redporch:limit:{k}:l:log"
	fill := func(n int, first time.Time) {
		t.Helper()
		if err := rdb.Del(t.Context(), key).Err(); err != nil {
			t.Fatal(err)
		}
		pipe := rdb.Pipeline()
		batch := make([]redis.Z, 0, 1000)
		for i := range n {
			batch = append(batch, redis.Z{Score: float64(first.UnixMicro() + int64(i)), Member: fmt.Sprintf("%d:1", i+1)})
			if len(batch) == cap(batch) || i == n-1 {
				pipe.ZAdd(t.Context(), key, batch...)
				batch = make([]redis.Z, 0, 1000)
			}
		}
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// within returns how many commands a script called while f ran.
	within := func(f func()) (n int) {
		t.Helper()
		if err := rdb.ConfigResetStat(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		f()
		info, err := rdb.InfoMap(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range info["Commandstats"] {
			var calls int
			fmt.Sscanf(v, "calls=%d", &calls)
			switch name := strings.TrimPrefix(name, "cmdstat_"); name {
			case "zrange", "zrangebyscore", "zadd", "zcount", "zcard", "pexpire", "zremrangebyrank":
				n += calls
			case "time", "mget", "evalsha", "eval", "info", "config|resetstat", "config":
			default:
				t.Errorf("a log calls %s", name)
			}
		}
		return n
	}
	counts := make(map[string][]int)
	for _, n := range []int{1_000, 100_000} {
		l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true, NoDenialCache: true}, ratelimit.SlidingLog("log", int64(n), window))
		allow := func(cost int64, want bool, remaining int64) func() {
			return func() {
				t.Helper()
				if r, err := l.AllowN(t.Context(), "k", cost); err != nil || r.Allowed != want || r.Remaining != remaining || (r.RetryAfter > 0) == want {
					t.Errorf("%d entries: AllowN(%d) = %+v, %v; want allowed %v, %d remaining", n, cost, r, err, want, remaining)
				}
			}
		}
		fill(n-1, time.Now().Add(-window/2))
		counts["admitted"] = append(counts["admitted"], within(allow(1, true, 0)))
		counts["denied"] = append(counts["denied"], within(allow(int64(n/3), false, 0)))
		fill(n, time.Now().Add(-2*window))
		counts["after all have ended"] = append(counts["after all have ended"], within(allow(1, true, int64(n)-1)))
		if card := rdb.ZCard(t.Context(), key).Val(); card != int64(n)-100+1 {
			t.Errorf("%d ended entries: %d are left; want 100 cleared up, one added", n, card)
		}
	}
	for what, c := range counts {
		grown := 0
		if what == "denied" {
			grown = 7 // log₂ of 100, by bisection
		}
		if c[1] > c[0]+grown || c[0] > 15 {
			t.Errorf("%s: %d commands on 1,000 entries, %d on 100,000; want at most %d more", what, c[0], c[1], grown)
		}
	}
	t.Logf("commands on 1,000 and 100,000 entries: %v", counts)
}
