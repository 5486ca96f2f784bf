package session_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// What a session takes in Redis, beside redisstore's. docs/sessions.md has the
// table. Small sessions must not cost more than there; that a hash whose values
// exceed 64 bytes turns into a table is Redis' doing and bounded here.
func TestMemoryBesideRedisstore(t *testing.T) {
	rdb := redistest.Start(t).Client()
	size := func(st sessions.Store, values, bytes int) (n int64) {
		rdb.FlushAll(t.Context())
		newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			for i := range values {
				s.Values[fmt.Sprint("value", i)] = strings.Repeat("x", bytes)
			}
			if err := s.Save(r, w); err != nil {
				t.Fatal(err)
			}
		})
		keys := rdb.Keys(t.Context(), "*").Val()
		if len(keys) != 1 {
			t.Fatalf("keys %q; want one", keys)
		}
		return rdb.MemoryUsage(t.Context(), keys[0]).Val()
	}
	ours, theirs := open(t, rdb, session.Config{}), oldStore(t, rdb)
	for _, values := range []int{3, 8, 50} {
		for _, bytes := range []int{10, 60, 100} {
			a, b := size(ours, values, bytes), size(theirs, values, bytes)
			t.Logf("%2d values of %3d bytes: redporch %5d B, redisstore %5d B", values, bytes, a, b)
			if bytes < 64 && a > b {
				t.Errorf("%d values of %d bytes: %d B; redisstore takes %d", values, bytes, a, b)
			}
			if a > 2*b {
				t.Errorf("%d values of %d bytes: %d B; want at most twice redisstore's %d", values, bytes, a, b)
			}
		}
	}
}
