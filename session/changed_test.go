package session_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// Changed is false only where Commit then does nothing.
func TestChanged(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: time.Hour})
		stored := newBrowser()
		stored.edit(t, st, func(s *sessions.Session) { s.Values["x"], s.Values["list"] = 1, []any{"a"} })
		for _, c := range []struct {
			name    string
			browser *browser
			do      func(r *http.Request, s *sessions.Session)
			want    bool
		}{
			{"new", newBrowser(), func(*http.Request, *sessions.Session) {}, false},
			{"new, with a value", newBrowser(), func(_ *http.Request, s *sessions.Session) { s.Values["x"] = 1 }, true},
			{"new, bound", newBrowser(), func(_ *http.Request, s *sessions.Session) { st.Bind(s, "u") }, true},
			{"new, deleted", newBrowser(), func(_ *http.Request, s *sessions.Session) { s.Values["x"], s.Options.MaxAge = 1, -1 }, false},
			{"stored", stored, func(*http.Request, *sessions.Session) {}, false},
			{"set to the same", stored, func(_ *http.Request, s *sessions.Session) { s.Values["x"] = 1 }, false},
			{"set", stored, func(_ *http.Request, s *sessions.Session) { s.Values["x"] = 2 }, true},
			{"deleted key", stored, func(_ *http.Request, s *sessions.Session) { delete(s.Values, "x") }, true},
			{"list changed in place", stored, func(_ *http.Request, s *sessions.Session) { s.Values["list"].([]any)[0] = "b" }, true},
			{"options", stored, func(_ *http.Request, s *sessions.Session) { s.Options.Path = "/other" }, true},
			{"bound", stored, func(_ *http.Request, s *sessions.Session) { st.Bind(s, "u") }, true},
			{"id taken away", stored, func(_ *http.Request, s *sessions.Session) { s.ID = "" }, true},
			{"to be deleted", stored, func(_ *http.Request, s *sessions.Session) { s.Options.MaxAge = -1 }, true},
			{"destroyed", newBrowser(), func(r *http.Request, s *sessions.Session) {
				s.Values["x"] = 1
				w := httptest.NewRecorder()
				if err := st.Save(r, w, s); err != nil {
					t.Error(err)
				}
				if err := st.Destroy(w, r, s); err != nil {
					t.Error(err)
				}
			}, false},
		} {
			c.browser.do(func(w http.ResponseWriter, r *http.Request) {
				s, err := st.Get(r, "s")
				if err != nil {
					t.Fatal(err)
				}
				c.do(r, s)
				changed := st.Changed(s)
				if changed != c.want {
					t.Errorf("%s: Changed = %v; want %v", c.name, changed, c.want)
				}
				var wrote bool
				n := redistest.Count(t, rdb, func() {
					if wrote, err = st.Commit(w, r, s); err != nil {
						t.Errorf("%s: Commit = %v", c.name, err)
					}
				})
				if did := wrote || n.Total > 0; did != c.want {
					t.Errorf("%s: Commit did something: %v; want %v", c.name, did, c.want)
				}
			})
		}
	})
}
