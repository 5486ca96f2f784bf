package demo

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo answers each byte with itself.
func echo(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 100)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					c.Write(b[:n])
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestBreakage(t *testing.T) {
	addr := echo(t)
	b := new(breakage)
	dial := b.through((&net.Dialer{}).DialContext)
	connect := func() net.Conn {
		t.Helper()
		c, err := dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// ask writes one byte and reads the echo, for at most limit.
	ask := func(c net.Conn, limit time.Duration) (string, time.Duration, error) {
		t.Helper()
		start := time.Now()
		c.SetDeadline(start.Add(limit))
		if _, err := c.Write([]byte("x")); err != nil {
			return "", 0, err
		}
		p := make([]byte, 10)
		n, err := c.Read(p)
		return string(p[:n]), time.Since(start), err
	}

	c := connect()
	if got, _, err := ask(c, time.Minute); got != "x" || err != nil {
		t.Errorf("working: %q, %v; want the echo", got, err)
	}

	b.set(slow)
	if got, took, err := ask(c, time.Minute); got != "x" || err != nil || took < slowBy {
		t.Errorf("slow: %q after %v, %v; want the echo after %v", got, took, err, slowBy)
	}

	b.set(stalled)
	_, took, err := ask(c, 50*time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) || took < 50*time.Millisecond || took >= stalledBy {
		t.Errorf("stalled: %v after %v; want a timeout after 50ms", err, took)
	}
	// What came late is not lost: the next read has it.
	c.SetReadDeadline(time.Time{})
	if n, err := c.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("read after the timeout = %d, %v; want the late byte", n, err)
	}

	b.set(lost)
	if _, took, err := ask(c, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || took < 50*time.Millisecond {
		t.Errorf("lost: %v after %v; want a timeout after 50ms", err, took)
	}

	b.set(down)
	if _, _, err := ask(c, time.Minute); err == nil {
		t.Error("down: an old connection still works")
	}
	if _, err := dial(t.Context(), "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("down: dial = %v; want it refused", err)
	}

	b.set(working)
	if got, _, err := ask(connect(), time.Minute); got != "x" || err != nil {
		t.Errorf("mended: %q, %v; want the echo", got, err)
	}
	for _, m := range modes {
		if got, ok := parseMode(m.Name); !ok || got.String() != m.Name {
			t.Errorf("parseMode(%q) = %v, %v", m.Name, got, ok)
		}
	}
	if _, ok := parseMode("nonsense"); ok {
		t.Error(`parseMode("nonsense") is a mode`)
	}
}
