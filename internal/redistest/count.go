package redistest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Commands says what a client sent. It is counted where the client writes to its
// connections, so that retries, redirects and pipelines show as what they are on
// every kind of Redis. Commands that a script calls are part of the script.
//
// Left out is what go-redis does by itself: setting up connections (HELLO, AUTH,
// CLIENT, SELECT, READONLY) and learning the topology (CLUSTER, COMMAND). Left out as
// well is TIME, alone or as the script that is nothing else: package roundtrip adds it to
// a call now and then, which is not the call's doing.
type Commands struct {
	// RoundTrips is how many times the client wrote and then had to wait for
	// Redis. A pipeline is one round trip on each server it goes to.
	RoundTrips int
	// Total is the number of commands, and By how many there were of each, by
	// name in lower case. For SCRIPT the name includes the subcommand:
	// "script|load".
	Total int
	By    map[string]int
}

// Count returns what rdb, which must come from this package, sent while f ran.
// Commands sent by other goroutines in that time are counted as well.
func Count(t testing.TB, rdb redis.UniversalClient, f func()) Commands {
	t.Helper()
	v, ok := wires.Load(rdb)
	if !ok {
		t.Fatalf("redistest: Count: this %T does not come from redistest.Run, Mini, Bubble or a Server's or Cluster's Client", rdb)
	}
	w := v.(*wire)
	before := w.read()
	f()
	after := w.read()
	after.RoundTrips -= before.RoundTrips
	after.Total -= before.Total
	for name, n := range before.By {
		if after.By[name] -= n; after.By[name] == 0 {
			delete(after.By, name)
		}
	}
	return after
}

var wires sync.Map // redis.UniversalClient → *wire, while the client is open

func watch(t testing.TB, rdb redis.UniversalClient, w *wire) {
	wires.Store(rdb, w)
	t.Cleanup(func() {
		wires.Delete(rdb)
		rdb.Close() // an error means that the test closed it already
	})
}

// wire counts for all connections of one client.
type wire struct {
	mu   sync.Mutex
	sent Commands
}

func (w *wire) read() Commands {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.sent
	if c.By = maps.Clone(c.By); c.By == nil {
		c.By = map[string]int{}
	}
	return c
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

func (w *wire) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		counted := &countedConn{Conn: c, wire: w}
		if sys, ok := c.(syscall.Conn); ok {
			return countedSysConn{counted, sys}, nil // go-redis looks at the socket before it uses it again
		}
		return counted, nil
	}
}

func dialMini(m *miniredis.Miniredis) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) { return m.Dial() }
}

type countedConn struct {
	net.Conn
	wire *wire

	mu      sync.Mutex
	req     requestParser
	waiting bool // something that counts was written since the last read
}

type countedSysConn struct {
	*countedConn
	sys syscall.Conn
}

func (c countedSysConn) SyscallConn() (syscall.RawConn, error) { return c.sys.SyscallConn() }

func (c *countedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	names := c.req.feed(b)
	c.mu.Unlock()
	// Counted before it is sent, so that a count is complete when a reply is.
	for _, name := range names {
		c.count(name)
	}
	return c.Conn.Write(b)
}

func (c *countedConn) count(name string) {
	container, _, _ := strings.Cut(name, "|")
	switch container {
	case "hello", "auth", "client", "select", "readonly", "readwrite", "asking", "cluster", "command", "time":
		return
	}
	c.mu.Lock()
	first := !c.waiting
	c.waiting = true
	c.mu.Unlock()

	w := c.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if first {
		w.sent.RoundTrips++
	}
	w.sent.Total++
	if w.sent.By == nil {
		w.sent.By = map[string]int{}
	}
	w.sent.By[name]++
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.mu.Lock()
		c.waiting = false
		c.mu.Unlock()
	}
	return n, err
}

// askTime is the script that asks a cluster's master for the time, in lower case.
const askTime = "return redis.call('time')\n"

var askTimeSHA = fmt.Sprintf("%x", sha1.Sum([]byte("return redis.call('TIME')\n")))

// requestParser finds the names of commands in what a client writes: arrays of
// bulk strings, which writes may cut anywhere.
type requestParser struct {
	args, arg int    // of the current command: how many, and which one is next
	bulk      int    // bytes of the current argument still to come, with CRLF
	line      []byte // the current header line so far
	text      []byte // the current argument so far, if it matters
	name      string
}

func (p *requestParser) feed(b []byte) (names []string) {
	for len(b) > 0 {
		if p.bulk > 0 {
			n := min(p.bulk, len(b))
			if p.arg < 2 {
				p.text = append(p.text, b[:n]...)
			}
			p.bulk -= n
			b = b[n:]
			if p.bulk > 0 {
				return names
			}
			text := strings.ToLower(strings.TrimSuffix(string(p.text), "\r\n"))
			p.text = p.text[:0]
			if p.arg == 0 {
				p.name = text
			} else if p.arg == 1 && p.name == "script" {
				p.name += "|" + text
			} else if p.arg == 1 && (text == askTime || text == askTimeSHA) {
				p.name = "time"
			}
			if p.arg++; p.arg == p.args {
				names = append(names, p.name)
			}
			continue
		}
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			p.line = append(p.line, b...)
			return names
		}
		line := string(append(p.line, b[:end]...))
		p.line, b = p.line[:0], b[end+1:]
		n, err := strconv.Atoi(strings.Trim(line, "*$\r"))
		switch {
		case err != nil:
		case line[0] == '*':
			p.args, p.arg = n, 0
		case line[0] == '$':
			p.bulk = n + 2
		}
	}
	return names
}
