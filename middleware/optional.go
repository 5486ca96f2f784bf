package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// The optional interfaces of writers for which net/http has no name.
type (
	errorFlusher  interface{ FlushError() error }
	closeNotifier interface{ CloseNotify() <-chan bool }
	deadliner     interface {
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}
	fullDuplexer interface{ EnableFullDuplex() error }
)

// optional says which optional interfaces a writer has, a bit each.
type optional uint16

const (
	hasFlush optional = 1 << iota
	hasFlushError
	hasCloseNotify
	hasDeadlines
	hasFullDuplex
	hasWriteString
	hasHijack
	hasReadFrom
	hasPush

	serverOptional = hasFlush | hasFlushError | hasCloseNotify | hasDeadlines | hasFullDuplex | hasWriteString
	http1Optional  = serverOptional | hasHijack | hasReadFrom
	http2Optional  = serverOptional | hasPush
)

func optionalOf(w http.ResponseWriter) (o optional) {
	if _, ok := w.(http.Flusher); ok {
		o |= hasFlush
	}
	if _, ok := w.(errorFlusher); ok {
		o |= hasFlushError
	}
	if _, ok := w.(closeNotifier); ok {
		o |= hasCloseNotify
	}
	if _, ok := w.(deadliner); ok {
		o |= hasDeadlines
	}
	if _, ok := w.(fullDuplexer); ok {
		o |= hasFullDuplex
	}
	if _, ok := w.(io.StringWriter); ok {
		o |= hasWriteString
	}
	if _, ok := w.(http.Hijacker); ok {
		o |= hasHijack
	}
	if _, ok := w.(io.ReaderFrom); ok {
		o |= hasReadFrom
	}
	if _, ok := w.(http.Pusher); ok {
		o |= hasPush
	}
	return o
}

// bareWriter has nothing optional.
type bareWriter writer

func (w *bareWriter) Header() http.Header         { return w.under.Header() }
func (w *bareWriter) WriteHeader(code int)        { (*writer)(w).writeHeader(code) }
func (w *bareWriter) Write(b []byte) (int, error) { return (*writer)(w).write(b) }
func (w *bareWriter) Unwrap() http.ResponseWriter { return w.under }

// http1Writer is what the writers of net/http's server for HTTP/1 are.
type http1Writer writer

func (w *http1Writer) Header() http.Header                 { return w.under.Header() }
func (w *http1Writer) WriteHeader(code int)                { (*writer)(w).writeHeader(code) }
func (w *http1Writer) Write(b []byte) (int, error)         { return (*writer)(w).write(b) }
func (w *http1Writer) WriteString(s string) (int, error)   { return (*writer)(w).writeString(s) }
func (w *http1Writer) ReadFrom(r io.Reader) (int64, error) { return (*writer)(w).readFrom(r) }
func (w *http1Writer) Flush()                              { (*writer)(w).flush() }
func (w *http1Writer) FlushError() error                   { return (*writer)(w).flushError() }
func (w *http1Writer) CloseNotify() <-chan bool            { return w.under.(closeNotifier).CloseNotify() }
func (w *http1Writer) EnableFullDuplex() error             { return w.under.(fullDuplexer).EnableFullDuplex() }
func (w *http1Writer) SetReadDeadline(t time.Time) error {
	return w.under.(deadliner).SetReadDeadline(t)
}
func (w *http1Writer) SetWriteDeadline(t time.Time) error {
	return w.under.(deadliner).SetWriteDeadline(t)
}
func (w *http1Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) { return (*writer)(w).hijack() }
func (w *http1Writer) Unwrap() http.ResponseWriter                  { return w.under }

// http2Writer is what those for HTTP/2 are.
type http2Writer writer

func (w *http2Writer) Header() http.Header               { return w.under.Header() }
func (w *http2Writer) WriteHeader(code int)              { (*writer)(w).writeHeader(code) }
func (w *http2Writer) Write(b []byte) (int, error)       { return (*writer)(w).write(b) }
func (w *http2Writer) WriteString(s string) (int, error) { return (*writer)(w).writeString(s) }
func (w *http2Writer) Flush()                            { (*writer)(w).flush() }
func (w *http2Writer) FlushError() error                 { return (*writer)(w).flushError() }
func (w *http2Writer) CloseNotify() <-chan bool          { return w.under.(closeNotifier).CloseNotify() }
func (w *http2Writer) EnableFullDuplex() error           { return w.under.(fullDuplexer).EnableFullDuplex() }
func (w *http2Writer) SetReadDeadline(t time.Time) error {
	return w.under.(deadliner).SetReadDeadline(t)
}
func (w *http2Writer) SetWriteDeadline(t time.Time) error {
	return w.under.(deadliner).SetWriteDeadline(t)
}
func (w *http2Writer) Push(target string, opts *http.PushOptions) error {
	return w.under.(http.Pusher).Push(target, opts)
}
func (w *http2Writer) Unwrap() http.ResponseWriter { return w.under }
