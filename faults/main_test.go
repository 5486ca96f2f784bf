package faults_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// logged is what this test binary would have written to its log.
var logged logBook

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(&logged))
	redis.SetLogger(clientLog{&logged})
	redistest.Main(m)
}

// logBook counts log lines by their message and keeps none of them.
type logBook struct {
	mu    sync.Mutex
	lines map[string]int
}

func (b *logBook) add(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines == nil {
		b.lines = map[string]int{}
	}
	b.lines[text]++
}

// take returns the lines since the last take, those of go-redis apart.
func (b *logBook) take() (ours, client int, by map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	by, b.lines = b.lines, nil
	for text, n := range by {
		if text == fromClient {
			client += n
		} else {
			ours += n
		}
	}
	return ours, client, by
}

const fromClient = "go-redis"

func (b *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (b *logBook) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *logBook) WithGroup(string) slog.Handler            { return b }

func (b *logBook) Handle(_ context.Context, r slog.Record) error {
	b.add(fmt.Sprint(r.Level, " ", r.Message))
	return nil
}

type clientLog struct{ *logBook }

func (l clientLog) Printf(context.Context, string, ...any) { l.add(fromClient) }
