package middleware_test

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// logs collects what is logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newLogs() (*logs, *slog.Logger) {
	l := new(logs)
	return l, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// count returns how many lines contain s.
func (l *logs) count(s string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// limits returns a policy that nothing in a test reaches.
func limits() []ratelimit.Policy {
	return []ratelimit.Policy{ratelimit.TokenBucket("api", 1_000_000, time.Second, 1_000_000)}
}
