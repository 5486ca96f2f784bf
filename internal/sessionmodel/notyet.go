package sessionmodel

// Promises that are not kept yet. While a constant is true the histories leave out
// what would show it.
const (
	// Regenerate under a superseded id, at once with RevokeUser, makes a session that
	// RevokeUser does not end.
	ownEscapesRevokeUser = true

	// With RefuseNew, a save that binds, finds its session gone or superseded and whose
	// first reply is lost leaves its place taken.
	refuseCountsLostReply = true

	// After a Reload a commit does not sign the cookie anew.
	reloadForgetsSignature = true
)
