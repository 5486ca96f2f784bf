package session_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// BenchmarkLoad is a request for a known session of three values, from cookie to
// Values, and no change.
func BenchmarkLoad(b *testing.B) { benchmark(b, false) }

// BenchmarkLoadSave also changes one value.
func BenchmarkLoadSave(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, change bool) {
	srv := redistest.Start(b)
	// Not the server's own Client, which counts what goes over the wire.
	rdb := redis.NewClient(&redis.Options{Network: srv.Network(), Addr: srv.Addr(), PoolSize: 64, Protocol: 2})
	b.Cleanup(func() { rdb.Close() })
	st := open(b, rdb, session.Config{Keys: [][]byte{key(3)}, Timeout: 5 * time.Second})
	br := newBrowser()
	br.do(func(w http.ResponseWriter, r *http.Request) {
		s, err := st.Get(r, "s")
		if err != nil {
			b.Fatal(err)
		}
		s.Values["user"], s.Values["name"], s.Values["admin"] = int64(42), "Ada Lovelace", true
		if err := s.Save(r, w); err != nil {
			b.Fatal(err)
		}
	})
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.ReportAllocs()
			var n atomic.Int64
			done := make(chan error, callers)
			b.ResetTimer()
			for range callers {
				go func() {
					r := httptest.NewRequest("GET", "/", nil)
					r.Header.Set("Cookie", "theme=dark; s="+br.jar["s"])
					w := httptest.NewRecorder()
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						s, err := st.New(r, "s")
						if err == nil && len(s.Values) < 3 {
							err = fmt.Errorf("Values = %v", s.Values)
						}
						if change && err == nil {
							s.Values["user"] = i
						}
						if err == nil {
							_, err = st.Commit(w, r, s)
						}
						if err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range callers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
