package middleware

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

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

	begun      bool // hooks have run
	goneBefore bool // the client, before the headers were out
	sent       bool // headers are out, or the connection is the handler's
	hijacked   bool
	hijacking  bool // the handler has asked for the connection
	replaced   bool
	before     []*holder // whose sessions are to be saved before the first byte
	room       [1]*holder
	visit      *visit
	kept       http.Header // what an informational response might have taken along
}

type answer func(w http.ResponseWriter)

// newWriter wraps w. The writers of net/http's own servers, and those that have
// nothing optional, get wrappers of our own, which are the writer itself under
// another type; httpsnoop, which knows all combinations, makes a closure of each
// method, 13 allocations in all.
func newWriter(w http.ResponseWriter) *writer {
	t := &writer{under: w}
	switch optionalOf(w) {
	case 0:
		t.out = (*bareWriter)(t)
	case http1Optional:
		t.out = (*http1Writer)(t)
	case http2Optional:
		t.out = (*http2Writer)(t)
	default:
		t.out = httpsnoop.Wrap(w, httpsnoop.Hooks{
			WriteHeader: func(httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc { return t.writeHeader },
			Write:       func(httpsnoop.WriteFunc) httpsnoop.WriteFunc { return t.write },
			WriteString: func(httpsnoop.WriteStringFunc) httpsnoop.WriteStringFunc { return t.writeString },
			ReadFrom:    func(httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc { return t.readFrom },
			Flush:       func(httpsnoop.FlushFunc) httpsnoop.FlushFunc { return t.flush },
			FlushError:  func(httpsnoop.FlushErrorFunc) httpsnoop.FlushErrorFunc { return t.flushError },
			Hijack:      func(httpsnoop.HijackFunc) httpsnoop.HijackFunc { return t.hijack },
		})
	}
	return t
}

func (t *writer) writeHeader(code int) {
	if code < 200 && code != http.StatusSwitchingProtocols || code > 999 {
		if !t.replaced {
			t.keepFields()
			t.under.WriteHeader(code) // informational, or so wrong that net/http panics
		}
		return
	}
	if t.begin(code) {
		t.under.WriteHeader(code)
	}
}

func (t *writer) write(b []byte) (int, error) {
	if !t.begin(http.StatusOK) {
		return 0, ErrReplaced
	}
	n, err := t.under.Write(b)
	t.bytes += int64(n)
	return n, err
}

// The methods below are called only where the writer underneath has them.

func (t *writer) writeString(s string) (int, error) {
	if !t.begin(http.StatusOK) {
		return 0, ErrReplaced
	}
	n, err := t.under.(io.StringWriter).WriteString(s)
	t.bytes += int64(n)
	return n, err
}

func (t *writer) readFrom(src io.Reader) (int64, error) {
	if !t.begin(http.StatusOK) {
		return 0, ErrReplaced
	}
	n, err := t.under.(io.ReaderFrom).ReadFrom(src)
	t.bytes += n
	return n, err
}

func (t *writer) flush() {
	if t.begin(http.StatusOK) {
		t.under.(http.Flusher).Flush()
	}
}

func (t *writer) flushError() error {
	if !t.begin(http.StatusOK) {
		return ErrReplaced
	}
	return t.under.(errorFlusher).FlushError()
}

func (t *writer) hijack() (net.Conn, *bufio.ReadWriter, error) {
	// Not before WriteHeader(101), if the handler sends it that way: then the hooks
	// have run. Otherwise it may write the headers that are set here to the connection,
	// as httputil.ReverseProxy does, or its own; and Hijack may fail, so that the
	// handler answers as usual.
	t.hijacking = true
	t.runHooks(true)
	if t.replaced {
		return nil, nil, ErrReplaced
	}
	conn, rw, err := t.under.(http.Hijacker).Hijack()
	if err == nil {
		t.sent, t.hijacked = true, true
		if t.status == 0 {
			t.status = http.StatusSwitchingProtocols
		}
	}
	return conn, rw, err
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
	t.goneBefore = t.visit != nil && t.visit.Err() == context.Canceled
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
	t.restoreFields()
	for i := len(t.before) - 1; i >= 0; i-- { // the innermost first
		if instead := t.before[i].beforeHeaders(headers); instead != nil {
			t.before[i].visit.setReplaced()
			t.replace(instead)
			return
		}
	}
}

// keepFields remembers the fields of this package before an informational response is
// sent. httputil.ReverseProxy empties the header map after each that it passes on.
func (t *writer) keepFields() {
	if t.kept != nil || t.begun {
		return
	}
	t.kept = make(http.Header)
	for name, values := range t.under.Header() {
		if strings.Contains(name, "Ratelimit") || name == t.visit.idField {
			t.kept[name] = values
		}
	}
}

func (t *writer) restoreFields() {
	for name, values := range t.kept {
		if h := t.under.Header(); len(h[name]) == 0 {
			h[name] = values
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

// onBegin has the session of h saved before the first byte, unless it is too late.
func (t *writer) onBegin(h *holder) {
	if t.begun || t.sent {
		return
	}
	if t.before == nil {
		t.before = t.room[:0]
	}
	t.before = append(t.before, h)
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
