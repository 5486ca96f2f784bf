package cacheaside

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed invalidate.lua
	invalidateSrc    string
	invalidateScript = roundtrip.NewScript(invalidateSrc)

	//go:embed set.lua
	setSrc    string
	setScript = roundtrip.NewScript(setSrc)
)

// clearTimeout bounds one step of a scan, which looks at 1,000 keys.
const clearTimeout = time.Second

// chunk is how many commands go into one call to Redis.
const chunk = 500

// Invalidate removes keys from the cache, here and everywhere: when it has
// returned nil, no Get that starts later returns a value that the source had
// replaced before Invalidate was called (from another process' first level for
// as long as its announcement takes, at most MaxStaleness). Loads that began
// before are not cached. Call it after the source was changed.
//
// It is not cancelled with ctx. An error that matches [ErrUnavailable] means that
// some keys may still be cached; they are tried again, see
// [ErrInvalidationQueued].
func (c *Cache[K, V]) Invalidate(ctx context.Context, keys ...K) error {
	return c.invalidate(ctx, keys, nil)
}

// InvalidateTags invalidates all keys that have one of the tags, see [Funcs.Tags],
// at the cost of one key for each tag. Otherwise it is like Invalidate.
func (c *Cache[K, V]) InvalidateTags(ctx context.Context, tags ...string) error {
	return c.invalidate(ctx, nil, tags)
}

func (c *Cache[K, V]) invalidate(ctx context.Context, keys []K, tags []string) error {
	if c.closed.Load() {
		return ErrClosed
	}
	refs, err := c.refs(keys)
	if err != nil {
		return err
	}
	inv := Invalidation{Kind: KindKeys, Cause: CauseInvalidate, Keys: texts(refs), Tags: append([]string(nil), tags...)}
	if refs, err = c.beforeKeys(ctx, &inv, refs); err != nil {
		return err
	}
	err = c.send(context.WithoutCancel(ctx), refs, inv.Tags, CauseInvalidate)
	c.after(ctx, inv, err)
	return err
}

// refs returns keys in their other forms, each once.
func (c *Cache[K, V]) refs(keys []K) ([]ref[K], error) {
	refs := make([]ref[K], 0, len(keys))
	for _, key := range keys {
		r, err := c.ref(key)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	return unique(refs), nil
}

// unique drops refs that repeat an earlier one.
func unique[K comparable](refs []ref[K]) []ref[K] {
	if len(refs) < 2 {
		return refs
	}
	seen := make(map[string]struct{}, len(refs))
	return slices.DeleteFunc(refs, func(r ref[K]) bool {
		_, twice := seen[r.entry]
		seen[r.entry] = struct{}{}
		return twice
	})
}

func texts[K comparable](refs []ref[K]) []string {
	if len(refs) == 0 {
		return nil
	}
	out := make([]string, len(refs))
	for i := range refs {
		out[i] = refs[i].text
	}
	return out
}

// beforeKeys runs the veto hook, and returns refs with those that it added.
func (c *Cache[K, V]) beforeKeys(ctx context.Context, inv *Invalidation, refs []ref[K]) ([]ref[K], error) {
	if err := c.before(ctx, inv); err != nil {
		c.after(ctx, *inv, err)
		return nil, err
	}
	for _, text := range inv.Keys[min(len(refs), len(inv.Keys)):] {
		r, err := c.refOfText(text)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	return unique(refs), nil
}

// refOfText makes the ref of a key that is known by its text alone, without its
// tags: a text need not tell the key.
func (c *Cache[K, V]) refOfText(text string) (ref[K], error) {
	if len(text) > maxKey {
		return ref[K]{}, errKeyTooLarge
	}
	key, ok := c.keys.parse(text)
	if !ok && !c.keys.marshal {
		return ref[K]{}, fmt.Errorf("%w: a text that is not one of a %T", ErrBadKey, key)
	}
	return c.refOf(key, c.base+text), nil
}

// send invalidates keys and tags at Redis and in this process, and queues what
// failed.
func (c *Cache[K, V]) send(ctx context.Context, refs []ref[K], tags []string, cause Cause) error {
	c.forget(refs, nil)
	c.forgetTags(tags)
	cmds := make([]redis.Cmder, 0, len(refs)+len(tags))
	for i := range refs {
		cmds = append(cmds, c.invalidateCmd(ctx, &refs[i], cause))
	}
	for _, tag := range tags {
		cmds = append(cmds, c.bumpTag(ctx, tag, cause))
	}
	errs := c.each(ctx, "invalidate", cmds)
	c.stats.invalidations.Add(uint64(len(cmds)))

	var first error
	queued := true
	for i, err := range errs {
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		if i < len(refs) {
			queued = c.pending.addKey(refs[i].entry, refs[i].text) && queued
			continue
		}
		tag := tags[i-len(refs)]
		queued = c.pending.addTag(tag) && queued
		if c.cfg.SharedTags {
			for _, o := range sharers.others(c.cfg.Prefix, c) {
				queued = o.queueTag(tag) && queued
			}
		}
	}
	// A reader here may have found the old value while the command was on its way.
	c.forget(refs, nil)
	c.forgetTags(tags)
	c.emit(Invalidation{Kind: KindKeys, Cause: cause, Keys: texts(refs), Tags: tags})
	if first == nil {
		return nil
	}
	c.report("invalidate", first)
	c.startRetry()
	if queued {
		return errors.Join(ErrInvalidationQueued, first)
	}
	return first
}

func (c *Cache[K, V]) invalidateCmd(ctx context.Context, r *ref[K], cause Cause) *roundtrip.ScriptCmd {
	return invalidateScript.Cmd(ctx, []string{r.entry}, c.channelName, c.message(KindKeys, false, cause, r.text))
}

// each runs commands in calls of bounded size and returns an error for each.
func (c *Cache[K, V]) each(ctx context.Context, op string, cmds []redis.Cmder) []error {
	errs := make([]error, len(cmds))
	for at := 0; at < len(cmds); at += chunk {
		part := cmds[at:min(at+chunk, len(cmds))]
		if err := c.conn.DoEach(ctx, op, part...); err != nil {
			for i := range part {
				errs[at+i] = err
			}
			continue
		}
		for i, cmd := range part {
			errs[at+i] = c.conn.Classify(op, cmd.Err())
		}
	}
	return errs
}

// forget drops keys and tags in this process: what is kept of them, and the loads
// under way, for callers that come from now on.
func (c *Cache[K, V]) forget(refs []ref[K], tags []string) {
	for i := range refs {
		c.l1.drop(&refs[i])
		c.flights.bar(&refs[i])
	}
	for _, tag := range tags {
		c.l1.dropTag(tag)
		c.flights.barTag(tag)
	}
}

// forgetAll is forget for everything.
func (c *Cache[K, V]) forgetAll() {
	c.l1.purge()
	c.flights.barTag("")
}

// Clear removes all keys of this cache, by looking at every key in Redis: it
// takes about a second for each million of them, whosever they are. Fenced keys
// stay fenced. For a quick way to invalidate everything, give all keys a tag.
func (c *Cache[K, V]) Clear(ctx context.Context) error {
	if c.closed.Load() {
		return ErrClosed
	}
	inv := Invalidation{Kind: KindClear, Cause: CauseInvalidate}
	err := c.before(ctx, &inv)
	if err == nil {
		c.forgetAll()
		err = c.clear(context.WithoutCancel(ctx))
		c.forgetAll()
		c.emit(inv)
	}
	c.after(ctx, inv, err)
	return err
}

func (c *Cache[K, V]) clear(ctx context.Context) error {
	pattern := escapeGlob(c.base) + "*"
	err := c.conn.EachMaster(ctx, func(ctx context.Context, master redis.UniversalClient) error {
		var cursor uint64
		for {
			part, cancel := context.WithTimeout(ctx, max(c.cfg.Timeout, clearTimeout))
			keys, next, err := master.Scan(part, cursor, pattern, 1000).Result()
			cancel()
			if err != nil {
				return c.conn.Classify("clear", err)
			}
			cmds := make([]redis.Cmder, len(keys))
			for i, key := range keys {
				cmds[i] = invalidateScript.Cmd(ctx, []string{key}, "", "")
			}
			for _, err := range c.each(ctx, "clear", cmds) {
				if err != nil {
					return err
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
	if err != nil {
		return err
	}
	return c.conn.Do(ctx, "clear", redis.NewIntCmd(ctx, "publish", c.channelName, c.message(KindClear, false, CauseInvalidate, "")))
}

// escapeGlob makes Redis' patterns match s literally.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// Set stores value for key, without asking the loader, and breaks the lease of
// whoever loads it now. A fenced key stays fenced, and nothing is stored.
//
// The last Set wins, and that need not be the one whose value is the newest at
// the source. With [Funcs.Version] the newest wins against what is stored, but
// not against what was invalidated meanwhile. Update has neither gap.
//
// The error means that the value was not stored, or maybe; the key is then
// invalidated, at once or later, as for Invalidate.
func (c *Cache[K, V]) Set(ctx context.Context, key K, value V) error {
	if c.closed.Load() {
		return ErrClosed
	}
	r, err := c.ref(key)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	e := &entry{kind: kindValue, prefix: newPrefix(kindValue)}
	if err := c.pack.pack(e, value); err != nil {
		return errors.Join(fmt.Errorf("cacheaside: set: %w", err), c.send(ctx, []ref[K]{r}, nil, CauseSet))
	}
	version := ""
	if c.fn.Version != nil {
		e.version = c.version(value)
		version = string(binary.BigEndian.AppendUint64(nil, e.version))
	}
	if len(r.tags) > 0 {
		if e.tags, err = c.captureTags(ctx, &r); err != nil {
			return errors.Join(err, c.send(ctx, []ref[K]{r}, nil, CauseSet))
		}
	}
	c.conn.LearnServerTime(ctx, "set", r.entry)
	e.written = c.now(r.entry)
	e.fresh = max(c.jitter(c.lifetime(value)).Milliseconds(), 1)
	blob := appendEntry(nil, r.entry, e)
	c.forget([]ref[K]{r}, nil)
	cmd := setScript.Cmd(ctx, []string{r.entry}, bytesToString(blob), c.keepFor(e).Milliseconds(), version, offRest,
		c.channelName, c.message(KindKeys, false, CauseSet, r.text)).Once()
	_, err = c.conn.Run(ctx, "set", cmd)
	c.forget([]ref[K]{r}, nil)
	if err != nil {
		return errors.Join(err, c.send(ctx, []ref[K]{r}, nil, CauseSet))
	}
	c.emit(Invalidation{Kind: KindKeys, Cause: CauseSet, Keys: []string{r.text}})
	return nil
}

// version is the user's function. One that panics gives no version.
func (c *Cache[K, V]) version(value V) (v uint64) {
	if c.fn.Version == nil {
		return 0
	}
	c.shield(func() { v = c.fn.Version(value) })
	return v
}
