package middleware_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

// TestSessionSharedWithGorilla: middleware.Session, store.Get and
// sessions.GetRegistry give the same session, and an explicit Save sends the cookie
// once.
func TestSessionSharedWithGorilla(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := newStore(t, rdb)
	s := newSite(t, "HTTP/1.1", withSession(st, middleware.SessionsConfig{}, func(w http.ResponseWriter, r *http.Request) {
		var a, b *sessions.Session
		if r.FormValue("first") == "gorilla" {
			a, _ = st.Get(r, "sid")
			b = middleware.Session(r)
		} else {
			b = middleware.Session(r)
			a, _ = st.Get(r, "sid")
		}
		if a != b {
			t.Errorf("first=%s: store.Get and middleware.Session give different sessions", r.FormValue("first"))
		}
		a.Values["k"] = "one"
		if err := a.Save(r, w); err != nil {
			t.Error(err)
		}
		b.Values["k"] = "two"
	}))
	for _, first := range []string{"gorilla", "middleware"} {
		s.client = newBrowser(t, s.Server)
		if res := s.get(t, "/do?first="+first); len(res.Header["Set-Cookie"]) != 1 {
			t.Errorf("first=%s: Set-Cookie = %q; want one", first, res.Header["Set-Cookie"])
		}
		if got := s.get(t, "/get").body; got != "two" {
			t.Errorf("first=%s: session holds %q; want two", first, got)
		}
	}
}

// A registry that was there before is the one, one that is asked for later holds
// all sessions, and it keeps the request's context.
func TestRegistryBeforeAndAfter(t *testing.T) {
	_, rdb := redistest.Mini(t)
	login, prefs := newStore(t, rdb), newStore(t, rdb)
	type key struct{}
	chain := middleware.Chain(
		middleware.Sessions(login, "login", middleware.SessionsConfig{Logger: discard()}),
		middleware.Sessions(prefs, "prefs", middleware.SessionsConfig{Logger: discard()}),
	)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, b := middleware.SessionNamed(r, "login"), middleware.SessionNamed(r, "prefs")
		if r.URL.Path == "/one" {
			b = nil
		}
		if s, _ := login.Get(r, "login"); s != a {
			t.Errorf("%s: store.Get gives another login", r.URL)
		}
		if s, _ := prefs.Get(r, "prefs"); b != nil && s != b {
			t.Errorf("%s: store.Get gives another prefs", r.URL)
		}
		if s, _ := sessions.GetRegistry(r).Get(login, "login"); s != a || s.Store() != login {
			t.Errorf("%s: the registry gives another login, or one of another store", r.URL)
		}
		third, _ := login.Get(r, "third")
		a.Values["k"], third.Values["k"] = "a", "c"
		if err := sessions.Save(r, w); err != nil {
			t.Error(err)
		}
		if r.Context().Value(key{}) != "kept" {
			t.Error("the request has lost its context")
		}
	}))
	for _, path := range []string{"/both", "/one", "/before"} {
		r := httptest.NewRequest("GET", path, nil)
		r = r.WithContext(context.WithValue(r.Context(), key{}, "kept"))
		if path == "/before" {
			sessions.GetRegistry(r)
		}
		w := httptest.NewRecorder()
		chain.ServeHTTP(w, r)
		if n := len(w.Result().Cookies()); n != 3 {
			t.Errorf("%s: %d cookies; want those of login, prefs and third", path, n)
		}
	}
}
