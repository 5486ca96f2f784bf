package session_test

import (
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// Lifetimes go by the clock of Redis, however far that of the process is from it.
func TestClocksApart(t *testing.T) {
	for _, off := range []time.Duration{0, -9 * time.Hour, -2 * time.Hour, 9 * time.Hour} {
		m, rdb := redistest.Mini(t)
		m.SetTime(time.Now().Add(off))
		cookie := session.Cookie{MaxAge: 3600}
		st := open(t, rdb, session.Config{Cookie: cookie})
		b := newBrowser()
		v := b.visit(t, st)
		v.s.Values["x"] = 1
		if err := st.Save(v.r, v.w, v.s); err != nil {
			t.Fatal(err)
		}
		if c := v.w.Result().Cookies(); len(c) != 1 || c[0].MaxAge != 3600 {
			t.Errorf("clock of Redis %v: cookies %v; want a Max-Age of 3600", off, c)
		}
		b.done(v)
		v = b.visit(t, st)
		idle, absolute := st.TTL(v.s)
		if v.s.IsNew || idle > time.Hour || idle < 59*time.Minute || absolute > 8*time.Hour || absolute < 479*time.Minute {
			t.Errorf("clock of Redis %v: loaded %v, for %v, at most %v; want an hour and eight", off, v.s.Values, idle, absolute)
		}
		// Configured to end sooner, but not at once.
		shorter := open(t, rdb, session.Config{Cookie: session.Cookie{MaxAge: 1800}, IdleTimeout: 25 * time.Minute, AbsoluteTimeout: time.Hour})
		if got := b.values(t, shorter); got["x"] != 1 {
			t.Errorf("clock of Redis %v: %v under shorter timeouts; want the session, which has just begun", off, got)
		}
		shorter.Close() // it has shortened the session
		b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = 7200 })
		st.Close() // it has prolonged what was shortened
		touched := st.Stats().Touched
		for range 3 {
			v := b.visit(t, st)
			if v.s.Options.MaxAge != 7200 || st.Changed(v.s) {
				t.Errorf("clock of Redis %v: MaxAge %d, something to send: %v", off, v.s.Options.MaxAge, st.Changed(v.s))
			}
		}
		st.Close()
		if n := st.Stats().Touched - touched; n != 0 {
			t.Errorf("clock of Redis %v: %d of 3 loads prolonged a session that is fresh", off, n)
		}
	}
}

// The times of Info are this host's, whatever the clock of Redis says.
func TestInfoByTheHostsClock(t *testing.T) {
	for _, ahead := range []time.Duration{9 * time.Hour, -9 * time.Hour} {
		m, rdb := redistest.Mini(t)
		m.SetTime(time.Now().Add(ahead))
		st := open(t, rdb, session.Config{})
		if _, err := login(t, newBrowser(), st, "ada"); err != nil {
			t.Fatal(err)
		}
		list, err := st.Sessions(t.Context(), "ada")
		if err != nil || len(list) != 1 {
			t.Fatalf("Sessions = %+v, %v; want one", list, err)
		}
		now, i := time.Now(), list[0]
		if now.Sub(i.Created).Abs() > time.Minute || now.Sub(i.LastSeen).Abs() > time.Minute || !about(i.Expires.Sub(now), session.DefaultIdleTimeout) {
			t.Errorf("Redis %v ahead: %+v; want times about %v", ahead, i, now)
		}
	}
}

// A new session's cookie lives no longer than the session, although the clock of Redis is
// a little further than this process knows.
func TestNewCookieNoLongerThanTheSession(t *testing.T) {
	m, rdb := redistest.Mini(t)
	now := time.Now()
	m.SetTime(now)
	st := open(t, rdb, session.Config{AbsoluteTimeout: time.Hour})
	newBrowser().edit(t, st, set("x", 1)) // after which the clock is known
	m.SetTime(now.Add(time.Since(now) + 300*time.Millisecond))
	h := newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		s.Values["x"], s.Options.MaxAge = 1, math.MaxInt
		if err := s.Save(r, w); err != nil {
			t.Error(err)
		}
	})
	if c := h.Get("Set-Cookie"); !strings.Contains(c, "Max-Age=3600;") {
		t.Errorf("Set-Cookie: %s; want the hour that the session has", c)
	}
}
