package demo

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// boundedLog lets at most logLimit records with one message pass in each
// logWindow, so that a Redis that is down can't fill a disk. The first record of
// the next window tells how many were left out.
type boundedLog struct {
	slog.Handler
	counts *logCounts
}

const (
	logLimit  = 5
	logWindow = 10 * time.Second
)

type logCounts struct {
	mu sync.Mutex
	m  map[string]logCount
}

type logCount struct {
	since   time.Time
	n, over int
}

func newBoundedLog(h slog.Handler) boundedLog {
	return boundedLog{h, &logCounts{m: make(map[string]logCount)}}
}

func (b boundedLog) Handle(ctx context.Context, r slog.Record) error {
	b.counts.mu.Lock()
	c := b.counts.m[r.Message]
	over := 0
	if r.Time.Sub(c.since) >= logWindow {
		over, c = c.over, logCount{since: r.Time}
	}
	if c.n++; c.n > logLimit {
		c.over++
	}
	if len(b.counts.m) >= 1000 {
		clear(b.counts.m) // messages are few, unless something puts data into them
	}
	b.counts.m[r.Message] = c
	b.counts.mu.Unlock()
	if c.n > logLimit {
		return nil
	}
	if over > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("similar_left_out", over))
	}
	return b.Handler.Handle(ctx, r)
}

func (b boundedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return boundedLog{b.Handler.WithAttrs(attrs), b.counts}
}

func (b boundedLog) WithGroup(name string) slog.Handler {
	return boundedLog{b.Handler.WithGroup(name), b.counts}
}
