package main

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// caller is one of the closed-loop callers: it makes its next call when the last
// has returned.
type caller struct {
	id  int
	n   int          // calls so far
	rng uint64       // xorshift
	w   nullWriter   // a body that answers a request answers into this
	r   http.Request // and this is the request

	header http.Header // of the request

	every     int // of so many calls the time of one is taken
	latencies []time.Duration
	done      int // calls begun while counting
	failed    int // of those
	err       error
}

// maxSamples bounds the latencies a caller keeps in one slice.
const maxSamples = 1 << 14

func newCallers(n int) []*caller {
	cs := make([]*caller, n)
	for i := range cs {
		cs[i] = &caller{id: i, rng: uint64(i+1) * 0x9E3779B97F4A7C15, every: 1, w: nullWriter{h: make(http.Header)}, header: make(http.Header)}
	}
	return cs
}

// pick returns a number below n, evenly enough.
func (c *caller) pick(n int) int {
	c.rng ^= c.rng << 13
	c.rng ^= c.rng >> 7
	c.rng ^= c.rng << 17
	return int(c.rng>>33) % n
}

func (c *caller) call(do func(*caller) error) {
	if err := do(c); err != nil {
		c.failed++
		c.err = err
	}
	c.n++
}

// Phases of a slice. Callers are started in warming; a call counts if it began
// in counting, whenever it ends. In a steady state as many calls that began
// before the count end in it, so the rate is right without waiting for the last.
const (
	warming int32 = iota
	counting
	stopped
)

func (c *caller) loop(do func(*caller) error, phase *atomic.Int32) {
	for {
		p := phase.Load()
		if p == stopped {
			return
		}
		timed := c.n%c.every == 0
		var start time.Time
		if timed {
			start = time.Now()
		}
		err := do(c)
		c.n++
		if p != counting {
			continue
		}
		c.done++
		if err != nil {
			c.failed++
			c.err = err
		} else if timed && len(c.latencies) < cap(c.latencies) {
			c.latencies = append(c.latencies, time.Since(start))
		}
	}
}

// slice is what one timed slice found.
type slice struct {
	ops, failed int
	elapsed     time.Duration
	latencies   []time.Duration
	err         error // of one of the failed
}

// timedSlice lets the callers make calls for warm+length.
func timedSlice(do func(*caller) error, callers []*caller, warm, length time.Duration) (s slice) {
	var phase atomic.Int32
	var wg sync.WaitGroup
	for _, c := range callers {
		c.done, c.failed, c.err = 0, 0, nil
		if c.latencies == nil {
			c.latencies = make([]time.Duration, 0, maxSamples/max(1, len(callers)/8))
		}
		c.latencies = c.latencies[:0]
		wg.Go(func() { c.loop(do, &phase) })
	}
	time.Sleep(warm)
	start := time.Now()
	phase.Store(counting)
	time.Sleep(length)
	phase.Store(stopped)
	s.elapsed = time.Since(start)
	wg.Wait()
	for _, c := range callers {
		s.ops += c.done - c.failed
		s.failed += c.failed
		s.latencies = append(s.latencies, c.latencies...)
		if c.err != nil {
			s.err = c.err
		}
	}
	return s
}

// fixedSlice lets the callers make n calls together. measured runs before the
// first and after the last call, while nothing moves.
func fixedSlice(do func(*caller) error, callers []*caller, n int, measured func()) (ops int, err error) {
	start := make(chan struct{})
	var ready, wg sync.WaitGroup
	for i, c := range callers {
		c.failed, c.err = 0, nil
		share := n / len(callers)
		if i < n%len(callers) {
			share++
		}
		ready.Add(1)
		wg.Go(func() {
			ready.Done()
			<-start
			for range share {
				c.call(do)
			}
		})
	}
	ready.Wait()
	measured()
	close(start)
	wg.Wait()
	measured()
	ops = n
	for _, c := range callers {
		ops -= c.failed
		if c.err != nil {
			err = c.err
		}
	}
	return ops, err
}

// nullWriter takes a response and forgets it.
type nullWriter struct {
	h      http.Header
	status int
	bytes  int
}

func (w *nullWriter) Header() http.Header { return w.h }

func (w *nullWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *nullWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.bytes += len(b)
	return len(b), nil
}

// answer makes w ready for the next response and returns it.
func (c *caller) answer() *nullWriter {
	clear(c.w.h)
	c.w.status, c.w.bytes = 0, 0
	return &c.w
}
