package roundtrip

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// wire is a connection of the client as it was dialed, TLS included. It tells what
// go-redis' errors leave open:
//
//   - That nothing was sent. A server, or what stands before it, closes connections that
//     are idle, and go-redis sees that before it uses one again only where it can look at
//     the socket: not behind TLS, nor behind a Dialer's own type. Then a write or read
//     fails, and the bare EOF may as well mean that the reply was lost. wire looks itself
//     before the first write, and marks the errors of what was never written.
//   - That the reply is there. A goroutine that runs again after its deadline finds its
//     read refused whether or not the reply has come meanwhile. Time that passes before
//     this process gets to read is not the server's.
type wire struct {
	net.Conn
	sys syscall.RawConn // of the socket; nil if it can't be reached
	// opaque is set where bytes on the socket are not those of the reply.
	opaque bool

	// fresh is set while nothing was written since the pool gave the connection out,
	// which clears its deadlines before.
	fresh   atomic.Bool
	used    atomic.Int64 // when it was last written to, nanoseconds after base
	reading atomic.Int32
	early   atomic.Pointer[[]byte] // what was read while it was looked at
}

const (
	// idleLook is for how long a connection was not written to that is looked at.
	// Nobody closes one sooner.
	idleLook = 200 * time.Millisecond
	// readGrace is how long a read goes on after its deadline. What has come is there at
	// once, but a busy machine may take longer to run the reader: see readCome.
	readGrace = time.Millisecond
	// readGraceMost is how long readCome tries at most where bytes are there.
	readGraceMost = 512 * time.Millisecond
)

// unsent is the error of what was certainly not sent.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }

// Timeout lets go-redis see what it would have seen.
func (e unsent) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.error, &t) && t.Timeout()
}

func isUnsent(err error) bool {
	var u unsent
	return errors.As(err, &u)
}

// wired is the hook that makes connections wires.
type wired struct{}

func (wired) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		switch conn.(type) {
		case *wire, wireSys:
			return conn, nil
		}
		return newWire(conn), nil
	}
}
func (wired) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (wired) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// wireSys is a wire whose socket go-redis looks at itself.
type wireSys struct {
	*wire
	conn syscall.Conn
}

func (w wireSys) SyscallConn() (syscall.RawConn, error) { return w.conn.SyscallConn() }

func newWire(conn net.Conn) net.Conn {
	w := &wire{Conn: conn}
	w.used.Store(int64(time.Since(base)))
	sys, plain := conn.(syscall.Conn)
	for inner := conn; sys == nil; {
		u, ok := inner.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		inner = u.NetConn()
		sys, _ = inner.(syscall.Conn)
	}
	if sys != nil {
		w.sys, _ = sys.SyscallConn()
	}
	if w.opaque = !plain; plain {
		return wireSys{w, sys}
	}
	return w
}

// NetConn is how go-redis and others find the connection inside, as in *tls.Conn.
func (w *wire) NetConn() net.Conn { return w.Conn }

// SetDeadline is called without a time when the pool gives the connection out.
func (w *wire) SetDeadline(t time.Time) error {
	if t.IsZero() {
		w.fresh.Store(true)
	}
	return w.Conn.SetDeadline(t)
}

func (w *wire) Write(b []byte) (int, error) {
	first := w.fresh.Load() && w.fresh.CompareAndSwap(true, false)
	if w.opaque {
		now := int64(time.Since(base))
		if first && now-w.used.Load() > int64(idleLook) && w.gone() {
			return 0, unsent{io.EOF}
		}
		w.used.Store(now)
	}
	n, err := w.Conn.Write(b)
	if err != nil && n == 0 && first {
		err = unsent{err} // a TLS record that is not whole is not read either
	}
	return n, err
}

func (w *wire) Read(b []byte) (int, error) {
	if p := w.early.Load(); p != nil {
		n := copy(b, *p)
		if rest := (*p)[n:]; len(rest) > 0 {
			w.early.Store(&rest)
		} else {
			w.early.Store(nil)
		}
		return n, nil
	}
	if w.opaque {
		w.reading.Add(1)
		defer w.reading.Add(-1)
	}
	n, err := w.Conn.Read(b)
	if err != nil && n == 0 {
		return w.readFailed(b, err)
	}
	return n, err
}

// readFailed is for a read that returned err.
func (w *wire) readFailed(b []byte, err error) (int, error) {
	if w.fresh.Load() {
		// Something was looked for before the first write. Whoever asked for nothing has
		// lost nothing.
		if isTimeout(err) {
			return 0, err
		}
		return 0, unsent{err}
	}
	if !isTimeout(err) {
		return 0, err
	}
	if n, again := w.readCome(b); n > 0 || !isTimeout(again) {
		return n, again
	}
	return 0, err
}

// readCome reads what has already come, and fails with a timeout if nothing has. The
// deadline that this takes may be over before this goroutine gets to read; so as long as
// bytes lie on the socket that nobody has taken, it reads again, with more time.
func (w *wire) readCome(b []byte) (n int, err error) {
	for grace := readGrace; ; grace *= 2 {
		if err := w.Conn.SetReadDeadline(time.Now().Add(grace)); err != nil {
			return 0, err
		}
		if n, err = w.Conn.Read(b); n > 0 || err == nil || !isTimeout(err) {
			return n, err
		}
		if w.sys == nil || !canPeek || grace >= readGraceMost {
			return 0, err
		}
		switch there, closed := peek(w.sys); {
		case closed:
			return 0, io.EOF
		case !there:
			return 0, err
		}
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// gone reports whether the other side has closed the connection.
func (w *wire) gone() bool {
	if w.sys != nil {
		switch there, closed := peek(w.sys); {
		case closed:
			return true
		case !there:
			return false
		}
	}
	// There are bytes, or nobody knows. They may be those that close the connection, or a
	// message that nobody asked for.
	if w.reading.Load() > 0 {
		return false
	}
	buf := make([]byte, 512)
	n, err := w.readCome(buf)
	if n > 0 {
		buf = buf[:n]
		w.early.Store(&buf)
	}
	_ = w.Conn.SetReadDeadline(time.Time{})
	return n == 0 && err != nil && !isTimeout(err)
}
