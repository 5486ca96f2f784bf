package roundtrip

import (
	"net"
	"os"
	"testing"
	"time"
)

// late is a connection whose reader runs only after its deadline, as on a busy machine,
// as many times as n.
type late struct {
	net.Conn
	n int
}

func (l *late) NetConn() net.Conn { return l.Conn }

func (l *late) Read(b []byte) (int, error) {
	if l.n > 0 {
		l.n--
		return 0, os.ErrDeadlineExceeded
	}
	return l.Conn.Read(b)
}

func pair(t *testing.T) (here, there net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// eventually waits until the socket of w has what the test sent to it.
func eventually(t *testing.T, w *wire, what string, ok func(there, closed bool) bool) {
	t.Helper()
	for range 10_000 {
		if ok(peek(w.sys)) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s never came", what)
}

// A reader that gets to run only after its deadline reads what has come nevertheless.
func TestReaderRunsLate(t *testing.T) {
	if !canPeek {
		t.Skip("this system can't look at a socket without reading")
	}
	for _, times := range []int{1, 3} {
		here, there := pair(t)
		l := &late{Conn: here}
		w := newWire(l).(*wire)
		if _, err := there.Write([]byte("+OK\r\n")); err != nil {
			t.Fatal(err)
		}
		eventually(t, w, "the reply", func(there, _ bool) bool { return there })
		l.n = times + 1 // the read itself, and those after it
		buf := make([]byte, 64)
		if n, err := w.Read(buf); n != 5 || err != nil {
			t.Errorf("%d times late: Read = %d, %v; want 5 bytes", times, n, err)
		}

		// The bytes that close the connection, as TLS has them, are such bytes as well.
		if _, err := there.Write([]byte("bye")); err != nil {
			t.Fatal(err)
		}
		eventually(t, w, "the end", func(there, _ bool) bool { return there })
		l.n = times
		if w.gone() {
			t.Errorf("%d times late: gone, want bytes that are kept", times)
		}
		if n, err := w.Read(buf); n != 3 || err != nil {
			t.Errorf("%d times late: Read = %d, %v; want the 3 bytes that were looked at", times, n, err)
		}
		there.Close()
		eventually(t, w, "the close", func(_, closed bool) bool { return closed })
		if !w.gone() {
			t.Errorf("%d times late: a closed connection is not seen", times)
		}

		// Nothing has come: the deadline counts.
		here, _ = pair(t)
		w = newWire(&late{Conn: here, n: times}).(*wire)
		if n, err := w.Read(buf); n != 0 || !isTimeout(err) {
			t.Errorf("%d times late: Read = %d, %v; want a timeout", times, n, err)
		}
	}
}
