package sessionmodel

// Promises that are not kept yet. While a constant is true the histories leave out
// what would show it, or take either answer.
const (
	// Touch of a session that could not be loaded returns nil and asks nobody. It
	// has to prolong the session, or to return ErrUnavailable or ErrSuperseded.
	touchAsksNobody = true

	// Save under a superseded id with nothing to store returns ErrSuperseded for a
	// request that came with the old cookie. The page says that it does nothing.
	saveOfNothingIsSuperseded = true

	// NeedsCookie is false although Commit sends a persistent cookie anew.
	needsCookieForgetsAge = true

	// With RefuseNew a place that was taken for a save that failed, or by a session
	// that has expired, is counted: ErrTooManySessions for a user with fewer.
	refuseCountsGone = true

	// A save with a Bind that fails under a superseded id leaves that id in the index,
	// and RevokeUser ends the session through it although its new id is excepted.
	exceptMissesOldEntry = true

	// Regenerate by a request that came with a superseded cookie, after Redis has
	// forgotten that, takes over the MaxAge of the session under its new id.
	ownKeepsMaxAge = true

	// Regenerate under a superseded id, at once with RevokeUser, makes a session that
	// RevokeUser does not end.
	ownEscapesRevokeUser = true

	// With EndOldest, if the first reply to a save that binds is lost, its
	// repetition ends nobody, and the user has more sessions than MaxPerUser.
	limitForgetsLostReply = true

	// Bind(s, "") and Regenerate under a superseded id make a session of its own
	// although the session under its new id is somebody's. Want ErrSuperseded.
	unbindingRegenerates = true

	// A second Destroy of a session that was never stored deletes a cookie.
	destroyTwiceDeletes = true
)
