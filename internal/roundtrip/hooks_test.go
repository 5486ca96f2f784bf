package roundtrip_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// counting is a hook as tracing libraries install it.
type counting struct{ single, pipelines atomic.Int64 }

func (h *counting) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h *counting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.single.Add(1)
		return next(ctx, cmd)
	}
}

func (h *counting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.pipelines.Add(1)
		return next(ctx, cmds)
	}
}

// The hooks that the user's client has, for tracing, see what a Conn sends.
func TestUsersHooksSeeCommands(t *testing.T) {
	_, rdb := redistest.Mini(t)
	var h counting
	rdb.AddHook(&h)
	c := newConn(t, rdb, roundtrip.Config{})
	ctx := t.Context()
	mustIncr(t, c, "first") // with a TIME
	mustIncr(t, c, "n")
	c.Do(ctx, "load", redis.NewStringCmd(ctx, "get", "a"), redis.NewStringCmd(ctx, "get", "b"))
	if h.single.Load() == 0 || h.pipelines.Load() == 0 {
		t.Errorf("hook saw %d commands and %d pipelines; want some of each", h.single.Load(), h.pipelines.Load())
	}
}
