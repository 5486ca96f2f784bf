package session

import (
	"net/http"

	"github.com/gorilla/sessions"
)

// Regenerate gives s a new id, saves its changes and sends the new cookie, in one
// atomic round trip. Call it when privileges change, above all at login, so that
// an id that somebody planted before is worthless (session fixation). The old id
// is dead at once; what concurrent requests saved under it before is kept, what
// they save later fails with [ErrSessionGone].
//
// A session that is bound to another user by the same call starts its absolute
// lifetime anew. The errors are those of Save; after an error the old id is still
// valid and no cookie was sent, unless the reply of Redis was lost.
func (st *Store) Regenerate(w http.ResponseWriter, r *http.Request, s *sessions.Session) error {
	_, err := st.save(w, r, s, saveAnew)
	return err
}
