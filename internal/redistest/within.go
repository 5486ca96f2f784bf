package redistest

import (
	"sync"
	"testing"
	"time"
)

// Within begins a deadline, and returns what asks how long it has taken since and how
// long it may have: the deadline and as much again, and what the scheduler took, as a
// control goroutine saw it that slept and woke all the while. So a test of a deadline
// does not fail since its machine has other things to do. The control ends with the first
// answer.
func Within(t testing.TB, deadline time.Duration) (asked func() (took, most time.Duration)) {
	t.Helper()
	began := time.Now()
	c := lateness.begin()
	var once sync.Once
	var took, most time.Duration
	t.Cleanup(func() { asked() })
	asked = func() (time.Duration, time.Duration) {
		once.Do(func() {
			took = time.Since(began)
			// A call may be held up several times, by a timer, a reply and a lock.
			most = 2*deadline + 8*c.end() + 50*time.Millisecond
		})
		return took, most
	}
	return asked
}

// Await calls f until it returns nil, for half a minute, and fails the test if it never
// does. Something that takes seconds on an idle machine needs another bound.
func Await(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("waited in vain for %s: %v", what, err)
}

// lateness is one control for all that measure at the same time.
var lateness control

type control struct {
	mu      sync.Mutex
	running map[*measure]bool
	napping time.Time // since when
}

type measure struct {
	of   *control
	late time.Duration
}

func (c *control) begin() *measure {
	m := &measure{of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		c.running = map[*measure]bool{}
	}
	c.running[m] = true
	if len(c.running) == 1 {
		c.napping = time.Now()
		go c.run()
	}
	return m
}

const nap = time.Millisecond

// run sleeps and wakes until nobody measures.
func (c *control) run() {
	for {
		time.Sleep(nap)
		c.mu.Lock()
		c.note()
		c.napping = time.Now()
		over := len(c.running) == 0
		c.mu.Unlock()
		if over {
			return
		}
	}
}

// note notes how late the present nap's end is.
func (c *control) note() {
	late := time.Since(c.napping) - nap
	for m := range c.running {
		m.late = max(m.late, late)
	}
}

func (m *measure) end() time.Duration {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.of.note()
	delete(m.of.running, m)
	return m.late
}
