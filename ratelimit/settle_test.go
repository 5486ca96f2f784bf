package ratelimit

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

func newAt(t testing.TB, rdb redis.UniversalClient, cfg Config, policies ...Policy) *Limiter {
	t.Helper()
	cfg.Timeout, cfg.PlainKeys = time.Minute, true
	l, err := New(rdb, cfg, policies...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func reserved(t testing.TB, l *Limiter, n int64) *Reservation {
	t.Helper()
	r, err := l.Reserve(t.Context(), "k", n)
	if err != nil || !r.Allowed {
		t.Fatalf("Reserve(%d) = %+v, %v; want it", n, r.Result, err)
	}
	return r
}

// What one reservation gives back makes those behind it drain sooner, so that nothing of
// them is left to give back when it has.
func TestBucketSettlesFirstInFirstOut(t *testing.T) {
	inWorlds(t, func(t *testing.T, w *world) {
		// A token takes more than a minute, which a server's own clock does not cover here.
		const n, each = 10, time.Hour
		l := newAt(t, w.rdb, Config{NoDenialCache: true}, TokenBucket("b", 1, each, n))
		for _, c := range []struct {
			name string
			play func()
			left int64
		}{
			{"the first is cancelled, all drain, others take", func() {
				a, b := reserved(t, l, 5), reserved(t, l, 5)
				w.must(a.Cancel(t.Context()))
				w.pass(5 * each)
				reserved(t, l, 10)
				w.must(b.Cancel(t.Context()))
			}, 0},
			{"the first is settled for less, some of the second drain", func() {
				a, b := reserved(t, l, 5), reserved(t, l, 5)
				w.must(a.Commit(t.Context(), 2))
				w.pass(3 * each) // all of the first, and one of the second
				w.must(b.Cancel(t.Context()))
			}, 10},
			{"in any order at once", func() {
				var rs []*Reservation
				for range 5 {
					rs = append(rs, reserved(t, l, 2))
				}
				for _, i := range []int{2, 0, 4, 3, 1} {
					w.must(rs[i].Commit(t.Context(), 1))
				}
			}, 5},
			{"one is refunded, and the others' are theirs", func() {
				a, b := reserved(t, l, 5), reserved(t, l, 4)
				w.must(l.Refund(t.Context(), "k", 3))
				w.must(b.Cancel(t.Context()))
				w.must(a.Commit(t.Context(), 4))
			}, 9},
		} {
			w.must(l.Reset(t.Context(), "k"))
			w.pass(time.Second)
			c.play()
			if r, err := l.Peek(t.Context(), "k"); err != nil || r.Remaining != c.left {
				t.Errorf("%s: %d left, %v; want %d", c.name, r.Remaining, err, c.left)
			}
		}
	})
}

// A reservation from before a Reset gives back nothing, whoever took what is there now.
func TestCancelAfterReset(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, p := range []Policy{
			FixedWindow("f", 10, time.Hour), FixedWindow("a", 10, 24*time.Hour).Aligned(0), SlidingWindow("c", 10, 24*time.Hour),
			SlidingLog("l", 10, time.Hour), TokenBucket("b", 10, time.Hour, 10), Concurrency("n", 10, time.Hour),
		} {
			l := newAt(t, rdb, Config{NoDenialCache: true}, p)
			before := reserved(t, l, 10)
			if err := l.Reset(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			after := reserved(t, l, 10)
			if err := before.Cancel(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, err := l.Peek(t.Context(), "k"); err != nil || r.Remaining != 0 {
				t.Errorf("%v: %d left after what Reset forgot was cancelled, %v; want none", p, r.Remaining, err)
			}
			if err := after.Cancel(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, err := l.Peek(t.Context(), "k"); err != nil || r.Remaining != 10 {
				t.Errorf("%v: %d left after what was taken since was cancelled, %v; want all", p, r.Remaining, err)
			}
			if err := l.Reset(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A Reset of one policy leaves reservations what they have of the others.
func TestResetOfOnePolicy(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		a, b, n := FixedWindow("a", 10, time.Hour), TokenBucket("b", 1, time.Hour, 10), Concurrency("n", 10, time.Hour)
		all, one := newAt(t, rdb, Config{NoDenialCache: true}, a, b, n), newAt(t, rdb, Config{NoDenialCache: true}, b)
		r := reserved(t, all, 4)
		if err := one.Reset(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if _, err := one.AllowN(t.Context(), "k", 3); err != nil {
			t.Fatal(err)
		}
		if err := r.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := all.Peek(t.Context(), "k")
		if err != nil || got.Policies[0].Remaining != 10 || got.Policies[1].Remaining != 7 || got.Policies[2].Remaining != 10 {
			t.Errorf("after a Reset of the second policy and a Cancel: %+v, %v; want 10, 7 and 10 left", got.Policies, err)
		}
	})
}

// Whatever is done, no key is left without a TTL, and none ends before what it holds
// does and a second more.
func TestAllKeysEnd(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		all := []Policy{FixedWindow("f", 50, time.Hour), SlidingLog("l", 50, time.Hour), SlidingWindow("c", 50, time.Hour),
			TokenBucket("b", 50, time.Hour, 50), Concurrency("n", 50, time.Hour)}
		sets := [][]Policy{all}
		for _, p := range all {
			sets = append(sets, []Policy{p})
		}
		for _, set := range sets {
			l := newAt(t, rdb, Config{NoDenialCache: true}, set...)
			var open []*Reservation
			for step := range 60 {
				switch rng.IntN(6) {
				case 0, 1, 2:
					r, err := l.Reserve(t.Context(), "k", 1+rng.Int64N(9))
					if err != nil {
						t.Fatal(err)
					}
					open = append(open, r)
				case 3, 4:
					if len(open) > 0 {
						i := rng.IntN(len(open))
						if err := open[i].Commit(t.Context(), rng.Int64N(9)); err != nil {
							t.Fatal(err)
						}
						open = append(open[:i], open[i+1:]...)
					}
				case 5:
					if err := l.Refund(t.Context(), "k", 1+rng.Int64N(5)); err != nil {
						t.Fatal(err)
					}
				}
				peeked := time.Now()
				r, err := l.Peek(t.Context(), "k")
				if err != nil {
					t.Fatal(err)
				}
				keys, err := rdb.Keys(t.Context(), "*").Result()
				if err != nil {
					t.Fatal(err)
				}
				for _, key := range keys {
					ttl := rdb.PTTL(t.Context(), key).Val()
					if ttl < 0 {
						t.Fatalf("seed %d, step %d of %v: key %s has no TTL", seed, step, set, key)
					}
					for i, p := range set {
						if strings.HasSuffix(key, ":"+p.name) && r.Policies[i].ResetAfter > 0 && ttl+time.Since(peeked) < r.Policies[i].ResetAfter {
							t.Fatalf("seed %d, step %d of %v: key %s ends in %v, what it holds in %v", seed, step, set, key, ttl, r.Policies[i].ResetAfter)
						}
					}
				}
			}
			if err := rdb.FlushDB(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A new key outlives what it holds by a second, by itself or beside others.
func TestKeysOutliveWhatTheyHold(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, p := range []Policy{FixedWindow("p", 10, time.Hour), SlidingWindow("p", 10, time.Hour), SlidingLog("p", 10, time.Hour),
			TokenBucket("p", 10, time.Minute, 1), Concurrency("p", 10, time.Hour)} {
			for _, set := range [][]Policy{{p}, {p, FixedWindow("other", 100, time.Hour)}} {
				l := newAt(t, rdb, Config{}, set...)
				r, err := l.Allow(t.Context(), "k")
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				ttl := rdb.PTTL(t.Context(), DefaultPrefix+"{k}:"+string(rune(p.algo))+":p").Val()
				over := ttl - r.Policies[0].ResetAfter
				if over > 1001*time.Millisecond || over < 999*time.Millisecond-time.Since(began)-time.Since(r.At) {
					t.Errorf("%v: the key ends %v after what it holds; want a second", set, over)
				}
				if err := l.Reset(t.Context(), "k"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// The same bytes are a bucket's state to a limiter with one policy and to one with two,
// or to none of them.
func TestOneReader(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		doubles := func(tag byte, ns ...float64) string {
			b := []byte{tag}
			for _, n := range ns {
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(n))
			}
			return string(b)
		}
		now := float64(time.Now().UnixMicro())
		b := TokenBucket("p", 10, time.Hour, 10)
		f := FixedWindow("other", 100, time.Hour)
		one, two := newAt(t, rdb, Config{NoDenialCache: true}, b), newAt(t, rdb, Config{NoDenialCache: true}, b, f)
		key := DefaultPrefix + "{k}:b:p"
		win := float64(one.set.policies[0].win)
		for name, garbage := range map[string]string{
			"0xFF":             "B" + strings.Repeat("\xff", 40),
			"1e300":            doubles('B', 1e300, 1e300, 1e300, 1e300, 1e300),
			"1e300 in place":   doubles('C', 1e300, 1e300, 1e300, 1e300, 1e300),
			"tiny numbers":     doubles('C', 1e-310, 1e-310, 1e-310, 1e-310, 1e-310),
			"no period":        doubles('C', win, now, 0, 0, now),
			"negative":         doubles('C', -win, now, win, 0, now),
			"an unknown tag":   doubles('\xf0', win, now, win, 0, now),
			"text":             "1:2:3",
			"text, no period":  fmt.Sprintf("%.0f:%.0f:0x1:5", win, now),
			"text, vast level": fmt.Sprintf("%s:%.0f:%.0fx1:5", strings.Repeat("9", 40), now, win),
			"empty":            "",
		} {
			for which, l := range map[string]*Limiter{"one policy": one, "two": two} {
				if err := rdb.Set(t.Context(), key, garbage, time.Hour).Err(); err != nil {
					t.Fatal(err)
				}
				r, err := l.Allow(t.Context(), "k")
				if err == nil || roundtrip.MaybeExecuted(err) && r.Allowed || !strings.Contains(err.Error(), "not a limiter's") {
					t.Errorf("%s under %s: Allow = %+v, %v; want an error", name, which, r, err)
				}
				if err := l.Refund(t.Context(), "k", 1); err != nil {
					t.Errorf("%s under %s: Refund = %v", name, which, err)
				}
				if v := rdb.Get(t.Context(), key).Val(); v != garbage {
					t.Errorf("%s under %s: %q is there now; want it left alone", name, which, v)
				}
			}
		}
		// What an earlier version wrote, under one and under several policies, is read: two of ten used.
		rdb.Del(t.Context(), key)
		period := float64(time.Hour.Microseconds())
		states := map[string]string{"as text": fmt.Sprintf("%.0f:%.0f:%.0fx1", 2*period, now, period)}
		if _, mini := rdb.(*redis.Client); mini && rdb.Eval(t.Context(), "return struct and 1 or 0", nil).Val() == int64(1) {
			states["in binary"] = doubles('B', 2*period, now, period, 1, now)
		}
		for name, state := range states {
			for which, l := range map[string]*Limiter{"one policy": one, "two": two} {
				if err := rdb.Set(t.Context(), key, state, time.Hour).Err(); err != nil {
					t.Fatal(err)
				}
				if r, err := l.Allow(t.Context(), "k"); err != nil || r.Policies[0].Remaining != 7 {
					t.Errorf("a state of an earlier version, %s, under %s: Allow = %+v, %v; want 7 left", name, which, r, err)
				}
			}
		}
	})
}
