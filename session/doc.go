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
//   - A client's own id is never adopted. What is in Redis leads to no cookie.
//   - Nothing is stored without an expiry.
//
// It does not promise a transaction over several values: what must change together
// belongs in one value, or see [Config.DetectConflicts].
//
// # Tokens and keys
//
// The cookie holds base64url(tag ‖ secret), 2 and 32 random bytes, and with
// [Config.Keys] "." and the first half of HMAC-SHA-256(key, name ‖ 0 ‖ token). Keys
// in Redis are, with the prefix "redporch:session:" by default:
//
//	prefix{tag}:SHA-256(name ‖ 0 ‖ secret)   hash   one session
//	prefix user:{SHA-256(user)}              zset   the sessions bound to a user,
//	                                                by public id and time of entry
//
// The tag keeps the key in one cluster slot while the secret changes, so that
// Regenerate is one RENAME. The public id (see [ID]) is tag.hash: safe in logs
// and pages. Fields of a session's hash:
//
//	m              "created,absolute,idle,seen,maxage": its lifetimes, see meta
//	u, l           the user it is bound to; what Config.Label returned
//	s<key>         Values[key] for a string key
//	f<key><order>  one element of a []any under a string key, such as a flash
//	k…, g…, o…     values under other keys: basic types, named basic types
//	               (gob), all others together (gob)
//
// A value is a byte for its Go type and its content. Types with an encoding of
// their own are nil, bool, all integers and floats, string, []byte, time.Time,
// time.Duration, []string, map[string]string, and map[string]any and []any of all
// these; other types go through gob and have to be registered with gob.Register.
// All come back as the type they were. A time keeps its instant to the nanosecond
// and the offset and abbreviation of its zone: UTC comes back as time.UTC, the
// server's own zone as time.Local, others as a fixed zone. The monotonic reading
// is dropped.
//
// A []any directly under a string key is a list that requests append to: if two
// append, both elements are kept. Put a list that must be replaced as a whole into
// another type or into a map.
//
// # Round trips
//
//	load                       1   HGETALL and PTTL, no script
//	commit, nothing changed    0
//	save, create, regenerate   1   one script
//	login (bind, regenerate)   1   on a cluster 2
//	destroy                    1
//	list a user's sessions     2
//	revoke one / all           1 / 2
//
// A load that finds the session's idle time spent by more than [Config.TouchEvery]
// prolongs it in the background, and a save then prolongs it as well. Otherwise
// both leave its expiry alone.
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
