package ratelimit_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
	"github.com/redporch/redporch/ratelimit"
)

// TestSlotHalfMoved leaves slots of a cluster half moved for some hundred calls, and for
// longer than what was found out about them is believed: no caller notices, nothing is
// charged twice or lost, and no limit is exceeded.
func TestSlotHalfMoved(t *testing.T) {
	t.Parallel()
	cl := redistest.StartCluster(t, 2, false)
	// Each redirection in a pipeline is followed after a pause, of which there are hundreds.
	rdb := cl.Client(func(o *redis.ClusterOptions) {
		o.MinRetryBackoff, o.MaxRetryBackoff = time.Millisecond, 2*time.Millisecond
	})
	cfg := ratelimit.Config{PlainKeys: true, Timeout: time.Minute, NoDenialCache: true}
	wide := []ratelimit.Policy{
		ratelimit.FixedWindow("hour", 1e9, time.Hour), ratelimit.SlidingLog("log", 1e5, time.Hour),
		ratelimit.SlidingWindow("slide", 1e6, time.Hour), ratelimit.TokenBucket("bucket", 1, time.Hour, 1e6),
	}
	for _, c := range []struct {
		name     string
		policies []ratelimit.Policy
		first    bool // the subject has keys when its slot begins to move
		moved    string
	}{
		{"one policy", wide[:1], true, ""},
		{"one policy, its key moved", wide[1:2], true, ":l:log"},
		{"a new subject", wide[3:], false, ""},
		{"several policies", wide, true, ""},
		{"several policies, one key moved", wide, true, ":c:slide"},
		{"a new subject with several policies", wide, false, ""},
		{"leases", []ratelimit.Policy{wide[0], ratelimit.Concurrency("atonce", 10000, time.Hour)}, true, ":n:atonce"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLimiter(t, rdb, cfg, c.policies...)
			const apart = 100 * time.Millisecond
			l.ApartFor(apart)
			narrow := newLimiter(t, rdb, cfg, ratelimit.FixedWindow("narrow", 50, time.Hour), ratelimit.SlidingLog("narrow2", 60, time.Hour))
			subject := strings.ReplaceAll(c.name, " ", "-")
			key := "redporch:limit:{" + subject + "}"
			slot := int(roundtrip.Slot(key))
			var charged, admitted, calls atomic.Int64
			call := func() {
				r, err := l.Allow(context.Background(), subject)
				calls.Add(1)
				if charged.Add(r.Granted); err != nil || r.Err != nil || !r.Allowed || r.Source != ratelimit.SourceRedis || len(r.Policies) != len(c.policies) {
					t.Errorf("Allow = %+v, %v; want it admitted by Redis", r, err)
				}
			}
			if c.first {
				call()
				if _, err := narrow.Allow(t.Context(), subject); err != nil {
					t.Fatal(err)
				}
				admitted.Add(1)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var load sync.WaitGroup
			for worker := range 3 {
				load.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						call()
						r, err := narrow.Allow(context.Background(), subject)
						if err != nil || r.Err != nil || r.Source != ratelimit.SourceRedis {
							t.Errorf("Allow with few units = %+v, %v; want a decision of Redis", r, err)
						}
						admitted.Add(r.Granted)
						switch (n + worker) % 4 {
						case 0:
							res, err := l.Reserve(context.Background(), subject, 5)
							if err != nil || res.Err != nil || !res.Allowed {
								t.Errorf("Reserve = %+v, %v", res.Result, err)
							}
							if err := res.Commit(context.Background(), 2); err != nil {
								t.Errorf("Commit = %v", err)
							}
							charged.Add(2)
						case 1:
							r, err := l.AllowUpTo(context.Background(), subject, 3)
							if err != nil || r.Err != nil || r.Granted != 3 {
								t.Errorf("AllowUpTo = %+v, %v; want 3 units", r, err)
							}
							charged.Add(r.Granted)
						case 2:
							if r, err := l.Peek(context.Background(), subject); err != nil || r.Err != nil || !r.Allowed {
								t.Errorf("Peek = %+v, %v", r, err)
							}
						}
						time.Sleep(2 * time.Millisecond)
					}
				})
			}
			from, err := cl.Owner(t.Context(), slot)
			if err != nil {
				t.Fatal(err)
			}
			to := cl.Masters[0]
			if to == from {
				to = cl.Masters[1]
			}
			err = cl.MigrateSlot(t.Context(), slot, to, func() {
				if c.moved != "" {
					if err := cl.MigrateKeys(t.Context(), from, to, key+c.moved); err != nil {
						t.Error(err)
					}
				}
				for before, began := calls.Load(), time.Now(); calls.Load() < before+200 || time.Since(began) < 3*apart; {
					if t.Failed() {
						break
					}
					time.Sleep(time.Millisecond)
				}
				cancel()
				load.Wait()
				// With the slot still half moved.
				if err := l.Ban(t.Context(), subject, time.Hour); err != nil {
					t.Error(err)
				}
				if r, err := l.Allow(t.Context(), subject); err != nil || !r.Banned || r.Allowed || r.RetryAfter < 59*time.Minute {
					t.Errorf("Allow of a banned subject = %+v, %v; want a ban for an hour", r, err)
				}
				if err := l.Unban(t.Context(), subject); err != nil {
					t.Error(err)
				}
				call()
			})
			cancel()
			load.Wait()
			if err != nil {
				t.Fatal(err)
			}
			r, err := l.Peek(t.Context(), subject)
			if err != nil || r.Err != nil {
				t.Fatal(r, err)
			}
			for _, p := range r.Policies {
				if used := p.Limit - p.Remaining; p.Name != "atonce" && used != charged.Load() {
					t.Errorf("policy %s holds %d units; want those that were granted, %d", p.Name, used, charged.Load())
				}
			}
			if n := admitted.Load(); n != 50 {
				t.Errorf("%d calls were admitted under a limit of 50; want 50", n)
			}
		})
	}
}
