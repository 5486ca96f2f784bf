package session

import (
	"net/http"
	"slices"
	"sync"
)

// choose returns the token, of several in cookies of one name, whose session the request
// opens. toks has the one that the browser sent first at its end.
//
// A subdomain, or a page under another path, can have a browser send cookies of its choice
// before or after the right one, and nothing in a request tells which is which. So the
// order decides nothing that a session of another user could gain by: dead cookies count
// for nothing, a session that is bound to a user goes before one that is not, and of
// sessions that are bound to different users none is opened. They are ended instead:
// otherwise the one that was planted would keep the user out for as long as it lives.
func (st *Store) choose(r *http.Request, name string, toks []token) token {
	toks = slices.Insert(toks[:len(toks)-1], 0, toks[len(toks)-1])
	type candidate struct {
		x     *state
		found bool
		err   error
	}
	all := make([]candidate, len(toks))
	var wg sync.WaitGroup
	for i, tok := range toks {
		wg.Go(func() {
			s, x := st.fresh(name)
			found, err := st.load(r.Context(), s, x, tok)
			all[i] = candidate{x, found, err}
		})
	}
	wg.Wait()
	best, known := 0, -1
	for i, c := range all {
		if c.err != nil {
			return toks[i] // it can't be told; the load that follows says why, or knows by now
		}
		switch {
		case !c.found:
			if known < 0 && c.x.saved == renewed && all[best].x.saved != renewed {
				best = i // else it would be taken for none at all
			}
		case known < 0 || all[known].x.user == "" && c.x.user != "":
			known = i
		case c.x.user != "" && c.x.user != all[known].x.user:
			for i, c := range all {
				if c.found && c.x.user != "" {
					st.delete(writeContext(r), c.x, toks[i])
				}
			}
			st.n.refused.Add(1)
			return token{}
		}
	}
	if known >= 0 {
		best = known
	}
	return toks[best]
}
