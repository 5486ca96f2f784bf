package demo

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// mode is what the breakage does to the connections that pass it.
type mode int32

const (
	working mode = iota
	down         // connections end, and new ones are refused
	slow         // replies are late, but within every deadline
	stalled      // replies come after every deadline
	lost         // Redis executes the commands, and the replies vanish
)

// modes describes them in the order of their values, for the page.
var modes = []struct{ Name, Label, Text string }{
	{"working", "Working", "Redis answers."},
	{"down", "Down", "Connections are refused, as if the server had crashed."},
	{"slow", "Slow", "Each reply comes 40 ms late: later than anyone likes, yet within every deadline."},
	{"stalled", "Stalled", "Each reply comes 2 s late, far beyond the deadline of each call."},
	{"lost", "Replies lost", "Redis gets and executes each command, but its replies never arrive."},
}

func (m mode) String() string { return modes[m].Name }

func parseMode(name string) (mode, bool) {
	for i, m := range modes {
		if m.Name == name {
			return mode(i), true
		}
	}
	return 0, false
}

const (
	slowBy    = 40 * time.Millisecond
	stalledBy = 2 * time.Second
)

// breakage stands on the connections between the application's client and Redis
// and spoils them on demand. It wraps the dialer rather than listening on a port
// of its own, so it works for a cluster, for Sentinel and beneath TLS as well.
type breakage struct {
	mode atomic.Int32

	mu    sync.Mutex
	conns map[*spoiledConn]struct{}
}

func (b *breakage) get() mode { return mode(b.mode.Load()) }

func (b *breakage) set(m mode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mode.Store(int32(m))
	if m == down {
		for c := range b.conns {
			c.Conn.Close()
		}
	}
}

type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

// through returns a dialer whose connections pass the breakage.
func (b *breakage) through(dial dialer) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if b.get() == down {
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("broken on purpose: %w", syscall.ECONNREFUSED)}
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &spoiledConn{Conn: conn, b: b}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.get() == down {
			conn.Close() // went down while dialing
		}
		if b.conns == nil {
			b.conns = make(map[*spoiledConn]struct{})
		}
		b.conns[c] = struct{}{}
		return c, nil
	}
}

// spoiledConn holds what it has read until it is due, or drops it.
type spoiledConn struct {
	net.Conn
	b        *breakage
	held     []byte
	due      time.Time
	deadline atomic.Int64 // of reads, Unix nanoseconds; 0: none
}

func (c *spoiledConn) Read(p []byte) (int, error) {
	for len(c.held) == 0 {
		n, err := c.Conn.Read(p)
		if err != nil {
			return n, err
		}
		switch c.b.get() {
		case lost:
			continue
		case slow:
			c.due = time.Now().Add(slowBy)
		case stalled:
			c.due = time.Now().Add(stalledBy)
		default:
			return n, nil
		}
		c.held = append(c.held, p[:n]...)
	}
	if d := c.deadline.Load(); d != 0 && c.due.UnixNano() > d {
		time.Sleep(time.Until(time.Unix(0, d)))
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(time.Until(c.due))
	n := copy(p, c.held)
	c.held = c.held[n:]
	return n, nil
}

func (c *spoiledConn) SetDeadline(t time.Time) error {
	c.keep(t)
	return c.Conn.SetDeadline(t)
}

func (c *spoiledConn) SetReadDeadline(t time.Time) error {
	c.keep(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *spoiledConn) keep(t time.Time) {
	if t.IsZero() {
		c.deadline.Store(0)
	} else {
		c.deadline.Store(t.UnixNano())
	}
}

func (c *spoiledConn) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c)
	c.b.mu.Unlock()
	return c.Conn.Close()
}
