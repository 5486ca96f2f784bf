package session

import (
	"net/http"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Loading is a session on its way, see [Store.Preload]. It belongs to one request
// and must not be used by several goroutines at once.
type Loading struct {
	st      *Store
	r       *http.Request
	name    string
	tok     token
	others  bool // the session may be found elsewhere
	ended   bool
	refused uint64
	pending roundtrip.Pending
	question
}

// Preload begins what New does and returns at once, so that the round trip overlaps
// whatever comes before the session is needed, such as that of a limiter. It returns
// nil if there is nothing to begin: the request has no cookie called name that this
// store can have sent, or has several, or the store looks in two places, see [Config.Redisstore]. Use
// New then. One of Session and Drop must be called on the result.
func (st *Store) Preload(r *http.Request, name string) *Loading {
	if st.compat() != nil {
		return nil
	}
	var l *Loading
	refused, several, seen := uint64(0), false, 0
	cookieValues(r.Header, name, func(value string) bool {
		tok, ok := st.parseToken(name, value)
		if !ok {
			refused++
			return true
		}
		if l != nil {
			several = several || tok.key != l.tok.key
			seen++
			return !several && seen < maxCandidates
		}
		l = &Loading{st: st, r: r, name: name, tok: tok, others: st.cfg.Legacy != nil}
		return true
	})
	if l == nil || several {
		return nil
	}
	l.refused = refused
	l.about(r.Context(), l.tok.key)
	st.n.loads.Add(1)
	l.pending = st.conn.Start("load", l.cmds[:]...)
	return l
}

// Session waits for the session and returns what New would have. A second call, or
// one after Drop, loads it anew.
func (l *Loading) Session() (*sessions.Session, error) {
	if l.ended {
		return l.st.New(l.r, l.name)
	}
	l.ended = true
	st, ctx := l.st, l.r.Context()
	s, x := st.fresh(l.name)
	err := l.pending.Wait(ctx)
	found := err == nil && st.fill(ctx, s, x, l.tok, l.hash.Val(), l.life.Val())
	if !found && err == nil && l.others {
		return st.New(l.r, l.name) // as if nothing had been asked
	}
	st.n.refused.Add(l.refused)
	st.loaded(s, x, l.tok, found, err)
	x.was = *s.Options
	remember(s, nil)
	return s, err
}

// Drop says that the session is not needed: what has not been asked yet is not.
// It does nothing after Session.
func (l *Loading) Drop() {
	if !l.ended {
		l.ended = true
		l.pending.Drop()
	}
}
