package ratelimit

import (
	"fmt"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

// A burst that never got to Redis opens no limit, whatever is to happen while Redis is
// away, and does not count as Redis being away.
func TestOverloadOpensNoLimit(t *testing.T) {
	_, rdb := redistest.Mini(t)
	cause := fmt.Errorf("waited in line: %w", ErrOverloaded)
	decide := func(cause error, policies ...Policy) (Result, bool) {
		told := false
		l, err := New(rdb, Config{Hooks: Hooks{OnStateChange: func(bool, error) { told = true }}}, policies...)
		if err != nil {
			t.Fatal(err)
		}
		res, err := l.unavailable("k", 1, cause, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res, told
	}
	open := FixedWindow("a", 10, time.Minute).OnUnavailable(FailOpen)
	local := FixedWindow("b", 10, time.Minute).OnUnavailable(Local)
	for _, c := range []struct {
		what     string
		cause    error
		policies []Policy
		allowed  bool
		source   Source
		told     bool
	}{
		{"Redis is away", ErrUnavailable, []Policy{open}, true, SourceFailOpen, true},
		{"overload", cause, []Policy{open}, false, SourceFailClosed, false},
		{"overload, Local beside it", cause, []Policy{open, local}, true, SourceLocal, false},
		{"overload, a shadow", cause, []Policy{open.Shadow()}, true, SourceFailOpen, false},
	} {
		if res, told := decide(c.cause, c.policies...); res.Allowed != c.allowed || res.Source != c.source || told != c.told {
			t.Errorf("%s: allowed %v by %v, told %v; want %v by %v, %v", c.what, res.Allowed, res.Source, told, c.allowed, c.source, c.told)
		}
	}
}
