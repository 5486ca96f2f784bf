package faults_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
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
