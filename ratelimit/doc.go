// Package ratelimit decides whether a call may proceed, by limits that all
// processes share through Redis.
//
//	limiter, err := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.SlidingLog("api", 100, time.Minute))
//	r, err := limiter.Allow(ctx, userID)
//	if !r.Allowed { … r.RetryAfter … }
//
// It knows nothing of HTTP; package middleware turns a [Result] into headers and
// status codes.
//
// # Promises
//
//   - A call that is denied takes nothing, and a denial or a peek leaves Redis as
//     it was. Several policies are taken together or not at all.
//   - [Result.Remaining] is true for denials too. RetryAfter is the smallest wait
//     after which this very call would be admitted if no other came, to the
//     microsecond; Never if it cannot be.
//   - Time is the Redis server's, arithmetic is in integers. States carry their own
//     times, a TTL only clears up, so a lost TTL neither blocks nor admits anybody.
//   - A server clock that steps back freezes limits until it has caught up; a
//     state more than a window (a lease: two) in the future is dropped.
//   - Limits may change at any time, by a new deployment or by With: units used
//     stay used. A new window holds from the next admitted call on.
//   - No call is charged twice, whatever reply, connection or master is lost. A
//     call whose reply is lost may have been charged once.
//   - Concurrent calls have the outcome of some sequence of the same calls.
//
// # Keys in Redis
//
//	prefix{h}          string  end of a ban
//	prefix{h}:f:name   string  FixedWindow    start:used:window
//	prefix{h}:b:name   string  TokenBucket    level:since:periodxtick, or the same in binary
//	prefix{h}:c:name   string  SlidingWindow  start:previous:current:window
//	prefix{h}:l:name   zset    SlidingLog     time → units so far:units of this call
//	prefix{h}:n:name   zset    Concurrency    end of the lease → lease
//	prefixbans         string  the end of the last ban and a second
//
// h is 128 bits of HMAC-SHA-256 of the subject under [Config.Secret] (of SHA-256
// without one) in base64url. It is the hash tag, so that all keys of a subject are
// in one cluster slot, and nothing that a subject contains can change that. Names
// are lower-cased. Every key has a TTL that outlives what it holds by about a
// second, a full token bucket's by up to a sixteenth of its time to drain.
//
// # Round trips
//
//	Allow, AllowN, AllowUpTo, Peek, Reserve   1   one script for all policies
//	the same, denied again                    0
//	Commit of all that was reserved           0   1 with a Concurrency policy
//	Commit of less or more, Cancel            1
//	Renew                                     1   0 without a Concurrency policy
//	Refund, Reset, Ban, Unban                 1   2 for a Ban on a cluster
//	AllowAll                                  1   for each call, and for each given back
//
// Concurrent decisions leave together: while two flights are under way further
// calls gather, and leave when one has landed, those on the same key as one run
// with their costs in order of arrival, up to 64 keys of a server in one EVALSHA
// (of a slot, on a cluster). A call that is denied again, at the same cost or a
// larger one, is answered in this process: see [Config.MaxStale] for what that
// means when another process gives units back. A flight that comes upon the first
// ban for a second or more goes out twice.
//
// # While Redis is unavailable
//
// Each call returns within [Config.Timeout], and at once after repeated failures.
// What it decides is up to each policy, see [FailurePolicy]: a single [FailClosed]
// denies, [Local] ones decide by a share of the limit in this process, [FailOpen]
// admits. [Result.Source] says who decided, [Result.Err] why. The error beside a
// Result is for misuse, for data in Redis that is not a limiter's, and for contexts
// that ended.
//
// # Concurrency
//
// A Limiter is safe for concurrent use, owns no goroutine while idle and needs no
// Close. A caller whose context ends before its flight took off is not charged;
// one that leaves later is, unless [Config.RefundAbandoned].
package ratelimit
