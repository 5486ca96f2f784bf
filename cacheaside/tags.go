package cacheaside

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed tagread.lua
	tagReadSrc    string
	tagReadScript = roundtrip.NewScript(tagReadSrc)

	//go:embed tagbump.lua
	tagBumpSrc    string
	tagBumpScript = roundtrip.NewScript(tagBumpSrc)
)

// A tag is a key in Redis that holds a random version. An entry carries the
// versions its tags had before its value was loaded, and counts only as long as
// they are still the same. So a tag is invalidated by giving it another version,
// however many entries have it, and a version that gets lost invalidates too.

// tagKey is the key of a tag's version. Names of caches contain no '#' and are not empty,
// so it is no entry's.
func (c *Cache[K, V]) tagKey(tag string) string { return c.tagBase + tag }

// tagTTL is how long a version is kept after it was last captured: longer than
// any entry that carries it.
func (c *Cache[K, V]) tagTTL() int64 {
	return (c.cfg.keep(c.cfg.TTL) + c.cfg.lease() + time.Hour).Milliseconds()
}

func (c *Cache[K, V]) captureTag(ctx context.Context, tag string) *roundtrip.ScriptCmd {
	return tagReadScript.Cmd(ctx, []string{c.tagKey(tag)}, nonce(), c.tagTTL())
}

func (c *Cache[K, V]) bumpTag(ctx context.Context, tag string, cause Cause) *roundtrip.ScriptCmd {
	return tagBumpScript.Cmd(ctx, []string{c.tagKey(tag)}, nonce(), c.tagTTL(), c.tagChannel, c.message(KindKeys, true, cause, tag))
}

// readTags sends get together with a GET for each tag.
func (c *Cache[K, V]) readTags(ctx context.Context, r *ref[K], get *redis.StringCmd) ([]tagVersion, error) {
	cmds, gets := c.tagGets(ctx, r, []redis.Cmder{get})
	if err := c.conn.Do(ctx, "get", cmds...); err != nil {
		return nil, err
	}
	return tagVersions(r.tags, gets), nil
}

func (c *Cache[K, V]) tagGets(ctx context.Context, r *ref[K], cmds []redis.Cmder) ([]redis.Cmder, []*redis.StringCmd) {
	gets := make([]*redis.StringCmd, len(r.tags))
	for i, tag := range r.tags {
		gets[i] = redis.NewStringCmd(ctx, "get", c.tagKey(tag))
		cmds = append(cmds, gets[i])
	}
	return cmds, gets
}

func tagVersions(tags []string, gets []*redis.StringCmd) []tagVersion {
	versions := make([]tagVersion, len(tags))
	for i, tag := range tags {
		versions[i].hash = tagHash(tag)
		copy(versions[i].version[:], gets[i].Val()) // none: zeros, which are nobody's version
	}
	return versions
}

// captureTags reads the versions of a key's tags, making up those that are missing.
func (c *Cache[K, V]) captureTags(ctx context.Context, r *ref[K]) ([]tagVersion, error) {
	cmds := make([]redis.Cmder, len(r.tags))
	captures := make(map[string]*roundtrip.ScriptCmd, len(r.tags))
	for i, tag := range r.tags {
		captures[tag] = c.captureTag(ctx, tag)
		cmds[i] = captures[tag]
	}
	if err := c.conn.Do(ctx, "tags", cmds...); err != nil {
		return nil, err
	}
	return c.captured(r.tags, captures)
}

// captured reads the replies to captureTag.
func (c *Cache[K, V]) captured(tags []string, captures map[string]*roundtrip.ScriptCmd) ([]tagVersion, error) {
	if len(tags) == 0 {
		return nil, nil
	}
	versions := make([]tagVersion, len(tags))
	for i, tag := range tags {
		if err := c.conn.Classify("tags", captures[tag].Err()); err != nil {
			return nil, err
		}
		versions[i].hash = tagHash(tag)
		version, _ := captures[tag].Val().(string)
		copy(versions[i].version[:], version)
	}
	return versions, nil
}

// sameTags reports whether an entry's tags are the key's, at their present
// versions. Versions of this package that did not sort tags wrote them in any order.
func sameTags(entry, now []tagVersion) bool {
	if slices.Equal(entry, now) {
		return true
	}
	if len(entry) != len(now) || len(now) < 2 {
		return false
	}
	entry, now = slices.Clone(entry), slices.Clone(now)
	byHash := func(a, b tagVersion) int { return cmp.Compare(a.hash, b.hash) }
	slices.SortFunc(entry, byHash)
	slices.SortFunc(now, byHash)
	return slices.Equal(entry, now)
}

// nonce returns 16 random bytes.
func nonce() string {
	var b [16]byte
	rand.Read(b[:])
	return string(b[:])
}

// sharers are the caches of this process that share tags, by their prefix: what one does to
// a tag holds at once for the others, which otherwise would have to wait until they are told.
var sharers sharing

type sharing struct {
	mu sync.RWMutex
	m  map[string]map[sharer]struct{}
}

// sharer is a cache.
type sharer interface {
	forgetTag(tag string)
	queueTag(tag string) bool
}

func (s *sharing) add(prefix string, c sharer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string]map[sharer]struct{})
	}
	if s.m[prefix] == nil {
		s.m[prefix] = make(map[sharer]struct{})
	}
	s.m[prefix][c] = struct{}{}
}

func (s *sharing) remove(prefix string, c sharer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m[prefix], c)
	if len(s.m[prefix]) == 0 {
		delete(s.m, prefix)
	}
}

// others are the caches that share tags with one, without itself.
func (s *sharing) others(prefix string, c sharer) []sharer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.m) == 0 {
		return nil
	}
	var all []sharer
	for o := range s.m[prefix] {
		if o != c {
			all = append(all, o)
		}
	}
	return all
}

// forgetTags forgets tags in this process, in all caches that share them.
func (c *Cache[K, V]) forgetTags(tags []string) {
	if len(tags) == 0 {
		return
	}
	c.forget(nil, tags)
	if !c.cfg.SharedTags {
		return
	}
	for _, o := range sharers.others(c.cfg.Prefix, c) {
		for _, tag := range tags {
			o.forgetTag(tag)
		}
	}
}

func (c *Cache[K, V]) forgetTag(tag string) { c.forget(nil, []string{tag}) }

// queueTag notes an invalidation of a tag that failed, to be tried again.
func (c *Cache[K, V]) queueTag(tag string) bool {
	queued := c.pending.addTag(tag)
	c.startRetry()
	return queued
}
