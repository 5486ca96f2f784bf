// Package cacheaside answers for a loader: values come from this process or from
// Redis while they are fresh and valid, and from the loader otherwise. It is for
// data that has its home elsewhere, usually in a database.
//
//	users, err := cacheaside.New(rdb, "user", loadUser, cacheaside.Config{TTL: 5 * time.Minute})
//	u, err := users.Get(ctx, 42)
//	err = users.Update(ctx, saveUser, 42)
//
// # Promise
//
// The plain recipe (get, or else load and set; delete on update) leaves an old
// value in the cache for its whole TTL whenever an update happens between a load
// and its set. Here it can't:
//
//   - After Invalidate has returned nil, no Get that starts later returns a value
//     that the source had replaced before Invalidate was called.
//   - With Update in its place, reads and writes of a key are linearizable: once
//     a reader has seen a new value, nobody sees the old one.
//   - One process at a time loads a key, for one caller in that process, and the
//     others wait for it. Loads without a lease (Redis down, key fenced) are one
//     at a time for each key and process. Refreshes in the background come on top
//     of that, one at a time for each key in all processes.
//
// This assumes a Redis primary that does not forget acknowledged writes (so not
// across a failover to a lagging replica), a loader that reads what was written
// before it was called, and Get with the first level turned off. With it, both
// hold in the process that invalidates, and elsewhere after the announcement has
// arrived: usually in less than a millisecond, and within [Config.MaxStaleness] if
// the connection falls silent (on a cluster also if the links between its nodes
// work, since announcements travel over them).
//
// Not promised: anything about Set without a version, about several keys at once,
// and that a value is loaded only once in all circumstances: a lease may end
// before its load does.
//
// # Keys in Redis
//
// Of a cache called "user" with the default prefix, and a key 42:
//
//	redporch:cache:user:42    string  the entry
//	redporch:cache:user#t:TAG string  version of a tag, 16 hexadecimal digits
//	redporch:cache:user#bus   channel of announcements
//	redporch:cache:#t:TAG     version of a tag that caches share, see [Config.SharedTags]
//	redporch:cache:#bus       channel of its announcements
//
// A key of several parts has commas between them, and a backslash before those within:
// redporch:cache:stock:Rome,7.
//
// An entry begins with its kind and 16 random bytes, new for every write, which
// together are what scripts compare before they replace it:
//
//	byte 0      V value, N negative, L lease, F fence, U the last load's outcome is not
//	            cached (for 150 ms), so that those who waited for it load side by side
//	1-16        nonce; of a fence: for each of those who hold it a token, 10 bytes, and
//	            its end in milliseconds since 1970, 6 bytes
//	17          format, '1'; from here on of V and N only
//	18          flags: 1 compressed, 2 has a version, 4 has tags
//	19-31       until when a refresh is claimed, milliseconds, 13 digits
//	32-39       when it was written, milliseconds since 1970, big-endian as all below
//	40-47       how long it is fresh, milliseconds
//	48-51       how long loading took, milliseconds
//	52-55       FNV-1a (32 bits) of the codec's name, a zero byte, the prefix, a zero byte
//	            and the cache's name; the version before wrote that of the codec's name alone,
//	            which is read too
//	...         [8 bytes: version] [1 byte: number of tags, 24 bytes each: hash, version]
//	...         payload
//	last 4      CRC-32C of the key and all of the above but the claim
//
// So a hit is a plain GET, and DEL by anybody is a correct invalidation: of what
// is in Redis. Copies in processes live on after it until they expire, unless
// [Config.Tracking] is set. Everything in Redis has a TTL.
//
// # Round trips
//
// A hit in this process: none. A hit in Redis: one GET (with tags, one more GET
// for each, in the same round trip). A miss: three (GET, lease, fill). Invalidate:
// one, whatever the number of keys up to 500. Update: two. GetMany: one for each
// 500 keys, three where they have to be loaded.
//
// # Failures
//
// Get and its kin never fail because of Redis: within one [Config.Timeout] for all that
// Redis is asked the loader is called instead, for one caller a key and process, and for at most
// [Config.MaxDirectLoads] keys. Invalidate and Update do report it: the keys are
// queued, tried again in the background, and not read from the cache by this
// process until that has succeeded. [Cache.Bypass] switches a cache off. Stored values that are damaged or foreign are
// reported to [Hooks.Error] and replaced.
//
// # Concurrency
//
// All methods are safe for concurrent use. Values are shared between callers, so
// treat them as read-only or set [Funcs.Clone]. A Cache owns goroutines and one
// connection (one to each master with [Config.Tracking]), which [Cache.Close] ends.
package cacheaside
