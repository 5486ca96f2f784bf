package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
	"github.com/redporch/redporch/ratelimit"
)

// said is what a call was told: by Redis, or nothing if the reply was lost.
type said struct {
	known              bool
	maybe              bool  // unknown, and perhaps carried out
	granted, remaining int64 // remaining is -1 if it was not looked up
}

// limiterModel is a limit that gives nothing back. What was not answered may have
// happened once, or not.
func limiterModel(limit int64) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{int64(0)} },
		Step: func(state, input, output any) []any {
			used, cost, out := state.(int64), input.(int64), output.(said)
			after := used
			switch {
			case cost < 0:
				after += min(-cost, limit-used)
			case used+cost <= limit:
				after += cost
			}
			switch {
			case out.known:
				if out.granted == after-used && (out.remaining == -1 || out.remaining == limit-after) {
					return []any{after}
				}
				return nil
			case out.maybe && after != used:
				return []any{used, after}
			}
			return []any{used}
		},
	}
	return m.ToModel()
}

// recordCalls has four clients make calls at the same time and notes what they were
// told.
func recordCalls(ask func(cost int64) said) (history []porcupine.Operation) {
	var mu sync.Mutex
	start := time.Now()
	var wg sync.WaitGroup
	for c := range 4 {
		rng := rand.New(rand.NewPCG(uint64(c), uint64(time.Now().UnixNano())))
		wg.Go(func() {
			for range 8 {
				cost := 1 + rng.Int64N(4)
				if rng.IntN(5) == 0 {
					cost = -cost
				}
				op := porcupine.Operation{ClientId: c, Input: cost, Call: int64(time.Since(start))}
				out := ask(cost)
				op.Return, op.Output = int64(time.Since(start)), out
				if out.maybe {
					op.Return = math.MaxInt64 // whenever it is carried out
				}
				mu.Lock()
				history = append(history, op)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return history
}

// Histories with lost replies are linearizable: each call happened once between
// call and return, or, if its reply was lost, at most once since.
func TestHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	const limit = 40
	s := redistest.Start(t, redistest.TCP())
	for name, p := range five(limit) {
		for _, merged := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " merged ", merged), func(t *testing.T) {
				proxy := redistest.NewProxy(t, "tcp", s.Addr())
				rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: 3, ContextTimeoutEnabled: true})
				defer rdb.Close()
				l := newLimiter(t, rdb, ratelimit.Config{NoCoalesce: !merged, Timeout: 150 * time.Millisecond}, p.OnUnavailable(ratelimit.FailClosed))
				key := fmt.Sprint(t.Name(), time.Now())
				if _, err := l.Peek(t.Context(), key); err != nil {
					t.Fatal(err)
				}
				for round, f := range []redistest.Fault{{CutAfter: true}, {CutBefore: true}, {LoseReply: true}} {
					f.Match, f.Skip, f.Times = "evalsha", 2, 2
					var history []porcupine.Operation
					// Where the machine is so busy that the breaker opened, the calls have
					// not come as far as the proxy.
					for try := 0; ; try++ {
						redistest.Await(t, "an answer of Redis", func() error {
							r, err := l.Peek(t.Context(), key)
							return errors.Join(err, r.Err)
						})
						k := fmt.Sprint(key, round, try)
						proxy.Set(f)
						history = recordCalls(func(cost int64) said {
							var r ratelimit.Result
							var err error
							if cost < 0 {
								r, err = l.AllowUpTo(context.Background(), k, -cost)
							} else {
								r, err = l.AllowN(context.Background(), k, cost)
							}
							if err != nil || r.Err != nil {
								return said{maybe: roundtrip.MaybeExecuted(errors.Join(err, r.Err))}
							}
							if r.Source == ratelimit.SourceDenied {
								r.Remaining = -1
							}
							return said{known: true, granted: r.Granted, remaining: r.Remaining}
						})
						struck := proxy.Hits()
						proxy.Clear()
						if struck > 0 {
							break
						}
						if try == 100 {
							t.Fatalf("fault %+v never struck", f)
						}
					}
					unknown := 0
					for _, op := range history {
						if !op.Output.(said).known {
							unknown++
						}
					}
					if res := porcupine.CheckOperationsTimeout(limiterModel(limit), history, 20*time.Second); res != porcupine.Ok {
						t.Errorf("fault %+v: history of %d calls, %d unanswered, is %v; want linearizable\n%+v", f, len(history), unknown, res, history)
					}
				}
			})
		}
	}
}

// TestHistoryControl records limiters that are known to be wrong in the same way:
// the checker refuses them, and a right one that looks like them it accepts.
func TestHistoryControl(t *testing.T) {
	const limit = 40
	s := redistest.Start(t, redistest.TCP())
	// Atomic, but sent again by go-redis when its reply is lost.
	script := redis.NewScript(`
		local used, cost, limit = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1]), tonumber(ARGV[2])
		local granted = 0
		if cost < 0 then granted = math.min(-cost, limit - used) elseif used + cost <= limit then granted = cost end
		redis.call('SET', KEYS[1], used + granted)
		return {granted, limit - used - granted}`)
	inScript := func(rdb *redis.Client, key string, cost int64) said {
		n, err := script.Run(context.Background(), rdb, []string{key}, cost, limit).Int64Slice()
		if err != nil || len(n) != 2 {
			t.Errorf("the script answers %v, %v", n, err)
			return said{maybe: true}
		}
		return said{known: true, granted: n[0], remaining: n[1]}
	}
	inTwoSteps := func(rdb *redis.Client, key string, cost int64) said {
		used, _ := rdb.Get(context.Background(), key).Int64()
		granted := int64(0)
		if cost < 0 {
			granted = min(-cost, limit-used)
		} else if used+cost <= limit {
			granted = cost
		}
		rdb.Set(context.Background(), key, used+granted, 0)
		return said{known: true, granted: granted, remaining: limit - used - granted}
	}
	for _, c := range []struct {
		name    string
		limiter func(*redis.Client, string, int64) said
		fault   bool
		wrong   bool
	}{
		{"a script", inScript, false, false},
		{"a script that is sent twice", inScript, true, true},
		{"GET, then SET", inTwoSteps, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy := redistest.NewProxy(t, "tcp", s.Addr())
			rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: 3})
			defer rdb.Close()
			if err := script.Load(t.Context(), rdb).Err(); err != nil {
				t.Fatal(err)
			}
			const rounds = 10
			refused := 0
			for round := range rounds {
				if c.fault {
					proxy.Set(redistest.Fault{Match: "evalsha", Skip: 2, Times: 2, CutAfter: true})
				}
				key := fmt.Sprint(t.Name(), round)
				history := recordCalls(func(cost int64) said { return c.limiter(rdb, key, cost) })
				switch res := porcupine.CheckOperationsTimeout(limiterModel(limit), history, 20*time.Second); res {
				case porcupine.Illegal:
					refused++
				case porcupine.Unknown:
					t.Error("the checker did not come to an end")
				}
			}
			t.Logf("%d of %d histories refused", refused, rounds)
			if c.wrong && refused < rounds/2 || !c.wrong && refused > 0 {
				t.Errorf("%d of %d histories were refused; the limiter is wrong: %v", refused, rounds, c.wrong)
			}
		})
	}
}
