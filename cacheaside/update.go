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
// cached. If it fails with the end of a context, or any other time-out, its effect
// may still come, so the fences are not lifted: for [Config.FenceTTL] from then on
// nothing is cached for the keys. A process that dies meanwhile leaves the keys
// fenced for at most FenceTTL.
//
// With Redis down the write is done nevertheless. An error that matches
// [ErrFenceLost] or [ErrInvalidationQueued] says that write succeeded, but that the
// promise above does not hold this time. If write failed no error matches either of
// them.
func (c *Cache[K, V]) Update(ctx context.Context, write func(ctx context.Context) error, keys ...K) (err error) {
	f, err := c.Fence(ctx, keys...)
	if err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, c.cfg.FenceTTL-c.cfg.FenceTTL/4)
	defer cancel()
	returned := false
	defer func() {
		if !returned { // it panicked
			f.leave(ctx)
		}
	}()
	err = write(wctx)
	returned = true
	switch {
	case err == nil:
		return f.Done(ctx)
	case isTimeout(err) || wctx.Err() != nil:
		f.leave(ctx)
		return err
	}
	if after := f.Done(ctx); after != nil {
		// As text: its sentinels say that the write is done.
		err = fmt.Errorf("%w (the keys' fences: %v)", err, after)
	}
	return err
}

// isTimeout reports whether what an error is about may still happen.
func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// A Fence keeps keys from being cached, see [Cache.Fence].
type Fence struct {
	once sync.Once
	done func(ctx context.Context) error
	stay func(ctx context.Context)
	err  error
}

// leave lets the fence stand for FenceTTL from now on.
func (f *Fence) leave(ctx context.Context) {
	f.once.Do(func() { f.stay(ctx) })
}

// Fence puts a fence around keys until Done is called or [Config.FenceTTL] is over.
// It is for writes that do not fit into a function for Update. Fences of several
// callers around one key stand independently of each other. After a write of which
// you don't know whether it will still take effect, don't call Done: the fence ends by
// itself.
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
	token := nonce()[:fenceToken]
	lost := c.putFence(context.WithoutCancel(ctx), refs, token)
	f := new(Fence)
	f.stay = func(ctx context.Context) {
		err := error(nil)
		if c.putFence(context.WithoutCancel(ctx), refs, token) > 0 {
			err = c.send(context.WithoutCancel(ctx), refs, nil, CauseUpdate)
		}
		c.after(ctx, inv, err)
	}
	f.done = func(ctx context.Context) error { return c.lift(context.WithoutCancel(ctx), refs, inv, token, lost) }
	return f, nil
}

// fenceToken is the size of a fence's token; in Redis its end follows, 6 bytes.
const fenceToken = 10

// putFence puts a fence around keys, or prolongs it, and returns for how many that
// failed.
func (c *Cache[K, V]) putFence(ctx context.Context, refs []ref[K], token string) (lost int) {
	c.forget(refs, nil)
	cmds := make([]redis.Cmder, len(refs))
	for i := range refs {
		cmds[i] = fenceScript.Cmd(ctx, []string{refs[i].entry}, token, c.cfg.FenceTTL.Milliseconds(),
			c.channelName, c.message(KindKeys, false, CauseUpdate, refs[i].text))
	}
	for _, err := range c.each(ctx, "fence", cmds) {
		if err != nil {
			lost++
			c.report("fence", err)
		}
	}
	c.forget(refs, nil)
	return lost
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
