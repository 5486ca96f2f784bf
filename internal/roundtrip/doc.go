// Package roundtrip is the one seam between redporch and Redis: session,
// ratelimit and cacheaside send every command through a [Conn].
//
// A Conn adds to the user's go-redis client what all three need and what the
// client by itself does not promise:
//
//   - A deadline of its own. A call has [Config.Timeout] for Redis (or until the
//     context's deadline, if that is sooner) whatever timeouts, retries or pool
//     the client was configured with, and also when the server is stopped or the
//     network swallows packets.
//   - Coalescing. While few calls are in flight each travels alone, which is the
//     quickest way for a single caller. Beyond that, calls that wait for the
//     same server leave together as one pipeline (a flight, see departures.go), which
//     costs one write and one read for all of them. Calls of an [EachCmd] even share
//     one run of its script.
//   - At most once. A command marked with [ScriptCmd.Once] is never sent a second
//     time after it may have been executed: not by go-redis' retries, not by a
//     cluster redirect, not by this package.
//   - Scripts by digest. EVALSHA first, EVAL for those the server does not know,
//     in pipelines as well, where go-redis' own fallback does not exist.
//   - Writes that replicas acknowledge, see replicate.go.
//   - Classified errors, see errors.go.
//   - Time that a call spent in this process counts for itself: while Redis answers, a call
//     that comes to be sent late has its whole timeout nevertheless, up to eight times as
//     long it may wait for its turn ([ErrOverloaded]), and a reply that has come is read
//     although the deadline is over. None of it trips the breaker.
//   - What was certainly not sent, since the server had closed an idle connection, is sent
//     on another one, also behind TLS, and also what goes out at most once, see wire.go.
//   - The server's clock, see clock.go.
//   - A breaker: after several failures in a row calls fail at once instead of
//     after a timeout, and probes find out when Redis is back.
//
// # Topologies
//
// *redis.Client (single server, and Sentinel by redis.NewFailoverClient) and
// *redis.ClusterClient are supported. *redis.Ring is refused: it moves keys to
// another shard while one is down and back afterwards, which revives deleted
// sessions and forgets limits. Clients that read from replicas or answer from
// go-redis' client-side cache are refused too: both may return values older than
// an acknowledged write.
//
// All methods are safe for concurrent use. A Conn owns no goroutine a few milliseconds
// after its last call, so it needs no Close, and creating one is cheap: Conns made from
// one client share flights and breaker.
package roundtrip
