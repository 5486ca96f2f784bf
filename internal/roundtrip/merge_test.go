package roundtrip_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// each appends arguments to a list per key, and answers with its length.
var each = roundtrip.NewScript(`
local out, a = {}, 3
for i = 1, #KEYS do
  for j = a, a + ARGV[1] - 1 do out[i] = redis.call('RPUSH', KEYS[i], ARGV[2] .. ARGV[j]) end
  a = a + ARGV[1]
end
return out
`)

// Runs that can be shared are, and everybody gets the answer for its own key, whatever
// the others of the flight brought: other numbers of arguments, or a key of another type.
func TestEachMixed(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newConn(t, rdb, roundtrip.Config{})
		ctx := t.Context()
		const n, calls = 96, 20
		var failed atomic.Int64
		if err := rdb.Set(ctx, "k95", "a string", 0).Err(); err != nil {
			t.Fatal(err)
		}
		count := redistest.Count(t, rdb, func() {
			callers(n-1, calls, func(i int) {
				own := 1 + i%3
				tag := fmt.Sprint("tag", i%12) // 12 kinds of runs, more than are looked for
				if i < 48 {
					tag = "same"
				}
				cmd := each.Each(ctx, fmt.Sprint("k", i), 2, func(args []any) []any {
					args = append(args, own, tag)
					for j := range own {
						args = append(args, fmt.Sprint("-", i, "-", j))
					}
					return args
				})
				err := c.Do(ctx, "each", cmd)
				if got, ok := cmd.Reply(); err != nil || !ok || got%int64(own) != 0 {
					failed.Add(1)
					t.Logf("caller %d: %d, %t, %v", i, got, ok, err)
				}
			})
		})
		if failed.Load() > 0 {
			t.Fatalf("%d calls failed", failed.Load())
		}
		for i := range n - 1 {
			own, tag := 1+i%3, fmt.Sprint("tag", i%12)
			if i < 48 {
				tag = "same"
			}
			got, err := rdb.LRange(ctx, fmt.Sprint("k", i), 0, -1).Result()
			if err != nil || len(got) != own*calls {
				t.Fatalf("k%d has %d entries, %v; want %d", i, len(got), err, own*calls)
			}
			for at, v := range got {
				if want := fmt.Sprintf("%s-%d-%d", tag, i, at%own); v != want {
					t.Fatalf("k%d has %q at %d; want %q", i, v, at, want)
				}
			}
		}
		runs := count.By["evalsha"] + count.By["eval"]
		if _, cluster := rdb.(*redis.ClusterClient); !cluster && runs > (n-1)*calls*3/4 {
			t.Errorf("%d runs for %d calls; want a quarter less at least", runs, (n-1)*calls)
		}
		bad := each.Each(ctx, "k95", 2, func(args []any) []any { return append(args, 1, "same", "x") })
		if err := c.Do(ctx, "each", bad); err == nil {
			t.Error("Do on a key of another type = nil; want an error")
		}
		if _, ok := bad.Reply(); ok {
			t.Error("Reply of a failed command is ok; want not")
		}
	})
}

// one sets a value for each key, and answers all with one number, unless a value is "odd".
var one = roundtrip.NewScript(`
local odd
for i = 1, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i])
  if ARGV[i] == 'odd' then odd = i end
end
if not odd then return { 7 } end
local out = {}
for i = 1, #KEYS do out[i] = i == odd and 9 or 7 end
return out
`)

// A script may answer all keys of a run with one number.
func TestEachAnsweredTogether(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		c := newConn(t, rdb, roundtrip.Config{})
		const n, calls = 64, 20
		var failed atomic.Int64
		count := redistest.Count(t, rdb, func() {
			callers(n, calls, func(i int) {
				value, want := "even", int64(7)
				if i == 0 {
					value, want = "odd", 9
				}
				cmd := one.Each(t.Context(), fmt.Sprint("k", i), 0, func(args []any) []any { return append(args, value) })
				err := c.Do(t.Context(), "one", cmd)
				if got, ok := cmd.Reply(); err != nil || !ok || got != want {
					failed.Add(1)
					t.Logf("caller %d: %d, %t, %v; want %d", i, got, ok, err, want)
				}
			})
		})
		if failed.Load() > 0 {
			t.Fatalf("%d of %d calls failed", failed.Load(), n*calls)
		}
		if runs := count.By["evalsha"] + count.By["eval"]; runs > n*calls/2 {
			if _, cluster := rdb.(*redis.ClusterClient); !cluster {
				t.Errorf("%d runs for %d calls; want half as many at most", runs, n*calls)
			}
		}
	})
}

// A node that knows slots, behind a client that does not: the first run of several keys is
// refused, and from then on each goes by itself. No call fails, and none is carried out twice.
func TestEachCrossSlot(t *testing.T) {
	redistest.RunOn(t, redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		plain := redis.NewClient(&redis.Options{Addr: rdb.(*redis.ClusterClient).Options().Addrs[0]})
		t.Cleanup(func() { plain.Close() })
		c := newConn(t, plain, roundtrip.Config{})
		const n, calls = 64, 20
		var failed atomic.Int64
		callers(n, calls, func(i int) {
			cmd := each.Each(t.Context(), fmt.Sprint("k", i), 2, func(args []any) []any { return append(args, 1, "tag", "x") })
			if err := c.Do(t.Context(), "each", cmd); err != nil {
				failed.Add(1)
				t.Logf("caller %d: %v", i, err)
			}
		})
		if failed.Load() > 0 {
			t.Errorf("%d of %d calls failed; want none", failed.Load(), n*calls)
		}
		for i := range n {
			if got := rdb.LLen(t.Context(), fmt.Sprint("k", i)).Val(); got != calls {
				t.Fatalf("k%d has %d entries; want %d", i, got, calls)
			}
		}
		if !c.IsCluster() {
			t.Error("IsCluster = false after a CROSSSLOT; want true")
		}
	})
}
