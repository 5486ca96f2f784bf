package cacheaside

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed fence.lua
	fenceSrc    string
	fenceScript = roundtrip.NewScript(fenceSrc)

	//go:embed unfence.lua
	unfenceSrc    string
	unfenceScript = roundtrip.NewScript(unfenceSrc)
)

// Update changes the source by write, and no reader sees the old value of keys
// after another has seen the new one (first levels of other processes aside, see
// [Config.MaxStaleness]): it fences the keys, calls write, and lifts the fences.
// While a key is fenced nothing is cached for it and every Get loads.
//
// write is given a context that ends with ctx, and in any case before the fences
// do. If it fails its error is returned; the keys are then simply no longer
// cached. A process that dies meanwhile leaves the keys fenced for at most
// [Config.FenceTTL].
//
// With Redis down the write is done nevertheless. An error that matches
// [ErrFenceLost] or [ErrInvalidationQueued] says that write succeeded, but that the
// promise above does not hold this time.
func (c *Cache[K, V]) Update(ctx context.Context, write func(ctx context.Context) error, keys ...K) (err error) {
	f, err := c.Fence(ctx, keys...)
	if err != nil {
		return err
	}
	defer func() { // also after a panic in write
		err = errors.Join(err, f.Done(ctx))
	}()
	wctx, cancel := context.WithTimeout(ctx, c.cfg.FenceTTL-c.cfg.FenceTTL/4)
	defer cancel()
	return write(wctx)
}

// A Fence keeps keys from being cached, see [Cache.Fence].
type Fence struct {
	once sync.Once
	done func(ctx context.Context) error
	err  error
}

// Fence puts a fence around keys until Done is called or [Config.FenceTTL] is over.
// It is for writes that do not fit into a function for Update. Fences of several
// callers around one key stand independently of each other.
//
// The error is a veto, or about a key. Redis being down is not an error here; Done
// reports it.
func (c *Cache[K, V]) Fence(ctx context.Context, keys ...K) (*Fence, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	refs, err := c.refs(keys)
	if err != nil {
		return nil, err
	}
	inv := Invalidation{Kind: KindKeys, Cause: CauseUpdate, Keys: texts(refs)}
	if refs, err = c.beforeKeys(ctx, &inv, refs); err != nil {
		return nil, err
	}
	token := nonce()
	lost := 0
	c.forget(refs, nil)
	cmds := make([]redis.Cmder, len(refs))
	for i := range refs {
		cmds[i] = fenceScript.Cmd(ctx, []string{refs[i].entry}, token, c.cfg.FenceTTL.Milliseconds(),
			c.channelName, c.message(KindKeys, false, CauseUpdate, refs[i].text))
	}
	for _, err := range c.each(context.WithoutCancel(ctx), "fence", cmds) {
		if err != nil {
			lost++
			c.report("fence", err)
		}
	}
	c.forget(refs, nil)
	f := new(Fence)
	f.done = func(ctx context.Context) error { return c.lift(context.WithoutCancel(ctx), refs, inv, token, lost) }
	return f, nil
}

// Done lifts the fence, whether the write succeeded or not. Further calls return
// the same error and do nothing. It is not cancelled with ctx.
func (f *Fence) Done(ctx context.Context) error {
	f.once.Do(func() { f.err = f.done(ctx) })
	return f.err
}

// lift ends a fence, of which some keys' part was lost already.
func (c *Cache[K, V]) lift(ctx context.Context, refs []ref[K], inv Invalidation, token string, lost int) error {
	cmds := make([]redis.Cmder, len(refs))
	for i := range refs {
		cmds[i] = unfenceScript.Cmd(ctx, []string{refs[i].entry}, token,
			c.channelName, c.message(KindKeys, false, CauseUpdate, refs[i].text)).Once()
	}
	errs := c.each(ctx, "unfence", cmds)
	c.forget(refs, nil)
	c.stats.invalidations.Add(uint64(len(refs)))
	c.emit(Invalidation{Kind: KindKeys, Cause: CauseUpdate, Keys: inv.Keys})

	var failed []ref[K]
	var err error
	for i, cmd := range cmds {
		if errs[i] != nil {
			failed = append(failed, refs[i])
			c.report("unfence", errs[i])
			continue
		}
		if held, _ := cmd.(*roundtrip.ScriptCmd).Int(); held == 0 {
			lost++
		}
	}
	if len(failed) > 0 {
		// Unknown whether the fence still stands; where it does, it ends by
		// itself, where it does not, what came in its place must go.
		lost += len(failed)
		err = c.send(ctx, failed, nil, CauseUpdate)
	}
	if len(inv.Tags) > 0 {
		err = errors.Join(err, c.send(ctx, nil, inv.Tags, CauseUpdate))
	}
	if lost > 0 {
		c.stats.fencesLost.Add(1)
		err = errors.Join(fmt.Errorf("%w: %d of %d keys", ErrFenceLost, min(lost, len(refs)), len(refs)), err)
	}
	c.after(ctx, inv, err)
	return err
}
