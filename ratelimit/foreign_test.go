package ratelimit_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
	"github.com/redporch/redporch/ratelimit"
)

// TestForeignData puts what is not a limiter's at a key of one of 24 subjects that
// share flights. It is a bug to report to that subject, not an outage to ride out,
// and no stranger notices.
func TestForeignData(t *testing.T) {
	t.Parallel()
	const limit, callers = 50, 24
	log, window := ratelimit.SlidingLog("log", limit, time.Minute), ratelimit.FixedWindow("window", limit, time.Minute)
	type foreign struct {
		name, suffix string // of the key
		put          func(rdb redis.UniversalClient, key string) error
	}
	list := func(rdb redis.UniversalClient, key string) error { return rdb.RPush(t.Context(), key, "x").Err() }
	garbage := func(rdb redis.UniversalClient, key string) error {
		return rdb.Set(t.Context(), key, "\x00\xffgarbage", time.Hour).Err()
	}
	members := func(rdb redis.UniversalClient, key string) error {
		return rdb.ZAdd(t.Context(), key, redis.Z{Score: float64(time.Now().Add(-time.Second).UnixMicro()), Member: "garbage"}).Err()
	}
	first := func(rdb redis.UniversalClient, key string) error {
		at := float64(time.Now().Add(-time.Second).UnixMicro())
		return rdb.ZAdd(t.Context(), key, redis.Z{Score: at, Member: "garbage"}, redis.Z{Score: at + 1, Member: "3:1"}).Err()
	}
	for _, c := range []struct {
		name     string
		policies []ratelimit.Policy
		foreign  []foreign
	}{
		{"FixedWindow", []ratelimit.Policy{window}, []foreign{{"list", ":f:window", list}, {"garbage", ":f:window", garbage}, {"garbage as ban", "", garbage}}},
		{"TokenBucket", []ratelimit.Policy{ratelimit.TokenBucket("api", 1, time.Hour, limit)}, []foreign{{"list", ":b:api", list}, {"garbage", ":b:api", garbage}}},
		{"SlidingWindow", []ratelimit.Policy{ratelimit.SlidingWindow("api", limit, 24*time.Hour)}, []foreign{{"list", ":c:api", list}, {"garbage", ":c:api", garbage}}},
		{"SlidingLog", []ratelimit.Policy{log}, []foreign{{"list", ":l:log", list}, {"garbage", ":l:log", garbage}, {"garbage last", ":l:log", members}, {"garbage first", ":l:log", first}}},
		{"Concurrency", []ratelimit.Policy{ratelimit.Concurrency("api", limit, time.Hour)}, []foreign{{"list", ":n:api", list}, {"garbage", ":n:api", garbage}}},
		{"several", []ratelimit.Policy{log, window, ratelimit.TokenBucket("api", 1, time.Hour, limit), ratelimit.SlidingWindow("slide", limit, 24*time.Hour)},
			[]foreign{{"list", ":f:window", list}, {"garbage", ":f:window", garbage}, {"list as bucket", ":b:api", list}, {"garbage as bucket", ":b:api", garbage},
				{"list as counter", ":c:slide", list}, {"garbage as log", ":l:log", garbage}, {"garbage as ban", "", garbage}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
				listen(rdb) // holds runs up, so that calls gather
				l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, c.policies...)
				for i, f := range c.foreign {
					subject := func(n int) string { return fmt.Sprintf("subject%d-%d", i, n) }
					const bad = 7
					key := "redporch:limit:{" + subject(bad) + "}" + f.suffix
					if err := f.put(rdb, key); err != nil {
						t.Fatal(err)
					}
					was := rdb.Type(t.Context(), key).Val()
					n := redistest.Count(t, rdb, func() {
						var all sync.WaitGroup
						for caller := range callers {
							all.Go(func() {
								for call := int64(1); call <= 3; call++ {
									r, err := l.Allow(t.Context(), subject(caller))
									switch {
									case caller != bad && (err != nil || !r.Allowed || r.Remaining != limit-call):
										t.Errorf("%s: call %d of another subject = %+v, %v; want it admitted with %d left", f.name, call, r, err, limit-call)
									case caller != bad:
									case !errors.Is(err, roundtrip.ErrBug) || errors.Is(err, ratelimit.ErrUnavailable) || r.Allowed:
										t.Errorf("%s: call %d = %+v, %v; want a denial with ErrBug", f.name, call, r, err)
									case strings.Contains(err.Error(), "subject7") || !strings.Contains(err.Error(), "not a limiter's"):
										t.Errorf("%s: the error says %q; want what is wrong and no key", f.name, err)
									}
								}
							})
						}
						all.Wait()
					})
					// On a cluster the subjects are in slots of their own.
					if _, cluster := rdb.(*redis.ClusterClient); !cluster && n.By["evalsha"]+n.By["eval"] >= callers*3 {
						t.Errorf("%s: %d script runs for %d calls; want fewer, else no flight was shared", f.name, n.By["evalsha"]+n.By["eval"], callers*3)
					}
					if r, err := l.Peek(t.Context(), subject(bad)); err == nil {
						t.Errorf("%s: Peek = %+v, nil; want an error", f.name, r)
					}
					// Nothing was written for the subject: not over what is there, and
					// not under its other policies.
					keys, err := rdb.Keys(t.Context(), "redporch:limit:{"+subject(bad)+"}*").Result()
					if err != nil || len(keys) != 1 {
						t.Errorf("%s: the subject has keys %q, %v; want the foreign one alone", f.name, keys, err)
					}
					if typ := rdb.Type(t.Context(), key).Val(); typ != was {
						t.Errorf("%s: the foreign %s is a %s now; want it left alone", f.name, was, typ)
					}
					if err := errors.Join(l.Reset(t.Context(), subject(bad)), l.Unban(t.Context(), subject(bad))); err != nil {
						t.Fatal(err)
					}
					if r, err := l.Allow(t.Context(), subject(bad)); err != nil || r.Remaining != limit-1 {
						t.Errorf("%s: Allow after a Reset = %+v, %v; want it admitted", f.name, r, err)
					}
				}
			})
		})
	}
}
