package demo

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBoundedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := slog.New(newBoundedLog(slog.NewTextHandler(&out, nil)))
		for range 1000 {
			l.With("a", 1).Warn("redis is down")
			l.WithGroup("g").Warn("so is the sky")
		}
		if n := strings.Count(out.String(), "\n"); n != 2*logLimit {
			t.Errorf("2000 records made %d lines; want %d of each message", n, logLimit)
		}
		time.Sleep(logWindow)
		l.Warn("redis is down")
		if want := fmt.Sprintf(`similar_left_out=%d`, 1000-logLimit); !strings.Contains(out.String(), want) {
			t.Errorf("the next window does not say what was left out: %s; want %s", out.String(), want)
		}
		for i := range 5000 {
			l.Warn(fmt.Sprint("data in a message ", i))
		}
		if n := len(l.Handler().(boundedLog).counts.m); n > 1000 {
			t.Errorf("remembers %d messages; want at most 1000", n)
		}
	})
}
