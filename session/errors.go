package session

import (
	"errors"

	"github.com/redporch/redporch/internal/roundtrip"
)

// The errors of this package. All work with errors.Is on what the methods of
// Store and sessions.Session.Save return. They do not work on what sessions.Save
// returns, since gorilla's MultiError has no Unwrap.
var (
	// ErrUnavailable says that Redis could not be asked. The session that comes
	// with it is usable and marked, see Loaded.
	ErrUnavailable = roundtrip.ErrUnavailable

	// ErrSessionGone says that the session was destroyed, was revoked or expired
	// after this request loaded it. Nothing was written and no cookie was sent.
	ErrSessionGone = errors.New("session: the session is gone; it was destroyed or expired after it was loaded")

	// ErrSuperseded says that another request gave the session a new id after this one
	// had loaded it, or before it came with the old cookie: the browser has the new
	// cookie by now, so a repetition finds the session. It matches ErrSessionGone too.
	// Nothing was written and no cookie was sent.
	ErrSuperseded error = superseded{}

	// ErrTooLarge says that the session would exceed Config.MaxBytes. Nothing was
	// written.
	ErrTooLarge = errors.New("session: the session is too large")

	// ErrConflict says that another request changed what this save would have
	// overwritten: a value, if Config.DetectConflicts is set, or the whole session
	// while it is kept in redisstore's layout and changes faster than it can be
	// merged. It is also returned when a KeyGen returns an id that is in use.
	// Nothing was written.
	ErrConflict = errors.New("session: the session was changed by somebody else")

	// ErrUnsupported says that a value or key is of a type that can't be stored:
	// neither one of the native ones nor registered with gob.Register. Nothing was
	// written.
	ErrUnsupported = errors.New("session: type is not supported; register it with gob.Register")

	// ErrCookie says that browsers would not accept the cookie as the session's
	// Options describe it. Nothing was written.
	ErrCookie = errors.New("session: browsers would refuse the cookie")

	// ErrTooManySessions says that the user already has Config.MaxPerUser sessions
	// and the policy is RefuseNew. Nothing was written.
	ErrTooManySessions = errors.New("session: the user has too many sessions")

	// ErrLayout says that the operation needs a session in redporch's own layout
	// while this one is kept in redisstore's, see RedisstoreConfig.
	ErrLayout = errors.New("session: not possible while the session is kept in redisstore's layout")

	// ErrHeadersSent is for middleware: the session needs a cookie and the
	// response's headers are gone.
	ErrHeadersSent = errors.New("session: the response's headers are already sent")
)

type superseded struct{}

func (superseded) Error() string {
	return "session: another request gave the session a new id; the request may be repeated"
}

func (superseded) Is(target error) bool { return target == ErrSessionGone }
