package main

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// wire counts what a subject's connections send. Subjects dial through it, so
// that clients of all makes are counted alike, and commands that a script calls
// are not. While it is switched off a write costs one atomic load more.
type wire struct {
	on       atomic.Bool
	commands atomic.Int64
	writes   atomic.Int64 // each is a system call
}

// dial is a DialContext for a client's options.
func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 5 * time.Minute}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countedConn{TCPConn: c.(*net.TCPConn), wire: w}, nil
}

// countedConn passes everything on as it is, SyscallConn too, with which go-redis
// looks at a connection before it uses it again.
type countedConn struct {
	*net.TCPConn
	wire *wire
	req  requests
}

var _ syscall.Conn = (*countedConn)(nil)

func (c *countedConn) Write(b []byte) (int, error) {
	if c.wire.on.Load() {
		c.wire.writes.Add(1)
		c.wire.commands.Add(int64(c.req.count(b)))
	}
	return c.TCPConn.Write(b)
}

// requests counts commands in what a client writes: arrays of bulk strings,
// which a write may cut anywhere.
type requests struct {
	args int    // still to come of the current command
	skip int    // bytes still to come of the current argument, with CRLF
	head []byte // what has come of a line that is not complete
	name []byte // of the current command, as far as it matters
	open bool   // the current argument is the name
}

// housekeeping are the commands with which clients set up connections.
var housekeeping = map[string]bool{"HELLO": true, "CLIENT": true, "AUTH": true, "SELECT": true, "SCRIPT": true}

func (p *requests) count(b []byte) (n int) {
	for len(b) > 0 {
		if p.skip > 0 {
			k := min(p.skip, len(b))
			if p.open && len(p.name) < 16 {
				p.name = append(p.name, b[:k]...)
			}
			p.skip -= k
			b = b[k:]
			if p.skip > 0 {
				return n
			}
			if p.open {
				p.open = false
				if !housekeeping[strings.ToUpper(strings.TrimRight(string(p.name), "\r\n"))] {
					n++
				}
			}
			p.args--
			continue
		}
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			p.head = append(p.head, b...)
			return n
		}
		line := append(p.head, b[:end]...)
		b = b[end+1:]
		p.head = p.head[:0]
		if len(line) < 2 {
			continue
		}
		v, err := strconv.Atoi(string(bytes.TrimRight(line[1:], "\r")))
		switch {
		case err != nil:
		case line[0] == '*':
			p.args, p.open, p.name = v, true, p.name[:0]
		case line[0] == '$':
			p.skip = v + 2
		}
	}
	return n
}
