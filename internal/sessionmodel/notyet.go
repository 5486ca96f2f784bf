package sessionmodel

// Promises that are not kept yet. While a constant is true the histories leave out
// what would show it.
const (
	// Regenerate under a superseded id, at once with RevokeUser, makes a session that
	// RevokeUser does not end.
	ownEscapesRevokeUser = true
)
