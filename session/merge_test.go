package session_test

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// Saves that meet are written by few script runs, and each has an outcome of its own:
// one whose session was signed out meanwhile stays gone, one whose key holds something
// else is an error, and neither is anything to the others.
func TestSavesThatMeet(t *testing.T) {
	s := redistest.Start(t, redistest.TCP())
	proxy := redistest.NewProxy(t, "tcp", s.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	t.Cleanup(func() { rdb.Close() })
	direct := s.Client()
	st := open(t, rdb, session.Config{Timeout: 20 * time.Second})
	const n = 100
	browsers := make([]*browser, n)
	ids := make([]string, n)
	for i := range browsers {
		browsers[i] = newBrowser()
		browsers[i].edit(t, st, func(s *sessions.Session) {
			s.Values["i"], s.Values["old"], s.Values["flashes"] = i, "x", []any{"a"}
		})
		browsers[i].do(func(_ http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			ids[i] = session.ID(s)
		})
	}
	key := func(i int) string { return session.DefaultPrefix + "{" + ids[i][:3] + "}:" + ids[i][4:] }
	runs := func() (n int) {
		info, err := direct.InfoMap(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range info {
			fmt.Sscanf(section["cmdstat_evalsha"], "calls=%d", &n)
		}
		return n
	}
	for _, missing := range []bool{false, true} {
		if missing { // the server does not know the script when the run arrives
			if err := direct.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		before := runs()
		// All are loaded, then meet while the server does not answer.
		proxy.Set(redistest.Fault{Match: "evalsha", DelayReply: 200 * time.Millisecond})
		var loaded, done sync.WaitGroup
		start := make(chan struct{})
		errs := make([]error, n)
		loaded.Add(n)
		for i, b := range browsers {
			done.Go(func() {
				errs[i] = b.try(st, func(s *sessions.Session) {
					s.Values["i"], s.Values["new"] = i+1000, missing
					delete(s.Values, "old")
					loaded.Done()
					<-start
				})
			})
		}
		loaded.Wait()
		if missing {
			if err := errors.Join(direct.Del(t.Context(), key(7)).Err(), direct.Set(t.Context(), key(8), "somebody else's", 0).Err()); err != nil {
				t.Fatal(err)
			}
			before = runs()
		}
		close(start)
		done.Wait()
		proxy.Set(redistest.Fault{})
		for i, err := range errs {
			switch {
			case missing && i == 7:
				if !errors.Is(err, session.ErrSessionGone) {
					t.Errorf("save of a deleted session = %v; want ErrSessionGone", err)
				}
			case missing && i == 8:
				if err == nil || errors.Is(err, session.ErrUnavailable) {
					t.Errorf("save over somebody else's key = %v; want an error that is not ErrUnavailable", err)
				}
			case err != nil:
				t.Errorf("save %d = %v; want none", i, err)
			default:
				got := browsers[i].values(t, st)
				if _, old := got["old"]; old || got["i"] != i+1000 || got["new"] != missing || fmt.Sprint(got["flashes"]) != "[a]" {
					t.Errorf("session %d holds %v; want i = %d, new = %v, one flash and no old", i, got, i+1000, missing)
				}
			}
		}
		if n := runs() - before; n > 20 {
			t.Errorf("100 saves that met took %d script runs; want a few", n)
		}
		if missing && direct.Exists(t.Context(), key(7)).Val() != 0 {
			t.Error("a save brought a deleted session back")
		}
	}
}
