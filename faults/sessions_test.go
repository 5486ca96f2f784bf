package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// openSessions returns a store whose timeout a busy machine does not reach.
func openSessions(t *testing.T, rdb redis.UniversalClient, cfg session.Config) *session.Store {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	st, err := session.New(rdb, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// requestWith returns a request with the cookie of an earlier response.
func requestWith(cookie string) *http.Request {
	r := httptest.NewRequest("GET", "https://example.com/", nil)
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	return r
}

func cookieOf(w *httptest.ResponseRecorder) string {
	for _, c := range w.Result().Cookies() {
		return c.Name + "=" + c.Value
	}
	return ""
}

// 1,000 requests that each set another value of one session, a hundred at a time,
// lose none.
func TestThousandWritersLoseNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := openSessions(t, rdb, session.Config{MaxBytes: 1 << 20})
		w := httptest.NewRecorder()
		first, _ := st.New(requestWith(""), "s")
		first.Values["first"] = true
		if err := first.Save(requestWith(""), w); err != nil {
			t.Fatal(err)
		}
		cookie := cookieOf(w)
		const writers, batch = 1000, 100
		for at := 0; at < writers; at += batch {
			loaded := make([]*sessions.Session, batch)
			for i := range loaded { // all load before any saves
				s, err := st.New(requestWith(cookie), "s")
				if err != nil {
					t.Fatal(err)
				}
				loaded[i] = s
			}
			var wg sync.WaitGroup
			for i, s := range loaded {
				wg.Go(func() {
					s.Values["key"+strconv.Itoa(at+i)] = at + i
					if err := s.Save(requestWith(cookie), nil); err != nil {
						t.Errorf("Save = %v", err)
					}
				})
			}
			wg.Wait()
		}
		s, err := st.New(requestWith(cookie), "s")
		if err != nil || len(s.Values) != writers+1 {
			t.Fatalf("%d values, %v; want %d", len(s.Values), err, writers+1)
		}
		for i := range writers {
			if s.Values["key"+strconv.Itoa(i)] != i {
				t.Fatalf("value %d is %v", i, s.Values["key"+strconv.Itoa(i)])
			}
		}
	})
}

// A logout among a hundred savers is final, 500 times.
func TestLogoutsAmongSaversAreFinal(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		st := openSessions(t, rdb, session.Config{})
		const rounds, savers = 500, 100
		for round := range rounds {
			w := httptest.NewRecorder()
			first, _ := st.New(requestWith(""), "s")
			first.Values["user"] = round
			if err := first.Save(requestWith(""), w); err != nil {
				t.Fatal(err)
			}
			cookie := cookieOf(w)
			start := make(chan struct{})
			var wg sync.WaitGroup
			for i := range savers {
				wg.Go(func() {
					s, err := st.New(requestWith(cookie), "s")
					if err != nil {
						t.Error(err)
					}
					if s.IsNew {
						return // logged out before this one began
					}
					<-start
					s.Values[fmt.Sprint("k", i)] = i
					if err := s.Save(requestWith(cookie), httptest.NewRecorder()); err != nil && !errors.Is(err, session.ErrSessionGone) {
						t.Errorf("Save = %v; want nil or ErrSessionGone", err)
					}
				})
			}
			wg.Go(func() {
				s, err := st.New(requestWith(cookie), "s")
				close(start)
				if err := errors.Join(err, st.Destroy(httptest.NewRecorder(), requestWith(cookie), s)); err != nil {
					t.Errorf("Destroy = %v", err)
				}
			})
			wg.Wait()
			if s, err := st.New(requestWith(cookie), "s"); err != nil || !s.IsNew {
				t.Fatalf("round %d: the session is back with %v, %v", round, s.Values, err)
			}
		}
		if n, err := st.Len(t.Context()); n != 0 || err != nil {
			t.Errorf("Len = %d, %v; want 0", n, err)
		}
	})
}

// A session in use ends at its absolute time, one that is not used at its idle time,
// as the clock goes.
func TestSessionsExpireByTheClock(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {

		st := openSessions(t, rdb, session.Config{IdleTimeout: time.Second, AbsoluteTimeout: 2 * time.Second, TouchEvery: 100 * time.Millisecond})
		begin := func() string {
			w := httptest.NewRecorder()
			s, _ := st.New(requestWith(""), "s")
			s.Values["x"] = 1
			if err := s.Save(requestWith(""), w); err != nil {
				t.Fatal(err)
			}
			return cookieOf(w)
		}
		there := func(cookie string) bool {
			s, err := st.New(requestWith(cookie), "s")
			if err != nil {
				t.Fatal(err)
			}
			return !s.IsNew
		}
		used, idle := begin(), begin()
		start := time.Now()
		longest, last := time.Duration(0), start // between two uses: a busy machine may be late
		for there(used) {
			longest, last = max(longest, time.Since(last)), time.Now()
			if time.Since(start) > time.Minute {
				t.Fatal("a session in use lives for a minute; want its absolute 2s")
			}
			time.Sleep(50 * time.Millisecond)
		}
		switch lived := last.Sub(start); {
		case lived > 2*time.Second+longest:
			t.Errorf("a session in use lived for %v; want its absolute 2s", lived)
		case lived < time.Second && longest < 500*time.Millisecond:
			t.Errorf("a session that was used each %v lived for %v; want 2s", longest, lived)
		}
		if there(idle) {
			t.Error("an idle session opens after twice its idle time")
		}
	})
}

// exchanges is a hook that counts exchanges with Redis, and the commands of the largest.
type exchanges struct{ n, largest atomic.Int64 }

func (e *exchanges) DialHook(next redis.DialHook) redis.DialHook { return next }

func (e *exchanges) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		e.n.Add(1)
		return next(ctx, cmd)
	}
}

func (e *exchanges) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		e.n.Add(1)
		for n := e.largest.Load(); n < int64(len(cmds)) && !e.largest.CompareAndSwap(n, int64(len(cmds))); n = e.largest.Load() {
		}
		return next(ctx, cmds)
	}
}

// Sessions and RevokeUser of a user with 20,000 sessions ask for 250 at a time, each with
// the whole Timeout, while somebody goes on signing in; the hooks are told of each.
func TestTwentyThousandSessionsOfOneUser(t *testing.T) {
	n := 20_000
	if testing.Short() {
		n = 4_000
	}
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		var told atomic.Int64
		e := &exchanges{}
		rdb.AddHook(e)
		st := openSessions(t, rdb, session.Config{MaxPerUser: -1, Hooks: session.Hooks{
			Revoked: func(context.Context, session.Event) { told.Add(1) },
		}})
		var failed atomic.Value
		signIn := func() {
			s, _ := st.New(requestWith(""), "s")
			if err := errors.Join(st.Bind(s, "ada"), st.Save(requestWith(""), httptest.NewRecorder(), s)); err != nil {
				failed.Store(err)
			}
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range n / 16 {
					signIn()
				}
			})
		}
		wg.Wait()
		_ = st.Close() // until nothing is done in the background
		e.n.Store(0)
		e.largest.Store(0)
		began := time.Now()
		list, err := st.Sessions(t.Context(), "ada")
		t.Logf("Sessions of %d: %v, %d exchanges", len(list), time.Since(began).Round(time.Millisecond), e.n.Load())
		if most := int64(n/250 + n/5000 + 2); len(list) != n || err != nil || e.n.Load() > most {
			t.Errorf("Sessions = %d, %v in %d exchanges; want %d in %d at most", len(list), err, e.n.Load(), n, most)
		}
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					signIn()
				}
			}
		})
		began = time.Now()
		ended, err := st.RevokeUser(t.Context(), "ada")
		t.Logf("RevokeUser ended %d: %v", ended, time.Since(began).Round(time.Millisecond))
		close(stop)
		wg.Wait()
		if err != nil || ended < n || told.Load() != int64(ended) {
			t.Errorf("RevokeUser = %d, %v, hooks told of %d; want %d or more", ended, err, told.Load(), n)
		}
		if most := e.largest.Load(); most > 2*250+16 { // with what the logins send
			t.Errorf("an exchange had %d commands; want 250 sessions in one at most", most)
		}
		was := make(map[string]bool)
		for _, i := range list {
			was[i.ID] = true
		}
		for i, err := range st.SessionsOf(t.Context(), "ada") {
			if err != nil || was[i.ID] {
				t.Fatalf("%s is left, %v", i.ID, err)
			}
		}
		if err, _ := failed.Load().(error); err != nil {
			t.Error(err)
		}
	})
}
