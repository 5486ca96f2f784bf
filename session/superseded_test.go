package session_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// visit is a request that got as far as its handler, with the session it loaded.
type visit struct {
	w *httptest.ResponseRecorder
	r *http.Request
	s *sessions.Session
}

func (b *browser) visit(t testing.TB, st *session.Store) *visit {
	t.Helper()
	v := &visit{w: httptest.NewRecorder(), r: httptest.NewRequest("GET", "https://example.com/", nil)}
	for name, value := range b.jar {
		v.r.Header.Add("Cookie", name+"="+value)
	}
	s, err := st.Get(v.r, "s")
	if err != nil {
		t.Fatal(err)
	}
	v.s = s
	return v
}

// done gives the browser the response's cookies, and reports whether there were any.
func (b *browser) done(v *visit) bool {
	cookies := v.w.Result().Cookies()
	for _, c := range cookies {
		if b.jar[c.Name] = c.Value; c.MaxAge < 0 {
			delete(b.jar, c.Name)
		}
	}
	return len(cookies) > 0
}

// renew gives the browser's session a new id.
func (b *browser) renew(t testing.TB, st *session.Store) {
	t.Helper()
	v := b.visit(t, st)
	if err := st.Regenerate(v.w, v.r, v.s); err != nil {
		t.Fatal(err)
	}
	b.done(v)
}

// What each call does with an id that another request's Regenerate has superseded: for a
// request that had loaded the session before, and for one that came with the old cookie
// after. The id was superseded once, and three times.
func TestSuperseded(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var destroyed []string
		st := open(t, rdb, session.Config{Hooks: session.Hooks{Destroyed: func(_ context.Context, e session.Event) {
			destroyed = append(destroyed, e.ID+" of "+e.User)
		}}})
		for _, late := range []bool{false, true} {
			for _, renewals := range []int{1, 3} {
				begin := func() (b *browser, v *visit, first string) {
					b = newBrowser()
					b.edit(t, st, func(s *sessions.Session) { s.Values["cart"] = "tea"; _ = st.Bind(s, "ada") })
					old := b.clone()
					v = old.visit(t, st)
					first = session.ID(v.s)
					for range renewals {
						b.renew(t, st)
					}
					if late {
						v = old.visit(t, st)
						if !v.s.IsNew || len(v.s.Values) != 0 || v.s.ID != "" || session.ID(v.s) != "" {
							t.Errorf("a superseded cookie opens %v (new: %v, id %q)", v.s.Values, v.s.IsNew, v.s.ID)
						}
					}
					return b, v, first
				}
				lives := func(what string, b *browser, want bool) {
					t.Helper()
					if got := b.values(t, st)["cart"] == "tea"; got != want {
						t.Errorf("late %v, %d renewals, %s: the session lives: %v; want %v", late, renewals, what, got, want)
					}
				}
				refused := func(what string, v *visit, err error) {
					t.Helper()
					if !errors.Is(err, session.ErrSuperseded) || !errors.Is(err, session.ErrSessionGone) || len(v.w.Result().Cookies()) > 0 {
						t.Errorf("late %v, %d renewals, %s = %v, cookies %v; want ErrSuperseded and none", late, renewals, what, err, v.w.Result().Cookies())
					}
				}

				b, v, _ := begin()
				if wrote, err := st.Commit(v.w, v.r, v.s); wrote || err != nil {
					t.Errorf("late %v: Commit of nothing = %v, %v; want neither", late, wrote, err)
				}
				v.s.Values["seen"] = true
				_, err := st.Commit(v.w, v.r, v.s)
				refused("Commit", v, err)
				refused("Save", v, st.Save(v.r, v.w, v.s))
				v.s.Values["list"] = []any{1} // and one that prolongs
				v.s.Options.MaxAge = 600
				refused("Save with options", v, st.Save(v.r, v.w, v.s))
				v.s.Options.MaxAge = 0
				refused("Touch", v, st.Touch(v.r, v.s))
				refused("Reload", v, st.Reload(v.r, v.s))
				lives("saves", b, true)
				if b.values(t, st)["seen"] != nil {
					t.Error("a refused save has stored something")
				}

				b, v, _ = begin()
				destroyed = nil
				now := session.ID(b.visit(t, st).s)
				if err := st.Destroy(v.w, v.r, v.s); err != nil || !strings.Contains(v.w.Header().Get("Set-Cookie"), "Max-Age=0") {
					t.Errorf("late %v: Destroy = %v, %q; want the cookie deleted", late, err, v.w.Header().Get("Set-Cookie"))
				}
				if len(destroyed) != 1 || destroyed[0] != now+" of ada" {
					t.Errorf("late %v: hook told %q; want one session, %s", late, destroyed, now)
				}
				lives("Destroy", b, false)
				if list, err := st.Sessions(t.Context(), "ada"); err != nil || len(list) != 1 {
					t.Errorf("Sessions = %+v, %v; want the one of before", list, err)
				}

				b, _, first := begin()
				if ok, err := st.Revoke(t.Context(), "eve", first); ok || err != nil {
					t.Errorf("Revoke of another user's = %v, %v", ok, err)
				}
				lives("Revoke by another user", b, true)
				if ok, err := st.Revoke(t.Context(), "ada", first); !ok || err != nil {
					t.Errorf("Revoke = %v, %v; want true", ok, err)
				}
				lives("Revoke", b, false)

				b, _, first = begin()
				if n, err := st.RevokeUser(t.Context(), "ada", first); n != 1 || err != nil {
					t.Errorf("RevokeUser except it = %d, %v; want the one of before", n, err)
				}
				lives("RevokeUser except it", b, true)
				_, _ = st.RevokeUser(t.Context(), "ada")

				// A second login has a session of its own, and the first stays.
				b, v, _ = begin()
				v.s.Values["user"] = "bob"
				if err := errors.Join(st.Bind(v.s, "bob"), st.Regenerate(v.w, v.r, v.s)); err != nil {
					t.Errorf("late %v: the second login = %v", late, err)
				}
				c := newBrowser()
				if c.done(v); c.values(t, st)["user"] != "bob" || session.ID(v.s) == "" || v.s.IsNew {
					t.Errorf("late %v: the second login's session holds %v", late, c.values(t, st))
				}
				lives("the second login", b, true)
				if n, err := st.RevokeUser(t.Context(), "bob"); n != 1 || err != nil || len(c.values(t, st)) != 0 {
					t.Errorf("RevokeUser of the second login = %d, %v; want it ended", n, err)
				}
				_, _ = st.RevokeUser(t.Context(), "ada")

				// A renewal without a login: only for whom the session is still the same user's.
				_, v, _ = begin()
				v.s.Values["x"] = 1
				err = st.Regenerate(v.w, v.r, v.s)
				if late {
					refused("Regenerate", v, err)
				} else if err != nil || !c.done(v) || c.values(t, st)["cart"] != "tea" {
					t.Errorf("Regenerate = %v; want a session of its own", err)
				} else if n, err := st.RevokeUser(t.Context(), "ada"); n != 2 || err != nil || len(c.values(t, st)) != 0 {
					t.Errorf("RevokeUser = %d, %v; want both", n, err)
				}
				// Nothing comes back that has ended.
				b, v, _ = begin()
				b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
				for _, bind := range []bool{false, true} {
					if bind {
						_ = st.Bind(v.s, "ada")
					}
					v.s.Values["x"] = 1
					if err := st.Regenerate(v.w, v.r, v.s); !errors.Is(err, session.ErrSessionGone) || errors.Is(err, session.ErrSuperseded) {
						t.Errorf("late %v: Regenerate after the logout = %v; want ErrSessionGone alone", late, err)
					}
				}
				_, _ = st.RevokeUser(t.Context(), "ada")
			}
		}
		if n, err := st.Len(t.Context()); n != 0 || err != nil {
			t.Errorf("Len = %d, %v; want 0: superseded ids are no sessions", n, err)
		}
		for info := range st.All(t.Context()) {
			t.Errorf("All yields %+v", info)
		}
		for _, k := range rdb.Keys(t.Context(), session.DefaultPrefix+"{*").Val() {
			if ttl := rdb.PTTL(t.Context(), k).Val(); ttl <= 0 || ttl > 30*time.Second {
				t.Errorf("a superseded id is known for %v; want up to 30s", ttl)
			}
		}
	})
}

// Of two cookies, one superseded and one valid, the valid one counts, in either order.
func TestSupersededBesideItsSuccessor(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		old := b.jar["s"]
		b.renew(t, st)
		for _, line := range []string{"s=" + old + "; s=" + b.jar["s"], "s=" + b.jar["s"] + "; s=" + old} {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", line)
			if s, err := st.New(r, "s"); err != nil || s.Values["x"] != 1 {
				t.Errorf("values = %v, %v; want the session", s.Values, err)
			}
		}
	})
}

// The index of a user's sessions follows what is in Redis, not what a request remembers.
func TestIndexFollowsTheHash(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, limit := range []int{-1, 0, 2} {
			st := open(t, rdb, session.Config{MaxPerUser: limit})
			bind := func(v *visit, user string) {
				if err := errors.Join(st.Bind(v.s, user), st.Save(v.r, v.w, v.s)); err != nil {
					t.Fatal(err)
				}
			}
			ends := func(what, user string, b *browser) {
				t.Helper()
				if list, err := st.Sessions(t.Context(), user); len(list) != 1 || err != nil {
					t.Errorf("limit %d, %s: Sessions = %+v, %v; want one", limit, what, list, err)
				}
				if n, err := st.RevokeUser(t.Context(), user); n != 1 || err != nil || len(b.values(t, st)) != 0 {
					t.Errorf("limit %d, %s: RevokeUser = %d, %v, and the session holds %v; want it ended", limit, what, n, err, b.values(t, st))
				}
			}
			b := newBrowser()
			b.edit(t, st, set("x", 1))
			early, other := b.visit(t, st), b.visit(t, st)
			bind(other, "ada")
			if err := st.Regenerate(early.w, early.r, early.s); err != nil {
				t.Fatal(err)
			}
			b.done(early)
			st.Close()
			ends("bound by another request, then renewed", "ada", b)

			b = newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; _ = st.Bind(s, "ada") })
			early, other = b.visit(t, st), b.visit(t, st)
			bind(other, "eve")
			st.Close()
			bind(early, "ada")
			st.Close()
			if list, _ := st.Sessions(t.Context(), "eve"); len(list) != 0 {
				t.Errorf("Sessions(eve) = %+v; want none", list)
			}
			ends("bound back", "ada", b)

			b = newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; _ = st.Bind(s, "ada") })
			early, other = b.visit(t, st), b.visit(t, st)
			bind(other, "")
			if err := st.Regenerate(early.w, early.r, early.s); err != nil {
				t.Fatal(err)
			}
			b.done(early)
			st.Close()
			if n, err := st.RevokeUser(t.Context(), "ada"); n != 0 || err != nil || b.values(t, st)["x"] != 1 {
				t.Errorf("RevokeUser of whom it was taken away from = %d, %v", n, err)
			}
		}
	})
}
