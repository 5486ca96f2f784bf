package middleware

import (
	"log/slog"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for version, old := range map[string]bool{"5.0.14": true, "6.0.16": true, "6.2.0": false, "6.2.14": false, "7.0.15": false, "8.8.0": false, "10.0": false, "": false, "miniredis": false} {
		c := &checker{cfg: CheckConfig{Logger: slog.New(slog.DiscardHandler)}}
		c.version(version)
		if got := len(c.findings) == 1 && c.findings[0].Code == WarnRedisTooOld; got != old {
			t.Errorf("version %q is too old = %v; want %v", version, got, old)
		}
	}
}
