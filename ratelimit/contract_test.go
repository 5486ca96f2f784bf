package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// span is when something happens: not before the one nor after the other.
type span struct{ early, late time.Time }

// dump returns all that Redis holds, and when it ends.
func dump(t *testing.T, rdb redis.UniversalClient) (values map[string]string, ends map[string]span) {
	t.Helper()
	ctx := t.Context()
	values, ends = make(map[string]string), make(map[string]span)
	keys, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		var v any
		switch typ, _ := rdb.Type(ctx, k).Result(); typ {
		case "string":
			v, err = rdb.Get(ctx, k).Result()
		case "zset":
			v, err = rdb.ZRangeWithScores(ctx, k, 0, -1).Result()
		default:
			t.Fatalf("key of type %q", typ)
		}
		if err != nil {
			t.Fatal(err)
		}
		values[k] = fmt.Sprint(v)
		early := time.Now()
		ttl, err := rdb.PTTL(ctx, k).Result()
		late := time.Now()
		if err != nil || ttl <= 0 {
			t.Fatalf("a key without TTL: %v, %v", ttl, err)
		}
		if strings.HasSuffix(t.Name(), "/miniredis") { // whose TTLs run down late
			early = early.Add(-time.Hour)
		}
		ends[k] = span{early.Add(ttl - 2*time.Millisecond), late.Add(ttl + 2*time.Millisecond)}
	}
	return values, ends
}

// meet reports whether both can be the same moment.
func meet(a, b span) bool { return !a.late.Before(b.early) && !b.late.Before(a.early) }

func TestDenialsAndPeeksChangeNothing(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var all []ratelimit.Policy
		for name, p := range five(3) {
			all = append(all, ratelimit.Policy(p))
			l := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true}, p)
			if r, err := l.AllowN(t.Context(), name, 3); err != nil || !r.Allowed {
				t.Fatalf("AllowN(3) = %+v, %v; want allowed", r, err)
			}
			before, ended := dump(t, rdb)
			for i := range 50 {
				if r, err := l.AllowN(t.Context(), name, int64(1+i%5)); err != nil || r.Allowed {
					t.Fatalf("%s: AllowN = %+v, %v; want denied", name, r, err)
				}
				if _, err := l.Peek(t.Context(), name); err != nil {
					t.Fatalf("%s: Peek: %v", name, err)
				}
				if r, err := l.AllowUpTo(t.Context(), name, 2); err != nil || r.Allowed {
					t.Fatalf("%s: AllowUpTo = %+v, %v; want denied", name, r, err)
				}
			}
			if after, ends := dump(t, rdb); len(before) != len(all) || !maps.Equal(before, after) || !maps.EqualFunc(ended, ends, meet) {
				t.Fatalf("%s: 50 denials and peeks changed\n%v, ending %v\nto\n%v, ending %v", name, before, ended, after, ends)
			}
		}
	})
}

// A command whose reply is lost is executed, and must not be sent again.
func TestLostReplyChargesOnce(t *testing.T) {
	s := redistest.Start(t, redistest.TCP())
	for name, p := range five(100) {
		t.Run(name, func(t *testing.T) {
			proxy := redistest.NewProxy(t, "tcp", s.Addr())
			rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: 5, ContextTimeoutEnabled: true, PoolSize: 4})
			defer rdb.Close()
			l := newLimiter(t, rdb, ratelimit.Config{Timeout: 2 * time.Second}, p.OnUnavailable(ratelimit.FailClosed))
			if r, err := l.Allow(t.Context(), name); err != nil || !r.Allowed {
				t.Fatalf("Allow = %+v, %v; want allowed", r, err)
			}
			proxy.Set(redistest.Fault{Match: "evalsha", CutAfter: true, Times: 1})
			r, err := l.Allow(t.Context(), name)
			if err != nil || r.Source != ratelimit.SourceFailClosed || !errors.Is(r.Err, ratelimit.ErrUnavailable) || r.Allowed {
				t.Fatalf("Allow with a lost reply = %+v, %v; want denied by the failure policy", r, err)
			}
			if proxy.Hits() != 1 {
				t.Fatalf("the fault struck %d times; want 1", proxy.Hits())
			}
			proxy.Clear()
			if got := remaining(t, l, name); got != 98 {
				t.Fatalf("remaining after 2 calls, one of whose replies was lost = %d; want 98", got)
			}
			// In a flight of many calls as well.
			proxy.Set(redistest.Fault{Match: "evalsha", CutAfter: true, Skip: 2, Times: 2})
			var wg sync.WaitGroup
			var sent, lost atomic.Int64
			for range 30 {
				wg.Go(func() {
					r, err := l.Allow(context.Background(), name)
					if err != nil {
						t.Errorf("Allow: %v", err)
					}
					sent.Add(1)
					if r.Source != ratelimit.SourceRedis {
						lost.Add(1)
					}
				})
			}
			wg.Wait()
			proxy.Clear()
			got := remaining(t, l, name)
			if got != 68 || lost.Load() == 0 {
				t.Fatalf("remaining after 30 more calls, %d with a lost reply = %d; want 68, and some lost", lost.Load(), got)
			}
		})
	}
}

func TestNewReportsEverything(t *testing.T) {
	_, rdb := redistest.Mini(t)
	_, err := ratelimit.New(rdb, ratelimit.Config{
		Prefix: "a{b}", Secret: []byte("short"), PlainKeys: true, Timeout: -1, DenialCacheSize: -1, OnUnavailable: 99, Share: 2, LocalFor: -1, LocalKeys: -1,
	},
		ratelimit.Policy{},
		ratelimit.FixedWindow("", 0, 0),
		ratelimit.FixedWindow("ok", 1, time.Second),
		ratelimit.SlidingLog("OK", 1, time.Second),
		ratelimit.SlidingLog("with space", -1, time.Microsecond),
		ratelimit.SlidingWindow("quote\"", 1, 20*366*24*time.Hour),
		ratelimit.TokenBucket("bucket", 1, time.Second, 0),
		ratelimit.TokenBucket("odd", 1_000_000_000_000, time.Hour+time.Microsecond, 1_000_000_000_000),
		ratelimit.Concurrency("leases", 10_001, 1500*time.Nanosecond),
		ratelimit.SlidingLog("phased", 1, time.Second).Phased(),
		ratelimit.FixedWindow("down", 1, time.Second).OnUnavailable(77),
	)
	if err == nil {
		t.Fatal("New = nil error; want many complaints")
	}
	for _, want := range []string{
		"Prefix must not contain braces", "Secret has 5 bytes", "PlainKeys leaves Secret unused", "Timeout -1ns", "DenialCacheSize -1", "OnUnavailable 99",
		"Share 2", "LocalFor -1ns", "LocalKeys -1", "zero Policy", `policy "": the name`, `policy "": limit 0`, `policy "": window 0s`, `policy "OK": the name is taken`,
		`policy "with space": the name`, `policy "with space": limit -1`, `policy "with space": window 1µs`, `policy "quote\"": the name`, `policy "quote\"": window`,
		`policy "bucket": burst 0`, `policy "odd": limit times window`, `policy "leases": limit 10001`, `policy "leases": window 1.5µs`,
		`policy "phased": only a FixedWindow`, `policy "down": failure policy 77`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("New's error lacks %q:\n%v", want, err)
		}
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		if !strings.HasPrefix(line, "ratelimit: ") {
			t.Errorf("complaint %q does not begin with the package's name", line)
		}
	}
	if _, err := ratelimit.New(nil, ratelimit.Config{}); err == nil || !strings.Contains(err.Error(), "client is nil") || !strings.Contains(err.Error(), "no policy") {
		t.Errorf("New(nil) = %v; want complaints about client and policies", err)
	}
	l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("a", 1, time.Second))
	if _, err := l.With(); err == nil {
		t.Error("With() = nil error; want a complaint")
	}
}

// Tiers: the same state under other limits, each denial the tier's own.
func TestWith(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, p := range five(2) {
			l := newLimiter(t, rdb, ratelimit.Config{}, p)
			paid, err := l.With(five(5)[name])
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if r, err := l.Allow(t.Context(), name); err != nil || !r.Allowed {
					t.Fatalf("%s: Allow = %+v, %v; want allowed", name, r, err)
				}
			}
			for range 2 {
				if r, err := l.Allow(t.Context(), name); err != nil || r.Allowed {
					t.Fatalf("%s: Allow = %+v, %v; want denied", name, r, err)
				}
			}
			if r, err := paid.Allow(t.Context(), name); err != nil || !r.Allowed || r.Limit != 5 || r.Remaining != 2 {
				t.Fatalf("%s: Allow of the higher tier = %+v, %v; want allowed, 2 of 5 remaining", name, r, err)
			}
			if r, err := l.Allow(t.Context(), name); err != nil || r.Allowed || r.Remaining != 0 {
				t.Fatalf("%s: Allow of the lower tier = %+v, %v; want denied, none remaining", name, r, err)
			}
			if got := l.Policies(); len(got) != 1 || got[0].Limit() != 2 || got[0].Name() != "api" {
				t.Errorf("Policies() = %v; want the one given", got)
			}
		}
	})
}

func TestAlignedAndPhased(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		const day = 24 * time.Hour
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("utc", 3, day).Aligned(0),
			ratelimit.FixedWindow("early", 3, day).Aligned(-time.Hour), ratelimit.FixedWindow("own", 3, day).Phased())
		phases := make(map[time.Duration]bool)
		for i := range 20 {
			r, err := l.Allow(t.Context(), fmt.Sprint("user", i))
			if err != nil || !r.Allowed {
				t.Fatalf("Allow = %+v, %v; want allowed", r, err)
			}
			end := r.At.Add(r.Policies[0].ResetAfter).UTC()
			if !end.Equal(end.Truncate(day)) {
				t.Errorf("an aligned day ends at %v; want midnight", end)
			}
			end = r.At.Add(r.Policies[1].ResetAfter).UTC()
			if !end.Equal(end.Truncate(day).Add(23 * time.Hour)) {
				t.Errorf("a day aligned one hour early ends at %v; want 23:00", end)
			}
			own := r.At.Add(r.Policies[2].ResetAfter)
			phases[own.Sub(own.Truncate(day))] = true
			again, err := l.Allow(t.Context(), fmt.Sprint("user", i))
			if err != nil || again.At.Add(again.Policies[2].ResetAfter).Sub(own)%day != 0 {
				t.Errorf("the end of a phased window moved from %v to %v, %v", own, again.At.Add(again.Policies[2].ResetAfter), err)
			}
		}
		if len(phases) < 18 {
			t.Errorf("20 keys have %d phases; want about 20", len(phases))
		}
	})
}
