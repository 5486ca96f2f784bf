package redistest

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does to the traffic. The zero value does nothing.
type Fault struct {
	// Match limits the fault to requests whose bytes contain it, such as a
	// command's name or a key; upper and lower case are the same. Empty matches
	// every request, the HELLO of a new connection included.
	Match string
	// Skip lets that many matching requests pass unharmed first.
	Skip int
	// Times is how many requests the fault strikes. Zero means all.
	Times int

	// Before the server sees the request.

	DelayRequest   time.Duration // the request is late
	SwallowRequest bool          // the request is lost: not executed, no reply
	CutBefore      bool          // the connection ends: not executed

	// After the server has executed the request.

	DelayReply    time.Duration // the reply is late
	LoseReply     bool          // the reply is lost
	CutAfter      bool          // the connection ends before the reply
	TruncateReply int           // the connection ends after so many bytes of the reply
	Garbage       []byte        // these bytes arrive instead of the reply
	Drip          time.Duration // the reply arrives byte by byte, at this interval

	// Reset makes CutBefore, CutAfter and TruncateReply end the connection by RST
	// rather than FIN.
	Reset bool

	// Mute lets nothing reach any client, replies and messages of subscriptions
	// alike, as when the network fails in one direction. Match, Skip and Times
	// don't apply, and Hits does not count it.
	Mute bool
}

// Proxy stands between clients and a server and does harm to their traffic. A
// request is what a client writes before it waits: one command or a pipeline.
// Once a connection has lost a reply it stays silent, as a real one would, since
// what follows would be taken for the lost one; Clear does not revive it.
type Proxy struct {
	network, target, addr string
	ctx                   context.Context
	stop                  context.CancelFunc
	running               sync.WaitGroup

	mu       sync.Mutex
	ln       net.Listener // nil while refusing
	links    map[*link]struct{}
	fault    Fault
	matched  int
	hits     int
	accepted int
}

// NewProxy returns a proxy for the server at addr ("tcp" or "unix" network),
// which the test closes.
func NewProxy(t testing.TB, network, addr string) *Proxy {
	t.Helper()
	p := &Proxy{network: network, target: addr, links: map[*link]struct{}{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	var err error
	for range 5 { // another process may take a free port first
		var port int
		if port, err = freePort(); err != nil {
			break
		}
		p.addr = "127.0.0.1:" + strconv.Itoa(port)
		if err = p.listen(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("redistest: proxy: %v", err)
	}
	t.Cleanup(func() {
		p.stop()
		p.Refuse()
		p.Cut(false)
		p.running.Wait()
	})
	return p
}

// Addr returns the address that clients connect to. It stays the same through
// Refuse and Accept.
func (p *Proxy) Addr() string { return p.addr }

// Set replaces the fault, for all connections, and sets Hits to zero.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.matched, p.hits = f, 0, 0
}

// Clear ends the fault.
func (p *Proxy) Clear() { p.Set(Fault{}) }

// Hits returns how many requests the fault has struck since Set.
func (p *Proxy) Hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// Accepted returns how many connections the proxy has accepted.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Cut ends all connections, by RST if reset is set. New ones are accepted.
func (p *Proxy) Cut(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut(reset)
	}
}

// Refuse makes new connections fail, until Accept. Those that are open stay.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		p.ln.Close()
		p.ln = nil
	}
}

// Accept ends Refuse.
func (p *Proxy) Accept(t testing.TB) {
	t.Helper()
	if err := p.listen(); err != nil {
		t.Fatalf("redistest: proxy: %v", err)
	}
}

func (p *Proxy) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		return nil
	}
	ln, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.ln = ln
	p.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(c) })
		}
	})
	return nil
}

func (p *Proxy) serve(client net.Conn) {
	server, err := net.DialTimeout(p.network, p.target, time.Second)
	if err != nil {
		client.Close()
		return
	}
	l := &link{proxy: p, client: client, server: server}
	p.mu.Lock()
	p.accepted++
	p.links[l] = struct{}{}
	closed := p.ctx.Err() != nil
	p.mu.Unlock()
	if closed {
		l.cut(false)
	}
	p.running.Go(l.replies)
	l.requests()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// strike returns the fault for a request, or nil.
func (p *Proxy) strike(request []byte) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fault
	if !bytes.Contains(bytes.ToLower(request), bytes.ToLower([]byte(f.Match))) {
		return nil
	}
	p.matched++
	if p.matched <= f.Skip || f.Times > 0 && p.hits >= f.Times {
		return nil
	}
	p.hits++
	return &f
}

func (p *Proxy) mute() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault.Mute
}

// sleep waits for d or the end of the proxy.
func (p *Proxy) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-p.ctx.Done():
	}
}

// link is one client's connection and its counterpart to the server.
type link struct {
	proxy          *Proxy
	client, server net.Conn

	mu       sync.Mutex
	fault    *Fault // of the request in flight
	answered bool   // the server began to answer that
}

func (l *link) cut(reset bool) {
	if c, ok := l.client.(*net.TCPConn); ok && reset {
		c.SetLinger(0)
	}
	l.client.Close()
	l.server.Close()
}

// faultFor returns the fault for what the client wrote. A request that comes in
// several pieces keeps the fault that one of them drew until it is answered.
func (l *link) faultFor(piece []byte) Fault {
	drawn := l.proxy.strike(piece)
	l.mu.Lock()
	defer l.mu.Unlock()
	if drawn != nil || l.answered {
		l.fault, l.answered = drawn, false
	}
	if l.fault == nil {
		return Fault{}
	}
	return *l.fault
}

// answer returns the fault for what the server wrote.
func (l *link) answer() Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = true
	if l.fault == nil {
		return Fault{}
	}
	return *l.fault
}

func (l *link) requests() {
	defer l.cut(false)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buf)
		if n > 0 {
			f := l.faultFor(buf[:n])
			if f.CutBefore {
				l.cut(f.Reset)
				return
			}
			if f.SwallowRequest {
				continue
			}
			l.proxy.sleep(f.DelayRequest)
			if _, err := l.server.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *link) replies() {
	defer l.cut(false)
	silent := false
	buf := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buf)
		if n > 0 {
			f, reply := l.answer(), buf[:n]
			l.proxy.sleep(f.DelayReply)
			switch {
			case silent:
			case f.LoseReply || l.proxy.mute():
				silent = true
			case f.CutAfter:
				l.cut(f.Reset)
				return
			case f.TruncateReply > 0:
				l.client.Write(reply[:min(f.TruncateReply, n)])
				l.cut(f.Reset)
				return
			case f.Garbage != nil:
				l.client.Write(f.Garbage)
				silent = true
			case f.Drip > 0:
				for i := range reply {
					l.client.Write(reply[i : i+1])
					l.proxy.sleep(f.Drip)
				}
			default:
				l.client.Write(reply) // if the client is gone its read tells
			}
		}
		if err != nil {
			return
		}
	}
}
