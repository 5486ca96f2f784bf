package roundtrip_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

// BenchmarkCallers sets the seam beside its two alternatives, one GET a call: each
// command alone, and go-redis' autopipeliner. The subjects take turns in slices,
// so that a drift of the machine's speed hits all of them.
func BenchmarkCallers(b *testing.B) {
	s := redistest.Start(b, redistest.TCP())
	rdb := s.Client()
	ctx := context.Background()
	rdb.Set(ctx, "k", "0123456789abcdef", 0)
	ap, err := rdb.AutoPipeline()
	if err != nil {
		b.Fatal(err)
	}
	c := newConn(b, rdb, roundtrip.Config{})
	subjects := []struct {
		name string
		do   func(cmd redis.Cmder) error
	}{
		{"direct", func(cmd redis.Cmder) error { return rdb.Process(ctx, cmd) }},
		{"autopipeline", func(cmd redis.Cmder) error { return ap.Process(ctx, cmd) }},
		{"roundtrip", func(cmd redis.Cmder) error { return c.Do(ctx, "get", cmd) }},
	}
	for _, n := range []int{1, 2, 4, 8, 16, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			spent := make([]time.Duration, len(subjects))
			const slices = 12
			each := max(b.N/n/slices, 1)
			for range slices {
				for i, s := range subjects {
					start := time.Now()
					callers(n, each, func(int) {
						if err := s.do(redis.NewStringCmd(ctx, "get", "k")); err != nil {
							b.Error(err)
						}
					})
					spent[i] += time.Since(start)
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, s := range subjects {
				b.ReportMetric(float64(spent[i].Nanoseconds())/float64(each*slices*n), s.name+"-ns/op")
			}
		})
	}
}

func BenchmarkDo(b *testing.B) {
	_, rdb := redistest.Mini(b)
	c := newConn(b, rdb, roundtrip.Config{})
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		c.Do(ctx, "get", redis.NewStringCmd(ctx, "get", "k"))
	}
}

func BenchmarkBreakerOpen(b *testing.B) {
	_, rdb := redistest.Mini(b)
	rdb.Close()
	c := newConn(b, rdb, roundtrip.Config{})
	ctx := context.Background()
	cmd := redis.NewStringCmd(ctx, "get", "k")
	for range 5 {
		c.Do(ctx, "get", cmd)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Do(ctx, "get", cmd)
	}
}
