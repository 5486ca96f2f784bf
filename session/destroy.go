package session

import (
	"context"
	"net/http"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// Destroy deletes s in Redis and its cookie, and empties s.Values. It finishes
// even if the client disconnects. A session that got a new id less than 30 seconds ago
// ends under that one, whichever cookie this request came with; so do all sessions that
// the request has valid cookies of this name for. Values that are set afterwards make a
// new session with a new id. A request without a cookie of the name is sent none.
//
// The error matches [ErrUnavailable] if Redis could not be
// asked; the session may then still be there, the cookie is deleted all the same. It
// matches [ErrNotReplicated] as Save's does.
func (st *Store) Destroy(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
	x := st.own(s)
	if n := s.Name(); n != "" {
		x.name = n
	}
	clear(s.Values)
	_, err := st.destroy(writeContext(r), w, r, s, x, x.options(s))
	return err
}

func (st *Store) destroy(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options) (bool, error) {
	var toks []token
	if x.saved == stored || x.saved == unasked || x.saved == renewed {
		toks = []token{x.tok}
	}
	if len(toks) > 0 || x.foundling { // what an app wants to delete that made s itself is the request's
		for _, tok := range st.presented(r, x.name) {
			if len(toks) == 0 || tok.key != toks[0].key {
				toks = append(toks, tok)
			}
		}
	}
	needless := len(toks) == 0 && x.saved == absent && r != nil && !hasCookie(r, x.name)
	var err error
	for _, tok := range toks {
		e := st.delete(ctx, x, tok)
		if onMaster(err) && e != nil {
			err = e
		}
	}
	if needless {
		x.bind = nil
		return false, nil
	}
	if onMaster(err) {
		*x = state{home: x.home, name: x.name, saved: destroyed, was: opts}
		s.ID = ""
	}
	opts.MaxAge = -1
	return st.writeCookie(w, x.name, "", &opts, -1), err
}

// delete deletes one session. Redisstore's copy goes first: whoever moves that
// copy looks whether it was still there afterwards, see adopt.
func (st *Store) delete(ctx context.Context, x *state, tok token) error {
	e := ending{id: tok.id}
	if x.user != "" && tok.key == x.tok.key {
		e.index = st.indexKey(x.user)
	}
	var before []redis.Cmder
	var blob *redis.IntCmd
	if compat := st.compat(); compat != nil {
		blob = redis.NewIntCmd(ctx, "unlink", compat.KeyPrefix+tok.cookie)
		if st.conn.IsCluster() {
			if err := st.conn.Do(ctx, "destroy", blob); err != nil {
				return err
			}
		} else {
			before = append(before, blob)
		}
	}
	err := st.end(ctx, "destroy", []*ending{&e}, nil, before...)
	if e.bound != "" {
		stale := []any{tok.id, e.id}
		if e.id == tok.id {
			stale = stale[:1]
		}
		if e.id != tok.id || e.bound != x.user || st.conn.IsCluster() {
			st.background(func() { st.leaveIndex(ctx, e.bound, stale...) })
		}
	}
	if e.ended || blob != nil && blob.Val() > 0 {
		st.n.destroyed.Add(1)
		tell(st.cfg.Hooks.Destroyed, ctx, Event{Name: x.name, ID: e.id, User: e.bound})
	}
	return err
}

// presented returns the tokens that the request's cookies called name hold.
func (st *Store) presented(r *http.Request, name string) (toks []token) {
	if r == nil {
		return nil
	}
	cookieValues(r.Header, name, func(value string) bool {
		if tok, ok := st.parseToken(name, value); ok {
			toks = append(toks, tok)
		}
		return len(toks) < maxCandidates
	})
	return toks
}
