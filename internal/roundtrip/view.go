package roundtrip

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// view sends our calls on a single server's client. It shares the connection pool
// of the user's client, but its sockets obey context deadlines, and it leaves
// retries to retry.go: go-redis' own forget the reason when a deadline ends them,
// and with it whether the command may have been executed.
//
// It sits inside the user's client as its innermost hook, so that hooks which
// were there before, such as tracing, see our calls too. The user's own calls
// pass it by.
type view struct {
	rdb *redis.Client
	eng *engine // lives as long as the user's client
}

func newView(c *redis.Client, e *engine) *view {
	o := c.Options()
	// WithTimeout gives the view its own copy of the options, which no call has
	// used yet.
	rdb := c.WithTimeout(o.ReadTimeout)
	vo := rdb.Options()
	vo.WriteTimeout = o.WriteTimeout
	vo.ContextTimeoutEnabled = true
	vo.MaxRetries = 0
	return &view{rdb: rdb, eng: e}
}

// ours marks the context of our calls.
type ours struct{ context.Context }

type oursKey struct{}

func (c ours) Value(key any) any {
	if key == (oursKey{}) {
		return true
	}
	return c.Context.Value(key)
}

func (v *view) DialHook(next redis.DialHook) redis.DialHook { return wired{}.DialHook(next) }

func (v *view) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if ctx.Value(oursKey{}) == nil {
			return next(ctx, cmd)
		}
		return v.rdb.Process(ctx, cmd)
	}
}

func (v *view) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if ctx.Value(oursKey{}) == nil {
			return next(ctx, cmds)
		}
		if _, multi := cmds[0].(*redis.StatusCmd); multi && cmds[0].Name() == "multi" {
			return next(ctx, cmds) // a transaction, which our calls never are
		}
		p := v.rdb.Pipeline()
		if err := p.BatchProcess(ctx, cmds...); err != nil {
			return err
		}
		_, err := p.Exec(ctx)
		return err
	}
}
