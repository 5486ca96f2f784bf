package session_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// TestRoutingProxy: before a proxy that sends a script to the server of its first key,
// sessions of callers at once are kept, listed and ended, as RoutingProxy says. Without
// it some of them are written where a read does not look.
func TestRoutingProxy(t *testing.T) {
	t.Parallel()
	for _, said := range []bool{true, false} {
		t.Run(fmt.Sprint(said), func(t *testing.T) {
			rdb := redis.NewClient(redistest.Router(t, redistest.Start(t), redistest.Start(t)))
			t.Cleanup(func() { rdb.Close() })
			st := open(t, rdb, session.Config{RoutingProxy: said})
			const users = 64
			browsers := make([]*browser, users)
			lost := 0
			var mu sync.Mutex
			all := func(f func(i int) bool) {
				var wg sync.WaitGroup
				for i := range users {
					wg.Go(func() {
						if !f(i) {
							mu.Lock()
							lost++
							mu.Unlock()
						}
					})
				}
				wg.Wait()
			}
			all(func(i int) bool {
				browsers[i] = newBrowser()
				_, err := login(t, browsers[i], st, fmt.Sprint("user", i))
				return err == nil
			})
			for round := range 3 {
				all(func(i int) bool { return browsers[i].try(st, set("round", round)) == nil })
				all(func(i int) bool { return browsers[i].values(t, st)["round"] == round })
			}
			all(func(i int) bool {
				list, err := st.Sessions(t.Context(), fmt.Sprint("user", i))
				return err == nil && len(list) == 1
			})
			all(func(i int) bool {
				n, err := st.RevokeUser(t.Context(), fmt.Sprint("user", i))
				return err == nil && n == 1
			})
			all(func(i int) bool { return browsers[i].values(t, st)["round"] == nil })
			if said && lost > 0 {
				t.Errorf("%d of %d calls failed or saw less than was saved", lost, 10*users)
			}
			if !said && lost == 0 {
				t.Error("nothing was lost without RoutingProxy, so this test proves nothing")
			}
		})
	}
}
