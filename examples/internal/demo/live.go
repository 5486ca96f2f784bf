package demo

import (
	"context"
	"math"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// live counts what happened in each of the last sixty seconds.
type live struct {
	mu   sync.Mutex
	ring [60]second
}

// second is what happened in one second.
type second struct {
	at              int64 // Unix time
	hits, misses    uint64
	allowed, denied uint64
	errors          uint64 // of Redis
	latency         histogram
}

// point is a second as the page's charts show it.
type point struct {
	At      int64  `json:"at"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
	Allowed uint64 `json:"allowed"`
	Denied  uint64 `json:"denied"`
	Errors  uint64 `json:"errors"`
	P50us   int64  `json:"p50_us"`
	P99us   int64  `json:"p99_us"`
}

// minute is the sum of the last sixty seconds.
type minute struct {
	HitRate   float64 `json:"hit_rate"` // -1 without any reads
	Decisions float64 `json:"decisions_per_s"`
	Errors    uint64  `json:"errors"`
	P50us     int64   `json:"p50_us"` // -1 without any commands
	P99us     int64   `json:"p99_us"`
}

// now calls f with the second that is running.
func (l *live) now(f func(*second)) {
	t := time.Now().Unix()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.ring[t%int64(len(l.ring))]
	if s.at != t {
		*s = second{at: t}
	}
	f(s)
}

func (s *second) point() point {
	return point{s.at, s.hits, s.misses, s.allowed, s.denied, s.errors, s.latency.quantile(0.5), s.latency.quantile(0.99)}
}

// points returns the finished seconds of the last minute, the oldest first, and
// their sum.
func (l *live) points() (list []point, sum minute) {
	end := time.Now().Unix()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all second
	for t := end - int64(len(l.ring)) + 1; t < end; t++ {
		s := l.ring[t%int64(len(l.ring))]
		if s.at != t {
			s = second{at: t}
		}
		list = append(list, s.point())
		all.hits += s.hits
		all.misses += s.misses
		all.allowed += s.allowed
		all.denied += s.denied
		all.errors += s.errors
		for i, n := range s.latency {
			all.latency[i] += n
		}
	}
	sum = minute{
		HitRate:   -1,
		Decisions: float64(all.allowed+all.denied) / float64(len(list)),
		Errors:    all.errors,
		P50us:     all.latency.quantile(0.5),
		P99us:     all.latency.quantile(0.99),
	}
	if n := all.hits + all.misses; n > 0 {
		sum.HitRate = float64(all.hits) / float64(n)
	}
	return list, sum
}

// histogram counts durations in classes that grow by a quarter: class i ends at
// 10 µs × 1.25^i.
type histogram [64]uint32

func (h *histogram) add(d time.Duration) {
	i := math.Ceil(math.Log(float64(d)/float64(10*time.Microsecond)) / math.Log(1.25))
	h[int(min(max(i, 0), float64(len(h)-1)))]++
}

// quantile returns the end of the class in which the q-th part of all durations
// lies, in microseconds, and -1 if there are none.
func (h *histogram) quantile(q float64) int64 {
	var n, seen float64
	for _, c := range h {
		n += float64(c)
	}
	if n == 0 {
		return -1
	}
	for i, c := range h {
		if seen += float64(c); seen >= q*n {
			return int64(10 * math.Pow(1.25, float64(i)))
		}
	}
	panic("unreachable")
}

// latencyHook is a go-redis hook that measures what passes the client.
type latencyHook struct{ l *live }

func (h latencyHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h latencyHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		start := time.Now()
		err := next(ctx, cmd)
		h.record(time.Since(start), err)
		return err
	}
}

func (h latencyHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		start := time.Now()
		err := next(ctx, cmds)
		h.record(time.Since(start), err)
		return err
	}
}

func (h latencyHook) record(d time.Duration, err error) {
	_, answered := err.(redis.Error) // nil and other replies, such as NOSCRIPT
	h.l.now(func(s *second) {
		if err == nil || answered {
			s.latency.add(d)
		} else {
			s.errors++
		}
	})
}
