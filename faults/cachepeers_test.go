package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/rockscache"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// keysOnly shows the oracle what all caches have.
type keysOnly struct{ oracled }

// rocks is rockscache.
type rocks struct {
	c *rockscache.Client
	o *oracle
}

func (r rocks) Get(ctx context.Context, key int) (int64, error) {
	text, err := r.c.Fetch2(ctx, fmt.Sprint("rocks:", key), time.Minute, func() (string, error) {
		v, err := r.o.load(ctx, key)
		return strconv.FormatInt(v, 10), err
	})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func (r rocks) Invalidate(ctx context.Context, keys ...int) error {
	for _, key := range keys {
		if err := r.c.TagAsDeleted2(ctx, fmt.Sprint("rocks:", key)); err != nil {
			return err
		}
	}
	return nil
}

// aside is rueidisaside.
type aside struct {
	c rueidisaside.CacheAsideClient
	o *oracle
}

func (a aside) Get(ctx context.Context, key int) (int64, error) {
	text, err := a.c.Get(ctx, time.Minute, fmt.Sprint("aside:", key), func(ctx context.Context, _ string) (string, error) {
		v, err := a.o.load(ctx, key)
		return strconv.FormatInt(v, 10), err
	})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func (a aside) Invalidate(ctx context.Context, keys ...int) error {
	for _, key := range keys {
		if err := a.c.Del(ctx, fmt.Sprint("aside:", key)); err != nil {
			return err
		}
	}
	return nil
}

// TestCacheOraclePeers plays reads and invalidations of keys against this cache and its
// peers, for the table in docs/faults.md. What is not from this module is only counted.
func TestCacheOraclePeers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bound time.Duration // elsewhere; where there is a first level
		make  func(t *testing.T, s *redistest.Server, o *oracle) oracled
	}{
		{"cacheaside, no first level", 0, func(t *testing.T, s *redistest.Server, o *oracle) oracled {
			return peerCache(t, s, o, cacheaside.Config{L1Entries: -1})
		}},
		{"cacheaside", oracleBound, func(t *testing.T, s *redistest.Server, o *oracle) oracled {
			return peerCache(t, s, o, cacheaside.Config{MaxStaleness: oracleBound})
		}},
		{"rockscache v0.1.1, StrongConsistency", 0, func(t *testing.T, s *redistest.Server, o *oracle) oracled {
			opts := rockscache.NewDefaultOptions()
			opts.StrongConsistency = true
			return rocks{rockscache.NewClient(s.Client(func(ro *redis.Options) { ro.PoolSize = 30 }), opts), o}
		}},
		{"rueidisaside v1.0.78", oracleBound, func(t *testing.T, s *redistest.Server, o *oracle) oracled {
			c, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: rueidis.ClientOption{InitAddress: []string{s.Addr()}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			return aside{c, o}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := redistest.Start(t, redistest.TCP())
			o := &oracle{seed: rand.Uint64(), bound: tt.bound}
			for i := range o.cs {
				o.cs[i] = tt.make(t, s, o)
			}
			reads := oracleReads()
			o.least = reads / 10
			o.play(t, reads, false)
			t.Logf("| %s | %d | %d | %d | %.2f %% |", tt.name, o.writes.Load(), o.allReads(), o.allStale(), 100*float64(o.allStale())/float64(o.allReads()))
			if o.allStale() > 0 && strings.HasPrefix(tt.name, "cacheaside") {
				t.Errorf("seed %d: %v", o.seed, o.example.Load())
			}
		})
	}
}

func peerCache(t *testing.T, s *redistest.Server, o *oracle, cfg cacheaside.Config) oracled {
	cfg.TTL, cfg.Timeout = time.Minute, 5*time.Second
	c, err := cacheaside.New(s.Client(func(ro *redis.Options) { ro.PoolSize = 30 }), "peer", o.load, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return keysOnly{c}
}
