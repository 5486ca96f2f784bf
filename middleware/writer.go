package middleware

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/felixge/httpsnoop"
)

// ErrReplaced is returned by Write when the response was replaced by an error
// answer, since the session could not be saved.
var ErrReplaced = errors.New("middleware: response was replaced by an error answer")

// writer knows what is written through it, and runs hooks right before the first
// byte: before a final WriteHeader, Write, WriteString, ReadFrom, Flush,
// FlushError or Hijack, whichever is first. Responses with status 1xx don't
// count, except 101.
//
// out is what handlers get. It has exactly the optional interfaces of the writer
// it wraps, which httpsnoop sees to.
type writer struct {
	out    http.ResponseWriter
	under  http.ResponseWriter
	status int // 0 until the final one is known
	bytes  int64

	begun    bool // hooks have run
	sent     bool // headers are out, or the connection is the handler's
	hijacked bool
	replaced bool
	before   []beforeHeaders
}

// beforeHeaders is called once, with whether headers set now still reach the
// client. It returns what to answer instead of what the handler is about to send,
// or nil.
type beforeHeaders func(headers bool) answer

type answer func(w http.ResponseWriter)

func newWriter(w http.ResponseWriter) *writer {
	t := &writer{under: w}
	t.out = httpsnoop.Wrap(w, httpsnoop.Hooks{
		WriteHeader: func(next httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(code int) {
				if code < 200 && code != http.StatusSwitchingProtocols || code > 999 {
					if !t.replaced {
						next(code) // informational, or so wrong that net/http panics
					}
					return
				}
				if t.begin(code) {
					next(code)
				}
			}
		},
		Write: func(next httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(b []byte) (int, error) {
				if !t.begin(http.StatusOK) {
					return 0, ErrReplaced
				}
				n, err := next(b)
				t.bytes += int64(n)
				return n, err
			}
		},
		WriteString: func(next httpsnoop.WriteStringFunc) httpsnoop.WriteStringFunc {
			return func(s string) (int, error) {
				if !t.begin(http.StatusOK) {
					return 0, ErrReplaced
				}
				n, err := next(s)
				t.bytes += int64(n)
				return n, err
			}
		},
		ReadFrom: func(next httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) {
				if !t.begin(http.StatusOK) {
					return 0, ErrReplaced
				}
				n, err := next(src)
				t.bytes += n
				return n, err
			}
		},
		Flush: func(next httpsnoop.FlushFunc) httpsnoop.FlushFunc {
			return func() {
				if t.begin(http.StatusOK) {
					next()
				}
			}
		},
		FlushError: func(next httpsnoop.FlushErrorFunc) httpsnoop.FlushErrorFunc {
			return func() error {
				if !t.begin(http.StatusOK) {
					return ErrReplaced
				}
				return next()
			}
		},
		Hijack: func(next httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				// Not before WriteHeader(101), if the handler sends it that way:
				// then the hooks have run. Otherwise it writes its own headers to
				// the connection, and ours are lost.
				t.runHooks(false)
				if t.replaced {
					return nil, nil, ErrReplaced
				}
				conn, rw, err := next()
				if err == nil {
					t.sent, t.hijacked = true, true
					if t.status == 0 {
						t.status = http.StatusSwitchingProtocols
					}
				}
				return conn, rw, err
			}
		},
	})
	return t
}

// begin is called before anything is sent. It reports whether to go on.
func (t *writer) begin(code int) bool {
	if t.sent || t.replaced {
		return !t.replaced
	}
	t.runHooks(true)
	if t.replaced {
		return false
	}
	t.sent = true
	if t.status == 0 {
		t.status = code
	}
	return true
}

func (t *writer) runHooks(headers bool) {
	if t.begun {
		return
	}
	t.begun = true
	for i := len(t.before) - 1; i >= 0; i-- { // the innermost first
		if instead := t.before[i](headers); instead != nil {
			t.replace(instead)
			return
		}
	}
}

// replace answers with h instead of what the handler was about to send.
func (t *writer) replace(h answer) {
	forError(t.under.Header())
	t.sent = true
	t.replaced = true
	c := &counter{ResponseWriter: t.under}
	h(c)
	t.status, t.bytes = c.status, c.n
	if t.status == 0 {
		t.status = http.StatusOK
	}
}

// forError takes out of h what described the response that an error answer
// replaces, and its cookies. What others have set, such as a request id, stays.
func forError(h http.Header) {
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Type", "Content-Disposition",
		"Content-Range", "Accept-Ranges", "Etag", "Last-Modified", "Location", "Set-Cookie", "Trailer"} {
		delete(h, name)
	}
	h["Cache-Control"] = []string{"no-store"}
}

// onBegin registers a hook. It reports false when it is too late for one.
func (t *writer) onBegin(f beforeHeaders) bool {
	if t.begun || t.sent {
		return false
	}
	t.before = append(t.before, f)
	return true
}

// code is the status for reports: that which net/http sends by itself when a
// handler returns without having written anything is 200.
func (t *writer) code() int {
	if t.status == 0 {
		return http.StatusOK
	}
	return t.status
}

// counter notes status and length of a replacement answer.
type counter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *counter) WriteHeader(code int) {
	if c.status == 0 {
		c.status = code
	}
	c.ResponseWriter.WriteHeader(code)
}

func (c *counter) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(b)
	c.n += int64(n)
	return n, err
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
