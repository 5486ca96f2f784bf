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
//   - Limits may change at any time, by a new deployment or by With: units used stay
//     used, and count by the new numbers at once. See "Limits that change".
//   - Nothing is given back twice, for units that have expired or drained, to another
//     call's units, or for what was taken before a Reset.
//   - No call is charged twice, whatever reply, connection or master is lost. A
//     call whose reply is lost may have been charged once.
//   - Concurrent calls have the outcome of some sequence of the same calls.
//
// # Keys in Redis
//
//	prefix{h}          string  end of a ban
//	prefix{h}:f:name   string  FixedWindow    start:used:window
//	prefix{h}:b:name   string  TokenBucket    level:since:periodxtick:entered, or the same in binary
//	…:name:reset       string  when the policy was last reset
//	…:b:name:back      string  TokenBucket    what was given back behind others
//	…:f:name:back      string  FixedWindow    how little was left after a Refund; also :c:, SlidingWindow
//	prefix{h}:c:name   string  SlidingWindow  start:previous:current:window
//	prefix{h}:l:name   zset    SlidingLog     time → units so far:units of this call
//	prefix{h}:n:name   zset    Concurrency    end of the lease → lease
//	prefixbans         string  the end of the last ban and a second
//
// h is 128 bits of HMAC-SHA-256 of the subject under [Config.Secret] (of SHA-256
// without one) in base64url. It is the hash tag, so that all keys of a subject are
// in one cluster slot, and nothing that a subject contains can change that. Names
// are lower-cased. Every key has a TTL that outlives what it holds, when it was first
// written by a second; a token bucket's by a sixteenth of its time to drain if that is
// more. No key is ever left without a TTL.
//
// # Limits that change
//
// A limit, rate, burst or n counts from the next call on. Where more is used than a
// lowered limit admits, calls are denied until enough has expired. A new window counts
// at once for what was taken before it:
//
//   - FixedWindow: the window began when it did, and ends when the new length is over. What
//     was taken in an aligned one counts in that of the new length in which the old one began.
//   - SlidingLog: each unit ends a new window after it was taken.
//   - SlidingWindow: the counters of the old window count on, as in the old window,
//     until the next call that takes units. It enters all of them, rounded up, into the
//     new window.
//   - TokenBucket: what is in the bucket is rounded up to whole tokens and drains at the
//     new rate. What a reservation took at another rate is not given back.
//   - Concurrency: a lease ends when it was said to. But if one ends more than twice the
//     present lease from now, as after a clock was stepped back, all are dropped: leases
//     of one name should not differ by more between tiers.
//
// A key's TTL is that of the limits under which units were last taken. So where a
// window has grown or a rate has fallen, what was taken before is forgotten a second after
// the old limit would have given all of it back (of a token bucket perhaps a sixteenth of its
// time to drain later), if no call took units meanwhile; RetryAfter is then longer than it
// need be. It is exact for a SlidingWindow, for a window that has become shorter, a rate that
// has risen, and always from the next call on that takes units.
//
// # Giving back
//
// Cancel, and Commit of less than was reserved, give back units of that call alone, as
// far as they still count:
//
//   - FixedWindow: until its window ends. SlidingWindow: until the next one ends. In a
//     SlidingWindow or an aligned FixedWindow nothing once units were taken under another
//     length, unless the same window comes again.
//   - SlidingLog: those that have not expired. With more than 1,000 later entries the
//     oldest units are given back in place of these.
//   - TokenBucket: a bucket is a queue of units that drain first in, first out, and what
//     has not drained is given back. Redis holds no queue, but how much has entered and
//     the last 32 of those that were given back behind others: with more of them a
//     reservation may get less than it has, never more.
//   - Concurrency: the leases end.
//
// Refund gives back the units taken last, whoever took them; of a token bucket those
// that would drain next. Of a reservation whose units these were no more than the others is
// given back later (in a window, where others had given back before the Refund, perhaps less),
// unless the clock stepped back meanwhile.
// A window that is empty is as good as new: the next unit starts it. After a Reset nothing is given back
// of what was taken before it from the policies that were reset; after a clock step back,
// until the clock has passed the Reset, of what is taken either.
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
//	Wait                                      1   for all who wait and fit, and one each Config.MaxStale
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
// denies, [Local] ones, as all are by default, decide by a share of the limit in this
// process, [FailOpen] admits. [Result.Source] says who decided, [Result.Err] why. The error beside a
// Result is for misuse, for data in Redis that is not a limiter's, and for contexts
// that ended.
//
// # Concurrency
//
// A Limiter is safe for concurrent use, owns no goroutine while nobody calls or waits, and
// needs no Close. A caller whose context ends before its flight took off is not charged;
// one that leaves later is, unless [Config.RefundAbandoned].
package ratelimit
