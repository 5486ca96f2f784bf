package middleware_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

// TestCachedErrors: requests that get no value are not said to have got one from
// somewhere, and a key that can't be cached is the client's fault.
func TestCachedErrors(t *testing.T) {
	_, rdb := redistest.Mini(t)
	cache, err := cacheaside.New(rdb, "user", func(ctx context.Context, id string) (int, error) {
		switch id {
		case "slow":
			<-ctx.Done()
			return 0, ctx.Err()
		case "broken":
			return 0, io.ErrUnexpectedEOF
		}
		return 0, cacheaside.ErrNotFound
	}, cacheaside.Config{Timeout: 10 * time.Second, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	var log strings.Builder
	h := middleware.Chain(
		middleware.AccessLog(middleware.AccessLogConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))}),
	)(middleware.Cached(cache, func(r *http.Request) (string, error) { return r.URL.Path[1:], nil }, middleware.CachedConfig[int]{Logger: discard()}))
	for _, tt := range []struct {
		path, cache string
		code        int
	}{
		{"slow", "", 504},
		{strings.Repeat("x", 5000), "", 400},
		{"broken", "loader", 500},
		{"nobody", "loader", 404},
		{"nobody", "negative", 404},
	} {
		log.Reset()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if tt.path != "slow" {
			cancel()
			ctx, cancel = t.Context(), func() {}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/"+tt.path, nil))
		cancel()
		_, noted, _ := strings.Cut(log.String(), " cache=")
		if noted = strings.TrimSpace(noted); w.Code != tt.code || noted != tt.cache {
			t.Errorf("%.10s: status %d, cache=%q; want %d, %q", tt.path, w.Code, noted, tt.code, tt.cache)
		}
	}
}
