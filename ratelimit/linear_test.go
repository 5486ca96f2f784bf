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
	maybe              bool // unknown, and perhaps carried out
	granted, remaining int64
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
				if out.granted == after-used && out.remaining == limit-after {
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

// Histories with lost replies are linearizable: each call happened once between
// call and return, or, if its reply was lost, at most once since.
func TestHistoriesAreLinearizable(t *testing.T) {
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
					proxy.Set(f)
					var mu sync.Mutex
					var history []porcupine.Operation
					start := time.Now()
					k := fmt.Sprint(key, round)
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
								var r ratelimit.Result
								var err error
								if cost < 0 {
									r, err = l.AllowUpTo(context.Background(), k, -cost)
								} else {
									r, err = l.AllowN(context.Background(), k, cost)
								}
								op.Return = int64(time.Since(start))
								out := said{known: true, granted: r.Granted, remaining: r.Remaining}
								if err != nil || r.Err != nil {
									out = said{maybe: roundtrip.MaybeExecuted(errors.Join(err, r.Err))}
									if out.maybe {
										op.Return = math.MaxInt64 // whenever it is carried out
									}
								}
								op.Output = out
								mu.Lock()
								history = append(history, op)
								mu.Unlock()
							}
						})
					}
					wg.Wait()
					struck := proxy.Hits()
					proxy.Clear()
					if struck == 0 {
						t.Errorf("fault %+v never struck", f)
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
