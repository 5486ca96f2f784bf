package middleware_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// sink is the cheapest writer that has what net/http's for HTTP/1 has.
type sink struct {
	header http.Header
	n      int
}

func (s *sink) Header() http.Header                 { return s.header }
func (s *sink) WriteHeader(int)                     {}
func (s *sink) Write(b []byte) (int, error)         { s.n += len(b); return len(b), nil }
func (s *sink) WriteString(b string) (int, error)   { s.n += len(b); return len(b), nil }
func (s *sink) Flush()                              {}
func (s *sink) FlushError() error                   { return nil }
func (s *sink) ReadFrom(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) }
func (s *sink) SetReadDeadline(time.Time) error     { return nil }
func (s *sink) SetWriteDeadline(time.Time) error    { return nil }
func (s *sink) EnableFullDuplex() error             { return nil }
func (s *sink) CloseNotify() <-chan bool            { return nil }
func (s *sink) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, http.ErrNotSupported
}

func serveLoop(b *testing.B, h http.Handler, cookie *http.Cookie) {
	b.Helper()
	b.ReportAllocs()
	req := httptest.NewRequest("GET", "/item/7", nil)
	req.RemoteAddr = "203.0.113.9:1"
	if cookie != nil {
		req.AddCookie(cookie)
	}
	ctx := context.Background()
	for b.Loop() {
		h.ServeHTTP(&sink{header: make(http.Header, 8)}, req.WithContext(ctx))
	}
}

// BenchmarkChain takes the chain apart. "nothing" is what the loop itself costs.
// Those with Redis ask a real server.
func BenchmarkChain(b *testing.B) {
	rdb := benchRedis(b)
	store := newStore(b, rdb)
	limiter := newLimiter(b, rdb, ratelimit.Config{}, limits()...)
	full := newLimiter(b, rdb, ratelimit.Config{Prefix: "full:"}, ratelimit.FixedWindow("api", 1, time.Hour))
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	plain := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	reads := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = middleware.Session(r).Values["k"]
		_, _ = io.WriteString(w, "ok")
	})
	n := 0
	writes := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		middleware.Session(r).Values["k"] = n
		_, _ = io.WriteString(w, "ok")
	})

	outer := []middleware.Middleware{
		middleware.Recover(middleware.RecoverConfig{}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{}),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: quiet}),
	}
	limit := middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{})
	sess := middleware.Sessions(store, "sid", middleware.SessionsConfig{})
	withAll := middleware.Chain(append(append([]middleware.Middleware{}, outer...), limit, sess)...)

	w := httptest.NewRecorder()
	sess(writes).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	cookie := w.Result().Cookies()[0]
	denied := middleware.RateLimit(full, middleware.ClientIP(), middleware.RateLimitConfig{})(plain)
	ask(denied, "203.0.113.9:1")

	b.Run("nothing", func(b *testing.B) { serveLoop(b, plain, cookie) })
	b.Run("recover, id, address, log", func(b *testing.B) { serveLoop(b, middleware.Chain(outer...)(plain), cookie) })
	b.Run("session unused", func(b *testing.B) { serveLoop(b, sess(plain), cookie) })
	b.Run("denied again", func(b *testing.B) { serveLoop(b, denied, nil) })
	b.Run("redis/limit", func(b *testing.B) { serveLoop(b, limit(plain), nil) })
	b.Run("redis/session read", func(b *testing.B) { serveLoop(b, sess(reads), cookie) })
	b.Run("redis/session written", func(b *testing.B) { serveLoop(b, sess(writes), cookie) })
	b.Run("redis/all, session unused", func(b *testing.B) { serveLoop(b, withAll(plain), cookie) })
	b.Run("redis/all, session read", func(b *testing.B) { serveLoop(b, withAll(reads), cookie) })
	b.Run("redis/all, session written", func(b *testing.B) { serveLoop(b, withAll(writes), cookie) })
}

func benchRedis(b *testing.B) redis.UniversalClient {
	return redistest.Start(b).Client(nil)
}

// BenchmarkClientAddr walks a list of three.
func BenchmarkClientAddr(b *testing.B) {
	h := middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("10.0.0.0/8")})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	b.ReportAllocs()
	req := httptest.NewRequest("GET", "/", nil)
	req.RemoteAddr = "10.0.0.1:1"
	req.Header.Set("X-Forwarded-For", "192.0.2.1, 203.0.113.9, 10.0.0.2")
	w := &sink{header: make(http.Header)}
	for b.Loop() {
		h.ServeHTTP(w, req)
	}
}
