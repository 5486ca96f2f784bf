package session

import (
	"context"
	"net/http"

	"github.com/gorilla/sessions"
)

// carryOver asks Config.Legacy for the session and takes its values into s, which
// stays a new one until it is saved.
func (st *Store) carryOver(r *http.Request, s *sessions.Session, x *state) {
	if !hasCookie(r, x.name) {
		return
	}
	old, err := st.cfg.Legacy.New(r.Clone(r.Context()), x.name)
	if err != nil || old == nil || old.IsNew || len(old.Values) == 0 {
		return // what can't be read there is what it would be without Legacy
	}
	for k, v := range old.Values {
		s.Values[k] = v
	}
	// A store of this package knows whom the session is bound to.
	if o := recall(old); o != nil && o.user != "" {
		user := o.user
		x.bind = &user
	}
	x.carried = old
}

func hasCookie(r *http.Request, name string) (found bool) {
	cookieValues(r.Header, name, func(string) bool {
		found = true
		return false
	})
	return found
}

// dropCarried deletes what was carried over where it came from, once it is stored
// here. Its cookie has the name of ours, which is sent instead.
func (st *Store) dropCarried(ctx context.Context, r *http.Request, x *state) {
	old := x.carried
	if old == nil || r == nil {
		return
	}
	x.carried = nil
	st.n.adopted.Add(1)
	tell(st.cfg.Hooks.Adopted, ctx, Event{Name: x.name, ID: x.tok.id})
	opts := sessions.Options{Path: "/"}
	if old.Options != nil {
		opts = *old.Options
	}
	opts.MaxAge = -1
	old.Options = &opts
	// A failure leaves a copy there that expires by itself.
	st.cfg.Legacy.Save(r.Clone(ctx), discard{http.Header{}}, old)
}

// discard is a ResponseWriter that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
