package demo

import (
	"net/http"
	"strings"

	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// users may sign in. A real application checks a password here, behind a limit
// of its own; see examples/apis.
var users = map[string]string{"ada": "Ada Lovelace", "grace": "Grace Hopper"}

const (
	userKey   = session.Key[string]("user")
	visitsKey = session.Key[int]("visits")
)

// account is what /api/me tells.
type account struct {
	User          string `json:"user"`
	Session       string `json:"session"`
	Visits        int    `json:"visits"`
	IdleTTLMs     int64  `json:"idle_ttl_ms"`
	AbsoluteTTLMs int64  `json:"absolute_ttl_ms"`
}

func (a *app) account(r *http.Request) account {
	s := middleware.Session(r)
	user, _ := userKey.Get(s)
	visits, _ := visitsKey.Get(s)
	idle, absolute := a.sessions.TTL(s)
	return account{
		User: user, Session: session.ID(s), Visits: visits,
		IdleTTLMs: idle.Milliseconds(), AbsoluteTTLMs: absolute.Milliseconds(),
	}
}

func (a *app) me(w http.ResponseWriter, r *http.Request) {
	s := middleware.Session(r)
	visits, _ := visitsKey.Get(s)
	visitsKey.Set(s, visits+1)
	// Saved here rather than by the middleware, so that the answer can name the
	// session and its lifetimes.
	if _, err := a.sessions.Commit(w, r, s); err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, a.account(r))
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	user := strings.ToLower(strings.TrimSpace(r.PostFormValue("user")))
	if _, ok := users[user]; !ok {
		http.Error(w, "There is no such user; try ada or grace.", http.StatusUnauthorized)
		return
	}
	s := middleware.Session(r)
	userKey.Set(s, user)
	s.AddFlash("Signed in as " + users[user] + ".")
	err := a.sessions.Bind(s, user)
	if err == nil {
		// A new secret at sign-in, so that a cookie planted before is worth nothing.
		err = middleware.Regenerate(r)
	}
	if err != nil {
		// The middleware still saves the session: as it was, then.
		userKey.Delete(s)
		s.Flashes()
		a.sessions.Bind(s, "")
		a.fail(w, r, err)
		return
	}
	a.done(w, r)
}

func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	if err := middleware.Destroy(r); err != nil {
		a.fail(w, r, err)
		return
	}
	if wantsJSON(r) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
