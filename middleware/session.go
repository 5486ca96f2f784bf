package middleware

import (
	"net/http"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/session"
)

// Session returns the request's session: that of the innermost [Sessions], see
// [SessionNamed] for others. It is loaded once, by the first call, and saved by
// the middleware; see [Sessions] for when. It is never nil. Like all gorilla
// sessions it must not be used by several goroutines at once.
//
// When Redis could not be asked the session is empty but usable, and
// [session.Loaded] reports false. Use [LoadSession] to see the error.
//
// Session panics if the request did not pass Sessions. An empty session instead
// would look like a user who is signed out, and what a handler keeps in it would
// be lost without a word; a panic is found by the first test.
func Session(r *http.Request) *sessions.Session {
	s, _ := LoadSession(r)
	return s
}

// LoadSession is Session with the error of loading. The session is usable
// nevertheless, so the error may be ignored. For Redis being down
// errors.Is(err, [session.ErrUnavailable]) holds.
func LoadSession(r *http.Request) (*sessions.Session, error) {
	return mustHold(r, "").use(r)
}

// SessionNamed is Session for the Sessions with the given cookie name.
func SessionNamed(r *http.Request, name string) *sessions.Session {
	s, _ := mustHold(r, name).use(r)
	return s
}

// StoreOf returns the store of the innermost Sessions, for what is not done by
// the functions here: Bind, Sessions, Revoke, RevokeUser. It panics if the request
// did not pass Sessions.
func StoreOf(r *http.Request) *session.Store { return mustHold(r, "").sm.store }

// Regenerate gives the session a new id and keeps its values. Call it whenever
// the rights of a session grow, above all at login, so that an id which somebody
// planted or saw before is worthless. The old id is dead when Regenerate returns.
//
// It returns [session.ErrHeadersSent], and does nothing, if the response's headers
// have gone, since the new cookie could not be sent. Other errors are those of
// Store.Regenerate. It panics if the request did not pass Sessions.
func Regenerate(r *http.Request) error {
	h := mustHold(r, "")
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.committed || h.ended {
		return session.ErrHeadersSent
	}
	s, err := h.useLocked(r)
	if err != nil {
		return err
	}
	return h.sm.store.Regenerate(h.pending(), r, s)
}

// Destroy ends the session: it is deleted in Redis when Destroy returns, even if
// the client has gone, and the cookie is deleted with the response. It works
// after the headers have gone as well; the cookie then stays, and means nothing.
// A session that can't be loaded can be destroyed if Redis is back in time; if
// not, the error says so. It panics if the request did not pass Sessions.
func Destroy(r *http.Request) error {
	h := mustHold(r, "")
	h.mu.Lock()
	defer h.mu.Unlock()
	s, _ := h.useLocked(r)
	return h.sm.store.Destroy(h.pending(), r, s)
}

// pending collects cookies until the headers go. The header map itself belongs to
// the goroutine of the middleware, on which handlers need not run.
func (h *holder) pending() http.ResponseWriter {
	if h.cookies == nil {
		h.cookies = make(http.Header)
	}
	return &headerWriter{h.cookies}
}

func mustHold(r *http.Request, name string) *holder {
	if v := visitOf(r); v != nil {
		if h := v.holder(name); h != nil {
			return h
		}
	}
	if name != "" {
		panic("middleware: request did not pass a Sessions with the cookie " + name)
	}
	panic("middleware: request did not pass Sessions; wrap the handler with middleware.Sessions")
}
