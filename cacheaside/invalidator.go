package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Invalidator is for services that write what others read through a [Cache]: it
// invalidates their keys, and has no loader and no Get. Make one with [NewInvalidator]; it is
// safe for concurrent use.
type Invalidator[K comparable] struct{ c *Cache[K, struct{}] }

// NewInvalidator returns an invalidator for the caches called name. Of cfg it uses Prefix,
// Timeout, FenceTTL, SharedTags, NoCoalesce, Hooks and OnInvalidate; the others, TTL too,
// may be left out. Prefix and SharedTags must be those of the caches, and K their type of
// keys.
//
// New dials nothing, and rdb stays the caller's to close. The error lists everything that
// is wrong with the arguments.
func NewInvalidator[K comparable](rdb redis.UniversalClient, name string, cfg Config) (*Invalidator[K], error) {
	if cfg.TTL == 0 {
		cfg.TTL = time.Hour
	}
	cfg.L1Entries, cfg.L1Weight = -1, 0
	c, err := newCache(rdb, name, func(context.Context, K) (struct{}, error) { return struct{}{}, errNoLoader }, cfg)
	if err != nil {
		return nil, fmt.Errorf("cacheaside: new invalidator: %w", err)
	}
	c.open()
	return &Invalidator[K]{c}, nil
}

var errNoLoader = errors.New("cacheaside: an invalidator has no loader")

// Invalidate removes keys from the caches, see [Cache.Invalidate].
func (i *Invalidator[K]) Invalidate(ctx context.Context, keys ...K) error {
	return i.c.Invalidate(ctx, keys...)
}

// InvalidateTags invalidates all keys that have one of the tags, see
// [Cache.InvalidateTags].
func (i *Invalidator[K]) InvalidateTags(ctx context.Context, tags ...string) error {
	return i.c.InvalidateTags(ctx, tags...)
}

// Clear removes all keys of the caches, see [Cache.Clear].
func (i *Invalidator[K]) Clear(ctx context.Context) error { return i.c.Clear(ctx) }

// Update changes the source by write, behind a fence around keys, see [Cache.Update].
func (i *Invalidator[K]) Update(ctx context.Context, write func(ctx context.Context) error, keys ...K) error {
	return i.c.Update(ctx, write, keys...)
}

// Fence puts a fence around keys, see [Cache.Fence].
func (i *Invalidator[K]) Fence(ctx context.Context, keys ...K) (*Fence, error) {
	return i.c.Fence(ctx, keys...)
}

// Stats returns the counts of this invalidator.
func (i *Invalidator[K]) Stats() Stats { return i.c.Stats() }

// Close ends the invalidator's goroutines, see [Cache.Close]. What is queued is not tried
// again.
func (i *Invalidator[K]) Close() error { return i.c.Close() }
