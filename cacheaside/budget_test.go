package cacheaside_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// slowRedis delays each call to Redis.
type slowRedis struct{ by atomic.Int64 }

func (s *slowRedis) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *slowRedis) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		time.Sleep(time.Duration(s.by.Load()))
		return next(ctx, cmd)
	}
}

func (s *slowRedis) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		time.Sleep(time.Duration(s.by.Load()))
		return next(ctx, cmds)
	}
}

// TestOneBudget: a miss waits for Redis no longer than Timeout in all, however it is read
// and whatever the loader says, and its value is cached nevertheless. In a bubble, where
// time passes only while all wait.
func TestOneBudget(t *testing.T) {
	const timeout, loading = time.Second, 100 * time.Millisecond
	for _, delay := range []time.Duration{0, timeout * 2 / 5, timeout * 3 / 5, timeout * 9 / 10} {
		for name, call := range calls {
			for _, fails := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					_, rdb := redistest.Bubble(t)
					slow := new(slowRedis)
					rdb.AddHook(slow)
					load := func(context.Context, string) (string, error) {
						time.Sleep(loading)
						if fails {
							return "", errors.New("down")
						}
						return "v", nil
					}
					c := newCache(t, rdb, load, cacheaside.Config{Timeout: timeout, L1Entries: -1, NoCoalesce: true}, bulked(name, load, cacheaside.Funcs[string, string]{}))
					c.Get(t.Context(), "other") // so that scripts and the server's time are known
					slow.by.Store(int64(delay))
					begin := time.Now()
					v, err := call(t.Context(), c)
					if took := time.Since(begin); took > timeout+loading {
						t.Errorf("%s, calls to Redis take %v, failing %v: took %v; want at most Timeout, %v, and the load's %v", name, delay, fails, took, timeout, loading)
					}
					if (err != nil) != fails || err == nil && v != "v" {
						t.Errorf("%s, calls to Redis take %v: %q, %v", name, delay, v, err)
					}
					slow.by.Store(0)
					time.Sleep(3 * timeout)
					if _, ok, err := c.Peek(t.Context(), "k"); ok == fails || err != nil {
						t.Errorf("%s, calls to Redis take %v, failing %v: cached afterwards: %v, %v", name, delay, fails, ok, err)
					}
				})
			}
		}
	}
}
