package session_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// What Preload and Session find is what New finds, and can be saved like it.
func TestPreload(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}})
		if err != nil {
			t.Fatal(err)
		}
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["n"] = 1 })
		other := newBrowser()
		other.edit(t, st, func(s *sessions.Session) { s.Values["n"] = 7 })
		unknown := newBrowser()
		unknown.edit(t, st, nil)
		unknown.do(func(_ http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := st.Destroy(httptest.NewRecorder(), r, s); err != nil {
				t.Fatal(err)
			}
		})

		for _, c := range []struct {
			name    string
			cookies []string // values for "s"
			want    any      // the value of n; nil: a new session
			begun   bool
		}{
			{"its cookie", []string{b.jar["s"]}, 1, true},
			{"no cookie", nil, nil, false},
			{"forged", []string{b.jar["s"][:len(b.jar["s"])-4] + "AAAA"}, nil, false},
			{"forged before its own", []string{"x", b.jar["s"]}, 1, true},
			{"unknown", []string{unknown.jar["s"]}, nil, true},
			{"unknown before its own", []string{unknown.jar["s"], b.jar["s"]}, 1, false},
			{"one twice", []string{other.jar["s"], other.jar["s"]}, 7, true},
			{"two", []string{other.jar["s"], b.jar["s"]}, 7, false},
		} {
			r := httptest.NewRequest("GET", "https://example.com/", nil)
			for _, v := range c.cookies {
				r.Header.Add("Cookie", "s="+v)
			}
			l := st.Preload(r, "s")
			if (l != nil) != c.begun {
				t.Errorf("%s: Preload = %v; want one: %t", c.name, l, c.begun)
			}
			if l == nil {
				continue
			}
			s, err := l.Session()
			if err != nil || s.Values["n"] != c.want || s.IsNew != (c.want == nil) || (session.ID(s) == "") != s.IsNew || s.Store() != st {
				t.Errorf("%s: Session = %v (new: %t), %v; want n = %v", c.name, s.Values, s.IsNew, err, c.want)
			}
			again, err := l.Session()
			if err != nil || again.Values["n"] != c.want || again == s {
				t.Errorf("%s: a second Session = %v, %v; want another with n = %v", c.name, again.Values, err, c.want)
			}
			l.Drop() // does nothing any more
		}

		// It is saved under its id, and what another request wrote meanwhile stays.
		b.do(func(w http.ResponseWriter, r *http.Request) {
			l := st.Preload(r, "s")
			s, err := l.Session()
			if err != nil {
				t.Fatal(err)
			}
			b.clone().edit(t, st, func(s *sessions.Session) { s.Values["other"] = true })
			s.Values["n"] = 2
			if err := st.Save(r, w, s); err != nil {
				t.Error(err)
			}
		})
		b.edit(t, st, func(s *sessions.Session) {
			if s.Values["n"] != 2 || s.Values["other"] != true {
				t.Errorf("values = %v; want both changes", s.Values)
			}
		})
	})
}

// It takes one round trip in all, and none of it after Preload if there is time.
func TestPreloadRoundTrips(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}})
		if err != nil {
			t.Fatal(err)
		}
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["n"] = 1 })
		before := st.Stats()
		n := redistest.Count(t, rdb, func() {
			b.do(func(_ http.ResponseWriter, r *http.Request) {
				l := st.Preload(r, "s")
				if got := st.Stats().Loads - before.Loads; got != 1 {
					t.Errorf("loads after Preload = %d; want 1", got)
				}
				if s, err := l.Session(); err != nil || s.Values["n"] != 1 {
					t.Errorf("Session = %v, %v", s.Values, err)
				}
			})
		})
		if after := st.Stats(); n.RoundTrips != 1 || after.Loads-before.Loads != 1 || after.Hits-before.Hits != 1 {
			t.Errorf("%d round trips, %d loads, %d hits; want one of each", n.RoundTrips, after.Loads-before.Loads, after.Hits-before.Hits)
		}
	})
}

// Without Redis the session is usable, as that of New, and a save later merges.
func TestPreloadUnavailable(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	rdb := srv.Client()
	st, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	b := newBrowser()
	b.edit(t, st, func(s *sessions.Session) { s.Values["n"] = 1 })
	b.do(func(w http.ResponseWriter, r *http.Request) {
		srv.Pause()
		l := st.Preload(r, "s")
		s, err := l.Session()
		srv.Resume()
		if !errors.Is(err, session.ErrUnavailable) || session.Loaded(s) || s.ID != "" {
			t.Errorf("Session = %v, %v; want an empty one and ErrUnavailable", s.Values, err)
		}
		s.Values["m"] = 2
		if err := untilUp(func() error { return st.Save(r, w, s) }); err != nil {
			t.Errorf("Save = %v; want nil", err)
		}
	})
	b.edit(t, st, func(s *sessions.Session) {
		if s.Values["n"] != 1 || s.Values["m"] != 2 {
			t.Errorf("values = %v; want n = 1 and m = 2", s.Values)
		}
	})
	b.do(func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		l := st.Preload(r.WithContext(ctx), "s")
		l.Drop()
		cancel()
		if s, err := l.Session(); !errors.Is(err, context.Canceled) || session.Loaded(s) {
			t.Errorf("Session after the request ended = %v, %v; want context.Canceled", s.Values, err)
		}
	})
}

// Where the session may be in two places, or come from another store, New is the
// way, or finds it all the same.
func TestPreloadElsewhere(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		legacy := sessions.NewCookieStore([]byte("an old key of at least 32 bytes..."))
		st, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}, Legacy: legacy})
		if err != nil {
			t.Fatal(err)
		}
		// A cookie of ours whose session is gone, and one of the old store.
		gone, old := newBrowser(), newBrowser()
		gone.edit(t, st, func(s *sessions.Session) { s.Values["n"] = 1 })
		token := gone.jar["s"]
		gone.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		old.edit(t, legacy, func(s *sessions.Session) { s.Values["n"] = 5 })
		r := httptest.NewRequest("GET", "https://example.com/", nil)
		r.Header.Set("Cookie", "s="+old.jar["s"])
		r.Header.Add("Cookie", "s="+token)
		l := st.Preload(r, "s")
		if l == nil {
			t.Fatal("Preload = nil; want one, there is a cookie of the store")
		}
		if s, err := l.Session(); err != nil || s.Values["n"] != 5 || !s.IsNew {
			t.Errorf("Session = %v, %v; want the old store's values", s.Values, err)
		}

		both, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}, AcceptUnsigned: true, Redisstore: &session.RedisstoreConfig{}})
		if err != nil {
			t.Fatal(err)
		}
		r = httptest.NewRequest("GET", "https://example.com/", nil)
		r.Header.Set("Cookie", "s="+token)
		if l := both.Preload(r, "s"); l != nil {
			t.Error("Preload with Redisstore = one; want nil")
		}
	})
}

// Many requests at once, some of which never ask.
func TestPreloadConcurrent(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st, err := session.New(rdb, session.Config{Keys: [][]byte{key(3)}, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				b := newBrowser()
				b.edit(t, st, func(s *sessions.Session) { s.Values["n"] = i })
				for n := range 40 {
					b.do(func(_ http.ResponseWriter, r *http.Request) {
						l := st.Preload(r, "s")
						if n%3 == 0 {
							l.Drop()
							return
						}
						if s, err := l.Session(); err != nil || s.Values["n"] != i {
							t.Errorf("Session = %v, %v; want n = %d", s.Values, err, i)
						}
					})
				}
			})
		}
		wg.Wait()
	})
}
