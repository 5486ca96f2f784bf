// Package session keeps gorilla sessions in Redis. A [Store] is a
// [github.com/gorilla/sessions.Store], and [NewRedisStore] replaces the one of
// redisstore v9 by a change of import.
//
// # What it promises
//
//   - No lost update: requests that change different values of one session at the
//     same time all keep their change. Each value has a field of its own, and a
//     save writes only what changed. Flashes have a field each.
//   - No resurrection: a session that was destroyed, revoked or expired stays so,
//     whatever slower requests still save.
//   - No wiping: a session that could not be loaded is marked (see [Loaded]), and
//     saving it merges what the app set into what is stored.
//   - No escape: what a session is bound to in Redis decides which user's index it is
//     in, so [Store.RevokeUser] and [Store.Sessions] miss none, and an index outlives
//     its sessions.
//   - A client's own id is never adopted. What is in Redis leads to no cookie.
//   - Nothing is stored without an expiry.
//
// It does not promise a transaction over several values: what must change together
// belongs in one value, or see [Config.DetectConflicts].
//
// # Tokens and keys
//
// The cookie holds base64url(tag ‖ secret), 2 and 32 random bytes, and with
// [Config.Keys] "." and the first half of HMAC-SHA-256(k, name ‖ 0 ‖ token), where
// k is HKDF-SHA-256(key, no salt, "redporch session: cookies", 32 bytes). Keys
// in Redis are, with the prefix "redporch:session:" by default:
//
//	prefix{tag}:SHA-256(name ‖ 0 ‖ secret)   hash   one session
//	prefix user:{SHA-256(user)}              zset   the sessions bound to a user,
//	                                                by public id and time of entry,
//	                                                negative: about to be ended
//
// The tag keeps the key in one cluster slot while the secret changes, so that
// Regenerate is one RENAME. The public id (see [ID]) is tag.hash: safe in logs
// and pages. Fields of a session's hash:
//
//	m              "created,absolute,idle,seen,maxage": its lifetimes, see meta
//	n              alone, for 30 seconds, at the key of a superseded id: the hash in the
//	               session's next key
//	u, l           the user it is bound to; what Config.Label returned
//	e              what keeps encrypted values in this session, see crypt.go
//	s<key>         Values[key] for a string key
//	f<key><order>  one element of a []any under a string key, such as a flash
//	k…, g…, o…     values under other keys: basic types, named basic types
//	               (gob), all others together (gob)
//
// # Superseded ids
//
// A new id (see [Store.Regenerate]) supersedes the old one. For 30 seconds Redis knows
// the old one as superseded, for requests that are under way: it never opens the session,
// but it is no unknown id either. It does not apply to sessions in redisstore's layout.
//
//	Get, New      a new, empty session, as for an unknown id
//	Save, Commit  with something to store: ErrSuperseded, nothing stored, no cookie, so
//	              that the cookie of the new id stays; else nothing and no error
//	Touch, Reload ErrSuperseded
//	Regenerate    a session of its own with what this request holds, if it is about to be
//	              bound (see Bind) or the session under its new id is bound to the same
//	              user as when this request loaded or bound it, or both to nobody: so the second of
//	              two logins at once succeeds. Else ErrSuperseded. If the session
//	              has ended under its new id, ErrSessionGone
//	Destroy       the session ends under its new id
//	Revoke        the session ends under its new id, if it is bound to the user
//	RevokeUser    excepts the session under its new id, if the old one is excepted
//
// Save, Touch, Reload, Regenerate and Destroy do the same for a request that loaded the
// session before it got the new id. [ErrSuperseded] matches [ErrSessionGone] as well.
//
// # Lifetimes and options
//
// A session's Options.MaxAge that the app does not change stays what is stored, also if
// another request has changed it meanwhile or the session could not be loaded. (The cookie
// of a save that is not due to prolong the session has the Max-Age that was loaded.) One above
// zero, other than Cookie.MaxAge, is the session's own idle time, and its longest life
// where [Config.AbsoluteTimeout] is zero and it is longer.
//
// # Limit of sessions per user
//
// With [EndOldest] a save that binds a session ends, once it has succeeded, as many of
// the user's other sessions as are over [Config.MaxPerUser], the one that was used the
// longest ago first. With [RefuseNew] it fails with [ErrTooManySessions] and
// writes nothing. A session that is bound to the user already is not one more. A session
// that is lost in Redis may hold its place for a minute.
//
// # Values
//
// A value is a byte for its Go type and its content. Types with an encoding of
// their own are nil, bool, all integers and floats, string, []byte, time.Time,
// time.Duration, []string, map[string]string, and map[string]any and []any of all
// these; other types go through gob and have to be registered with gob.Register.
// They come back as the type they were, but for pointers to a type that has an encoding
// of its own or was registered as a value: those come back as the value, as with gob. A
// time keeps its instant to the nanosecond
// and the offset and abbreviation of its zone: UTC comes back as time.UTC, the
// server's own zone as time.Local, others as a fixed zone. The monotonic reading
// is dropped.
//
// A []any directly under a string key is a list that requests append to: if two
// append, both elements are kept. Put a list that must be replaced as a whole into
// another type or into a map. An empty list comes back as an empty list.
//
// With [Config.DetectConflicts] a save that overwrites or deletes a value, or removes an
// element of a list, fails with [ErrConflict] unless Redis holds it as it was loaded, even
// if it was changed to the same. A value that is new fails if there is one by now.
// Appending to a list never conflicts; neither does what could not be loaded.
//
// # Round trips
//
//	load                       1   HGETALL and PTTL, no script
//	commit, nothing changed    0
//	save, create, regenerate   1   one script
//	login (bind, regenerate)   1   on a cluster 3, 2 without MaxPerUser
//	login that ends others     5   with RefuseNew 2, or 3 if it has to look for room
//	bind without a new id      1   more than a save, if it was not this user's session
//	destroy                    1
//	list a user's sessions     2   and 1 for each 250 beyond the first
//	revoke one / all           1 / 3, and 1 for each 250 beyond the first
//
// A load that finds the session's idle time spent by more than [Config.TouchEvery]
// prolongs it in the background, and a save then prolongs it as well. Otherwise
// both leave its expiry alone, but for a save that looks for conflicts, has a Bind, or is
// of a session that could not be loaded, which always prolongs it. Lifetimes go by Redis'
// clock, whose offset from the process' own is learnt from calls that are made anyway.
//
// # When Redis fails
//
// Loads and saves fail with [ErrUnavailable] within [Config.Timeout]; the session is
// usable all the same. Deletions go on when the client has disconnected. No error
// but [ErrNotReplicated] leads to a cookie: the client keeps the one it has.
//
// Replication is asynchronous, so a failover may undo the last moments, a logout
// among them. [Config.Replicas] makes writes wait for replicas.
//
// # Concurrency
//
// A Store is safe for concurrent use. A *sessions.Session belongs to one request
// and one goroutine at a time, as with any gorilla store; the registry behind Get
// is not safe for concurrent use either.
package session
