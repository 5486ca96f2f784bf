package session

import (
	"context"
	"net/http"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// Destroy deletes s in Redis and its cookie, and empties s.Values. It finishes
// even if the client disconnects. Values that are set afterwards make a new
// session with a new id. The error matches [ErrUnavailable] if Redis could not be
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
	switch {
	case x.saved == stored || x.saved == unasked:
		toks = []token{x.tok}
	case x.foundling:
		// The app made this session itself; what it wants to delete is the one that
		// the request has a right to.
		toks = st.presented(r, x.name)
	}
	var err error
	for _, tok := range toks {
		if e := st.delete(ctx, x, tok); onMaster(err) && e != nil {
			err = e
		}
	}
	if onMaster(err) {
		if x.saved == stored {
			st.n.destroyed.Add(1)
			tell(st.cfg.Hooks.Destroyed, ctx, Event{Name: x.name, ID: x.tok.id, User: x.user})
		}
		*x = state{home: x.home, name: x.name, saved: destroyed, was: opts}
		s.ID = ""
	}
	opts.MaxAge = -1
	return st.writeCookie(w, x.name, "", &opts, -1), err
}

// delete deletes one session. Redisstore's copy goes first: whoever moves that
// copy looks whether it was still there afterwards, see adopt.
func (st *Store) delete(ctx context.Context, x *state, tok token) error {
	cmds := []redis.Cmder{redis.NewIntCmd(ctx, "unlink", tok.key)}
	if x.user != "" {
		cmds = append(cmds, redis.NewIntCmd(ctx, "zrem", st.indexKey(x.user), tok.id))
	}
	if compat := st.compat(); compat != nil {
		blob := redis.NewIntCmd(ctx, "unlink", compat.KeyPrefix+tok.cookie)
		if st.conn.IsCluster() {
			if err := st.conn.Do(ctx, "destroy", blob); err != nil {
				return err
			}
		} else {
			cmds = append([]redis.Cmder{blob}, cmds...)
		}
	}
	return st.write(ctx, "destroy", cmds...)
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
