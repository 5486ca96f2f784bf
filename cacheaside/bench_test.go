package cacheaside_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// article is a value of about 300 bytes.
type article struct {
	ID     int
	Title  string
	Body   string
	Author string
}

func loadArticle(_ context.Context, id int) (article, error) {
	return article{id, "A title of usual length", "A body that makes the value as large as values in caches often are: a few hundred bytes. " +
		"The text itself says nothing, and says it at some length, since that is what it is for.", "nobody"}, nil
}

// callers runs f on n goroutines.
func callers(b *testing.B, n int, f func(i int)) {
	b.ReportAllocs()
	if n == 1 {
		for i := 0; b.Loop(); i++ {
			f(i)
		}
		return
	}
	b.SetParallelism((n + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
	var next atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		i := int(next.Add(1_000_003))
		for pb.Next() {
			f(i)
			i++
		}
	})
}

// raw stores articles as they are, to show what the codec costs.
var raw = cacheaside.CodecFuncs("raw",
	func(v any) ([]byte, error) {
		a := v.(article)
		return strconv.AppendInt([]byte(a.Title+a.Body+a.Author), int64(a.ID), 10), nil
	},
	func(data []byte, v any) error { v.(*article).Body = string(data); return nil })

func BenchmarkGet(b *testing.B) {
	s := redistest.Start(b)
	rdb := s.Client()
	ctx := b.Context()
	for _, n := range []int{1, 64} {
		run := func(name string, cfg cacheaside.Config, f func(c *cacheaside.Cache[int, article], i int) error, warm int) {
			b.Run(fmt.Sprintf("%s/callers=%d", name, n), func(b *testing.B) {
				rdb.FlushAll(ctx)
				c := newCache(b, rdb, loadArticle, cfg, cacheaside.Funcs[int, article]{LoadMany: func(ctx context.Context, ids []int) (map[int]article, error) {
					out := make(map[int]article, len(ids))
					for _, id := range ids {
						out[id], _ = loadArticle(ctx, id)
					}
					return out, nil
				}})
				for i := range warm {
					c.Get(ctx, i)
				}
				if cfg.L1Entries >= 0 {
					eventually(b, "first level in use", func() bool {
						e, _ := c.GetEntry(ctx, 0)
						return e.Source == cacheaside.SourceL1
					})
				}
				callers(b, n, func(i int) {
					if err := f(c, i); err != nil {
						b.Error(err)
					}
				})
			})
		}
		get := func(c *cacheaside.Cache[int, article], i int) error {
			_, err := c.Get(ctx, i%100)
			return err
		}
		one := func(c *cacheaside.Cache[int, article], i int) error {
			_, err := c.Get(ctx, 0)
			return err
		}
		run("l1", cacheaside.Config{TTL: time.Hour}, one, 1)
		run("redis", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, get, 100)
		run("redis, raw codec", cacheaside.Config{TTL: time.Hour, L1Entries: -1, Codec: raw}, get, 100)
		run("miss", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, func(c *cacheaside.Cache[int, article], i int) error {
			_, err := c.Get(ctx, i+1000)
			return err
		}, 1)
		hundred := upTo(100)
		run("many of 100, cached", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, func(c *cacheaside.Cache[int, article], _ int) error {
			_, err := c.GetMany(ctx, hundred)
			return err
		}, 100)
		run("many of 100, missing", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, func(c *cacheaside.Cache[int, article], i int) error {
			keys := make([]int, 100)
			for j := range keys {
				keys[j] = 1000 + i*100 + j
			}
			_, err := c.GetMany(ctx, keys)
			return err
		}, 1)
		run("invalidate", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, func(c *cacheaside.Cache[int, article], i int) error {
			return c.Invalidate(ctx, i)
		}, 1)
		run("update", cacheaside.Config{TTL: time.Hour, L1Entries: -1}, func(c *cacheaside.Cache[int, article], i int) error {
			return c.Update(ctx, func(context.Context) error { return nil }, i)
		}, 1)
	}
}

// BenchmarkPlainGet is a GET by itself, to compare with.
func BenchmarkPlainGet(b *testing.B) {
	s := redistest.Start(b)
	rdb := s.Client()
	ctx := b.Context()
	rdb.Set(ctx, "k", make([]byte, 300), 0)
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			callers(b, n, func(int) {
				if err := rdb.Get(ctx, "k").Err(); err != nil {
					b.Error(err)
				}
			})
		})
	}
}
