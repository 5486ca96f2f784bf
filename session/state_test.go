package session

import (
	"runtime"
	"testing"
	"time"

	"github.com/gorilla/sessions"
)

// States live as long as their sessions, and no longer. Sessions of this test's
// size take over addresses of those before.
func TestStatesEndWithTheirSessions(t *testing.T) {
	states := func() (n int) {
		for i := range table {
			table[i].Lock()
			n += len(table[i].m)
			table[i].Unlock()
		}
		return n
	}
	for range 3 { // of other tests
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
	}
	others := states()
	kept := make(map[*sessions.Session]*state)
	var st Store
	for i := range 20_000 {
		s, x := sessions.NewSession(nil, "s"), new(state)
		own := i%2 == 0 // as New makes it
		if own {
			b := st.newBox("s")
			s, x = &b.s, &b.x
		}
		if recall(s) != nil {
			t.Fatal("a new session has the state of one that had its address before")
		}
		if own {
			remember(s, nil)
		} else {
			remember(s, x)
		}
		if i%20 < 2 {
			kept[s] = x
		}
		if i%5000 == 0 {
			runtime.GC()
		}
	}
	sweptTo := func(want int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			if n := states(); n <= others+want {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%d states are left for %d sessions", n, want)
			}
		}
	}
	sweptTo(len(kept))
	for s, x := range kept {
		if recall(s) != x {
			t.Fatal("a session that is referred to has lost its state")
		}
	}
	clear(kept)
	sweptTo(0)
	s, x := sessions.NewSession(nil, "s"), new(state) // and after it had nothing to do
	remember(s, x)
	if recall(s) != x {
		t.Error("no state after the table was empty")
	}
	runtime.KeepAlive(s)
	sweptTo(0)
}
