package session_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// An option that the app did not change is what is stored at the save: when Redis was
// away at the load, and when another request has changed it since.
func TestUnchangedOptionsStayAsStored(t *testing.T) {
	srv := redistest.Start(t)
	p := redistest.NewProxy(t, srv.Network(), srv.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	st := open(t, rdb, session.Config{AbsoluteTimeout: 90 * 24 * time.Hour})
	const month = 30 * 86400
	remember := func(s *sessions.Session) { s.Values["user"] = 1; s.Options.MaxAge = month }
	for _, regenerate := range []bool{false, true} {
		for _, how := range []string{"outage", "outage, MaxAge changed", "another request"} {
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) {
				if s.Values["user"] = 1; how != "another request" {
					remember(s)
				}
			})
			var cookie string
			b.do(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(how, "outage") {
					p.Set(redistest.Fault{CutBefore: true})
				}
				s, err := st.Get(r, "s")
				if p.Clear(); (err != nil) != strings.HasPrefix(how, "outage") {
					t.Fatalf("Get = %v", err)
				}
				if how == "another request" {
					b.clone().edit(t, st, remember)
				}
				s.Values["theme"] = "dark"
				if how == "outage, MaxAge changed" {
					s.Options.MaxAge = month + 1
				}
				err = untilUp(func() error {
					if regenerate {
						return st.Regenerate(w, r, s)
					}
					return st.Save(r, w, s)
				})
				if err != nil {
					t.Fatal(err)
				}
				cookie = w.Header().Get("Set-Cookie")
			})
			v := b.visit(t, st)
			want := month
			if how == "outage, MaxAge changed" {
				want++
			}
			idle, _ := st.TTL(v.s)
			if v.s.Options.MaxAge != want || !about(idle, time.Duration(want)*time.Second) {
				t.Errorf("%s, regenerate %v: MaxAge %d, TTL %v; want %d seconds", how, regenerate, v.s.Options.MaxAge, idle, want)
			}
			// A save that is not due to prolong the session does not look.
			if (regenerate || how != "another request") && !strings.Contains(cookie, fmt.Sprint("Max-Age=", want)) {
				t.Errorf("%s, regenerate %v: cookie %q; want %d seconds", how, regenerate, cookie, want)
			}
		}
	}
}

// Logins at the same time do not pass the limit, with either policy; none of them but
// those refused fails.
func TestMaxPerUserAtOnce(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, policy := range []session.LimitPolicy{session.EndOldest, session.RefuseNew} {
			for _, limit := range []int{1, 3} {
				st := open(t, rdb, session.Config{MaxPerUser: limit, AtLimit: policy})
				for round := range 6 {
					user := fmt.Sprint("u", policy, limit, round)
					const logins = 6
					var all sync.WaitGroup
					errs := make([]error, logins)
					for i := range logins {
						all.Go(func() {
							b := newBrowser()
							if i%2 == 0 {
								b.edit(t, st, set("cart", i))
							}
							_, errs[i] = login(t, b, st, user)
						})
					}
					all.Wait()
					refused := 0
					for _, err := range errs {
						if errors.Is(err, session.ErrTooManySessions) && policy == session.RefuseNew {
							refused++
						} else if err != nil {
							t.Errorf("login = %v", err)
						}
					}
					list, err := st.Sessions(t.Context(), user)
					if len(list) != limit || err != nil || policy == session.RefuseNew && refused != logins-limit {
						t.Errorf("policy %d, limit %d: %d sessions, %v, %d logins refused", policy, limit, len(list), err, refused)
					}
				}
			}
		}
	})
}

// Bind and options are saved although the session could not be loaded, and nothing else
// is needed for it.
func TestBindAndOptionsAfterAnOutage(t *testing.T) {
	srv := redistest.Start(t)
	p := redistest.NewProxy(t, srv.Network(), srv.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	st := open(t, rdb, session.Config{})
	b := newBrowser()
	away := func(change func(s *sessions.Session)) {
		b.do(func(w http.ResponseWriter, r *http.Request) {
			p.Set(redistest.Fault{CutBefore: true})
			s, err := st.Get(r, "s")
			if p.Clear(); !errors.Is(err, session.ErrUnavailable) {
				t.Fatalf("Get = %v", err)
			}
			change(s)
			if err := untilUp(func() error { _, err := st.Commit(w, r, s); return err }); err != nil {
				t.Error(err)
			}
		})
	}
	b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; _ = st.Bind(s, "ada") })
	away(func(s *sessions.Session) { _ = st.Bind(s, "") })
	if n, err := st.RevokeUser(t.Context(), "ada"); n != 0 || err != nil || b.values(t, st)["x"] != 1 {
		t.Errorf("RevokeUser = %d, %v; want the session taken away from its user", n, err)
	}
	away(func(s *sessions.Session) { s.Options.MaxAge = 7200 })
	if v := b.visit(t, st); v.s.Options.MaxAge != 7200 {
		t.Errorf("MaxAge = %d; want 7200", v.s.Options.MaxAge)
	}
	b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
	b.jar["s"] = "" // an option of no session stores none
	away2 := b.visit(t, st)
	away2.s.Options.MaxAge = 7200
	if wrote, err := st.Commit(away2.w, away2.r, away2.s); wrote || err != nil {
		t.Errorf("Commit = %v, %v; want nothing", wrote, err)
	}
}

// Who is refused, and whom a login ends: nobody if it fails.
func TestLimitAndFailedLogins(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{MaxPerUser: 1})
		strict := open(t, rdb, session.Config{MaxPerUser: 1, AtLimit: session.RefuseNew})
		a, b := newBrowser(), newBrowser()
		if _, err := login(t, a, st, "ada"); err != nil {
			t.Fatal(err)
		}
		b.edit(t, st, set("cart", 1))
		v := b.visit(t, st)
		b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		_ = st.Bind(v.s, "ada")
		if err := st.Regenerate(v.w, v.r, v.s); !errors.Is(err, session.ErrSessionGone) {
			t.Errorf("Regenerate of a session that has ended = %v", err)
		}
		v = a.visit(t, st)
		if v.s.IsNew {
			t.Error("a login that failed has ended another session")
		}
		// A new id, and binding to the same user again, is not one more.
		for range 2 {
			if _, err := login(t, a, strict, "ada"); err != nil {
				t.Errorf("the same session again = %v", err)
			}
			a.edit(t, strict, func(s *sessions.Session) { _ = strict.Bind(s, "ada") })
		}
		if _, err := login(t, newBrowser(), strict, "ada"); !errors.Is(err, session.ErrTooManySessions) {
			t.Errorf("a second session = %v; want ErrTooManySessions", err)
		}
		// Nor does a new id of a bound session end another that is over the limit.
		c, unlimited := newBrowser(), open(t, rdb, session.Config{MaxPerUser: -1})
		if _, err := login(t, c, unlimited, "ada"); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*session.Store{st, strict} {
			a.renew(t, s)
		}
		if c.visit(t, st).s.IsNew || a.visit(t, st).s.IsNew {
			t.Error("a new id has ended a session")
		}
		c.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		st.Close()
		// Room that has become free counts at once.
		a.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := strict.Get(r, "s")
			if err := strict.Destroy(w, r, s); err != nil {
				t.Error(err)
			}
		})
		strict.Close()
		if _, err := login(t, newBrowser(), strict, "ada"); err != nil {
			t.Errorf("a login after the logout = %v", err)
		}
	})
}

type renamed struct{ Name string }

// A value that can't be decoded any more can be replaced, also where conflicts are
// detected; and taking an element out of a list is one of the things that conflict.
func TestConflictsOfWhatWasLost(t *testing.T) {
	gob.Register(renamed{})
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{DetectConflicts: true})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["p"], s.Values[[2]string{"k", "l"}] = renamed{"ann"}, 1 })
		k := sessionKeys(t, rdb, session.DefaultPrefix)[0]
		lose := func() {
			for name, held := range rdb.HGetAll(t.Context(), k).Val() {
				if name == "sp" {
					rdb.HSet(t.Context(), k, name, strings.Replace(held, "renamed", "unknown", 1))
				}
				if name == "o" {
					rdb.HSet(t.Context(), k, name, "\x01broken")
				}
			}
		}
		lose()
		b.edit(t, st, func(s *sessions.Session) {
			if len(s.Values) != 0 {
				t.Errorf("Values = %v; want none, as they can't be decoded", s.Values)
			}
			s.Values["p"], s.Values[[2]string{"k", "l"}] = renamed{"bob"}, 2
		})
		if got := b.values(t, st); got["p"] != (renamed{"bob"}) || got[[2]string{"k", "l"}] != 2 {
			t.Errorf("Values = %v; want what replaced them", got)
		}
		lose()
		v := b.visit(t, st)
		b.edit(t, st, set("p", 7))
		v.s.Values["p"] = renamed{"eve"}
		if err := st.Save(v.r, v.w, v.s); !errors.Is(err, session.ErrConflict) {
			t.Errorf("Save over what another request has replaced = %v; want ErrConflict", err)
		}

		b.edit(t, st, func(s *sessions.Session) { s.AddFlash("once", "tokens"); s.AddFlash("more", "tokens") })
		for name, take := range map[string]func(s *sessions.Session){
			"all":     func(s *sessions.Session) { s.Flashes("tokens") },
			"one":     func(s *sessions.Session) { s.Values["tokens"] = s.Values["tokens"].([]any)[1:] },
			"another": func(s *sessions.Session) { s.Values["tokens"] = "used" },
		} {
			b.edit(t, st, func(s *sessions.Session) { delete(s.Values, "tokens") })
			b.edit(t, st, func(s *sessions.Session) { s.AddFlash("once", "tokens"); s.AddFlash("more", "tokens") })
			one, two, add := b.visit(t, st), b.visit(t, st), b.visit(t, st)
			take(one.s)
			take(two.s)
			add.s.AddFlash("late", "tokens")
			first, second := st.Save(one.r, one.w, one.s), st.Save(two.r, two.w, two.s)
			if first != nil || !errors.Is(second, session.ErrConflict) {
				t.Errorf("taking %s twice = %v, %v; want nil and ErrConflict", name, first, second)
			}
			if err := st.Save(add.r, add.w, add.s); err != nil {
				t.Errorf("appending = %v; want no conflict", err)
			}
		}
	})
}

// Touch prolongs the session, so its persistent cookie has to follow.
func TestTouchSendsThePersistentCookie(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, maxAge := range []int{0, 3600} {
			st := open(t, rdb, session.Config{Cookie: session.Cookie{MaxAge: maxAge}})
			b := newBrowser()
			b.edit(t, st, set("x", 1))
			v := b.visit(t, st)
			if err := st.Touch(v.r, v.s); err != nil {
				t.Fatal(err)
			}
			if wrote, err := st.Commit(v.w, v.r, v.s); wrote != (maxAge > 0) || err != nil || st.Changed(v.s) {
				t.Errorf("MaxAge %d: Commit after Touch = %v, %v", maxAge, wrote, err)
			}
		}
	})
}

// The line by which an app deletes the cookie it had under another domain or path stays.
func TestCookieBesideADeletionElsewhere(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{Cookie: session.Cookie{Domain: "example.com"}})
	h := newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "s", Path: "/", MaxAge: -1})
		http.SetCookie(w, &http.Cookie{Name: "s", Path: "/old", Domain: "example.com", MaxAge: -1})
		http.SetCookie(w, &http.Cookie{Name: "s", Path: "/", Domain: "example.com", Value: "x"})
		s, _ := st.Get(r, "s")
		s.Values["x"] = 1
		for range 2 {
			if err := st.Save(r, w, s); err != nil {
				t.Error(err)
			}
		}
	})
	if lines := h["Set-Cookie"]; len(lines) != 3 || strings.Contains(strings.Join(lines, "\n"), "s=x;") {
		t.Errorf("Set-Cookie:\n%s\nwant the two deletions and the session's", strings.Join(lines, "\n"))
	}
}

// A pointer to a type that is registered as a value comes back as the value, and is not
// taken for changed.
func TestPointerToAValue(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		n := 5
		b.edit(t, st, func(s *sessions.Session) {
			s.Values["n"] = &n
			if err := s.Save(httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()); err != nil || st.Changed(s) {
				t.Errorf("saved, %v, and changed: %v", err, st.Changed(s))
			}
			if n = 6; !st.Changed(s) {
				t.Error("a change in place goes unnoticed")
			}
		})
		if got := b.values(t, st)["n"]; got != 6 {
			t.Errorf("n = %T %v; want the int 6", got, got)
		}
		if v := b.visit(t, st); st.Changed(v.s) {
			t.Error("the value that was loaded is written again")
		}
	})
}

// A session that moves from another store of this package stays bound.
func TestLegacyKeepsTheUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		old := open(t, rdb, session.Config{Prefix: "old:"})
		st := open(t, rdb, session.Config{Legacy: old})
		b := newBrowser()
		b.edit(t, old, func(s *sessions.Session) { s.Values["x"] = 1; _ = old.Bind(s, "ada") })
		b.edit(t, st, nil)
		if n, err := st.RevokeUser(t.Context(), "ada"); n != 1 || err != nil || len(b.values(t, st)) != 0 {
			t.Errorf("RevokeUser = %d, %v; want the moved session ended", n, err)
		}
	})
}

// More sessions than fit in one exchange are listed and ended in several, and hooks are
// told of each.
func TestManySessionsOfAUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		told := 0
		const n = 600
		st := open(t, rdb, session.Config{MaxPerUser: -1, Hooks: session.Hooks{Revoked: func(context.Context, session.Event) { told++ }}})
		var spared string
		for i := range n {
			v := newBrowser().visit(t, st)
			v.s.Values["x"] = i
			if err := errors.Join(st.Bind(v.s, "ada"), st.Save(v.r, v.w, v.s)); err != nil {
				t.Fatal(err)
			}
			spared = session.ID(v.s)
		}
		_ = st.Close() // waits for what saves began in the background, which would be counted
		seen := map[string]bool{}
		trips := redistest.Count(t, rdb, func() {
			for info, err := range st.SessionsOf(t.Context(), "ada") {
				if err != nil {
					t.Fatal(err)
				}
				seen[info.ID] = true
			}
		}).RoundTrips
		if len(seen) != n || trips != 1+(n+249)/250 {
			t.Errorf("SessionsOf yields %d sessions in %d round trips; want %d in %d", len(seen), trips, n, 1+(n+249)/250)
		}
		if trips = redistest.Count(t, rdb, func() {
			for range st.SessionsOf(t.Context(), "ada") {
				break
			}
		}).RoundTrips; trips != 2 {
			t.Errorf("the first session took %d round trips; want 2", trips)
		}
		if list, err := st.Sessions(t.Context(), "ada"); len(list) != n || err != nil || list[0].LastSeen.Before(list[n-1].LastSeen) {
			t.Errorf("Sessions = %d, %v; want %d, the last used first", len(list), err, n)
		}
		if got, err := st.RevokeUser(t.Context(), "ada", spared); got != n-1 || err != nil || told != n-1 {
			t.Errorf("RevokeUser = %d, %v, hook told of %d; want %d", got, err, told, n-1)
		}
		if list, err := st.Sessions(t.Context(), "ada"); len(list) != 1 || err != nil || list[0].ID != spared {
			t.Errorf("Sessions = %v, %v; want the one that was spared", list, err)
		}
	})
}

// What RevokeUser has ended before it fails is reported.
func TestRevokeUserReportsWhatItDid(t *testing.T) {
	srv := redistest.Start(t)
	p := redistest.NewProxy(t, srv.Network(), srv.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	told := 0
	st := open(t, rdb, session.Config{MaxPerUser: -1, Hooks: session.Hooks{Revoked: func(context.Context, session.Event) {
		if told++; told == 250 {
			p.Set(redistest.Fault{CutBefore: true})
		}
	}}})
	for i := range 300 {
		v := newBrowser().visit(t, st)
		v.s.Values["x"] = i
		if err := errors.Join(st.Bind(v.s, "ada"), st.Save(v.r, v.w, v.s)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := st.RevokeUser(t.Context(), "ada"); n != 250 || !errors.Is(err, session.ErrUnavailable) || told != n {
		t.Errorf("RevokeUser = %d, %v, hook told of %d; want 250 and ErrUnavailable", n, err, told)
	}
	p.Clear()
	var n int
	if err := untilUp(func() (err error) { n, err = st.RevokeUser(t.Context(), "ada"); return err }); err != nil || n != 50 {
		t.Errorf("RevokeUser again = %d, %v; want the other 50", n, err)
	}
}

// Destroy ends all sessions that the request has a right to, and sends nothing to who
// brought no cookie.
func TestDestroyOfSeveralAndOfNone(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		a, b := newBrowser(), newBrowser()
		a.edit(t, st, set("x", 1))
		b.edit(t, st, set("x", 2))
		both := &visit{w: httptest.NewRecorder(), r: httptest.NewRequest("GET", "/", nil)}
		both.r.Header.Set("Cookie", "s="+a.jar["s"]+"; s="+b.jar["s"])
		both.s, _ = st.New(both.r, "s")
		if err := st.Destroy(both.w, both.r, both.s); err != nil || len(both.w.Result().Cookies()) != 1 {
			t.Errorf("Destroy = %v, cookies %v; want one that deletes", err, both.w.Result().Cookies())
		}
		if len(a.values(t, st)) != 0 || len(b.values(t, st)) != 0 || st.Stats().Destroyed != 2 {
			t.Errorf("after the logout: %v, %v; want both ended", a.values(t, st), b.values(t, st))
		}
		v := newBrowser().visit(t, st)
		if err := st.Destroy(v.w, v.r, v.s); err != nil || len(v.w.Result().Cookies()) != 0 {
			t.Errorf("Destroy without a cookie = %v, cookies %v; want none", err, v.w.Result().Cookies())
		}
		// A Bind before it goes with it.
		if err := errors.Join(st.Bind(v.s, "ada"), st.Destroy(v.w, v.r, v.s), st.Regenerate(v.w, v.r, v.s)); err != nil {
			t.Fatal(err)
		}
		if list, err := st.Sessions(t.Context(), "ada"); len(list) != 0 || err != nil {
			t.Errorf("Sessions = %v, %v; want none, since Destroy came after the Bind", list, err)
		}
	})
}
