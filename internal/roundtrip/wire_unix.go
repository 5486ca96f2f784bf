//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd || solaris || illumos

package roundtrip

import "syscall"

const canPeek = true

// peek reports whether bytes are there to be read, and whether the other side has closed
// the socket behind them. It does so also after the connection's read deadline.
func peek(sys syscall.RawConn) (there, closed bool) {
	err := sys.Control(func(fd uintptr) {
		var buf [1]byte
		switch n, _, err := syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT); {
		case n > 0:
			there = true
		case err == nil:
			closed = true
		case err != syscall.EAGAIN && err != syscall.EINTR:
			closed = true
		}
	})
	return there, closed || err != nil
}
