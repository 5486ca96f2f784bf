package cacheaside

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// pending holds invalidations that failed. As long as a key is in it this process
// neither reads the key from Redis nor stores it.
type pending struct {
	n        atomic.Int64
	mu       sync.Mutex
	keys     map[string]string // entry to text
	tags     map[string]struct{}
	retrying bool
}

// maxPending bounds what is kept to be tried again: with keys of 4,096 bytes, the
// longest, 42 MB.
const maxPending = 10_000

func (p *pending) addKey(entry, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.keys[entry]; !ok && p.full() {
		return false
	}
	if p.keys == nil {
		p.keys = make(map[string]string)
	}
	p.keys[entry] = text
	p.n.Store(int64(len(p.keys) + len(p.tags)))
	return true
}

func (p *pending) addTag(tag string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.tags[tag]; !ok && p.full() {
		return false
	}
	if p.tags == nil {
		p.tags = make(map[string]struct{})
	}
	p.tags[strings.Clone(tag)] = struct{}{} // it may be a part of something large
	p.n.Store(int64(len(p.keys) + len(p.tags)))
	return true
}

func (p *pending) full() bool { return len(p.keys)+len(p.tags) >= maxPending }

func (p *pending) count() int { return int(p.n.Load()) }

// has reports whether a key or one of its tags is pending.
func (p *pending) has(entry string, tags []string) bool {
	if p.n.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.keys[entry]; ok {
		return true
	}
	for _, tag := range tags {
		if _, ok := p.tags[tag]; ok {
			return true
		}
	}
	return false
}

// some returns up to n of each.
func (p *pending) some(n int) (texts, tags []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range p.keys {
		if len(texts) == n {
			break
		}
		texts = append(texts, text)
	}
	for tag := range p.tags {
		if len(tags) == n {
			break
		}
		tags = append(tags, tag)
	}
	return texts, tags
}

func (p *pending) removeKey(entry string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.keys, entry)
	p.n.Store(int64(len(p.keys) + len(p.tags)))
}

func (p *pending) removeTag(tag string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tags, tag)
	p.n.Store(int64(len(p.keys) + len(p.tags)))
}

// startRetry makes sure that pending invalidations are tried again.
func (c *Cache[K, V]) startRetry() {
	c.life.Lock()
	defer c.life.Unlock()
	p := &c.pending
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.retrying {
		p.retrying = true
		c.spawn(c.retry)
	}
}

// retry tries pending invalidations again until none is left.
func (c *Cache[K, V]) retry() {
	p := &c.pending
	pause := 20 * time.Millisecond
	for {
		sleep(c.closing, pause/2+rand.N(pause))
		p.mu.Lock()
		if c.closing.Err() != nil || len(p.keys)+len(p.tags) == 0 {
			p.retrying = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		if c.retryOnce(c.closing) {
			pause = 20 * time.Millisecond
		} else {
			pause = min(2*pause, time.Second)
		}
	}
}

// retryOnce tries some and reports whether all of them succeeded.
func (c *Cache[K, V]) retryOnce(ctx context.Context) bool {
	texts, tags := c.pending.some(chunk)
	var refs []ref[K]
	var cmds []redis.Cmder
	for _, text := range texts {
		r, err := c.refOfText(text)
		if err != nil {
			continue
		}
		refs = append(refs, r)
		cmds = append(cmds, c.invalidateCmd(ctx, &r, CauseRetry))
	}
	for _, tag := range tags {
		cmds = append(cmds, c.bumpTag(ctx, tag, CauseRetry))
	}
	all := true
	for i, err := range c.each(ctx, "invalidate", cmds) {
		switch {
		case err != nil:
			all = false
		case i < len(refs):
			c.forget(refs[i:i+1], nil)
			c.pending.removeKey(refs[i].entry)
			c.emit(Invalidation{Kind: KindKeys, Cause: CauseRetry, Keys: []string{refs[i].text}})
		default:
			tag := tags[i-len(refs)]
			c.forgetTags([]string{tag})
			c.pending.removeTag(tag)
			c.emit(Invalidation{Kind: KindKeys, Cause: CauseRetry, Tags: []string{tag}})
		}
	}
	return all
}

// backoffs remembers keys whose loader failed.
type backoffs struct {
	n  atomic.Int64
	mu sync.Mutex
	m  map[string]backoff
}

type backoff struct {
	failures int
	until    int64 // by mono
}

// maxBackoffs bounds the keys remembered, to 42 MB with keys of 4,096 bytes; when it is
// reached all are forgotten.
const maxBackoffs = 10_000

func (b *backoffs) note(entry string, pause time.Duration) {
	if pause <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil || len(b.m) >= maxBackoffs {
		b.m = make(map[string]backoff)
	}
	f := b.m[entry]
	pause <<= min(f.failures, 5)
	f.failures++
	f.until = mono() + int64(pause/2) + int64(rand.N(pause/2+1))
	b.m[entry] = f
	b.n.Store(int64(len(b.m)))
}

func (b *backoffs) clear(entry string) {
	if b.n.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.m, entry)
	b.n.Store(int64(len(b.m)))
}

// pausing reports whether a key's loader failed so recently that it is not to be
// called while there is another way.
func (b *backoffs) pausing(entry string) bool {
	if b.n.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.m[entry]
	return ok && mono() < f.until
}

// blocked reports whether a key is neither to be read from the cache nor stored in it.
func (c *Cache[K, V]) blocked(r *ref[K]) bool {
	return c.pending.has(r.entry, r.tags) || c.bypass.Load()
}
