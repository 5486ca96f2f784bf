package ratelimit_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
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

const flagKey = ratelimit.DefaultPrefix + "bans"

// asked is what a script run asked for.
type asked struct {
	states, bans int
	flag         bool
}

// listener is a hook that notes what script runs ask for. It holds each of them up for a
// moment, so that calls gather.
type listener struct {
	mu   sync.Mutex
	runs []asked
}

func listen(rdb redis.UniversalClient) *listener {
	n := new(listener)
	rdb.AddHook(n)
	return n
}

func (n *listener) DialHook(next redis.DialHook) redis.DialHook { return next }

func (n *listener) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		n.note(cmd)
		return next(ctx, cmd)
	}
}

func (n *listener) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			n.note(cmd)
		}
		return next(ctx, cmds)
	}
}

func (n *listener) note(cmd redis.Cmder) {
	if cmd.Name() != "evalsha" && cmd.Name() != "eval" {
		return
	}
	var a asked
	for _, key := range cmd.Args()[3 : 3+cmd.Args()[2].(int)] {
		switch key := *key.(*string); {
		case key == flagKey:
			a.flag = true
		case strings.HasSuffix(key, "}"):
			a.bans++
		default:
			a.states++
		}
	}
	n.mu.Lock()
	n.runs = append(n.runs, a)
	n.mu.Unlock()
	time.Sleep(time.Millisecond)
}

// heard returns the runs since the last time.
func (n *listener) heard() []asked {
	n.mu.Lock()
	defer n.mu.Unlock()
	runs := n.runs
	n.runs = nil
	return runs
}

// another returns another client of the same Redis, as another process has.
func another(t *testing.T, rdb redis.UniversalClient) redis.UniversalClient {
	var c redis.UniversalClient
	switch rdb := rdb.(type) {
	case *redis.Client:
		o := *rdb.Options()
		c = redis.NewClient(&o)
	case *redis.ClusterClient:
		o := *rdb.Options()
		c = redis.NewClusterClient(&o)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func isCluster(rdb redis.UniversalClient) bool {
	_, ok := rdb.(*redis.ClusterClient)
	return ok
}

// crowd is 64 callers of 32 subjects, which are in one slot if their keys are plain.
type crowd [32]string

func newCrowd(name string) (c crowd) {
	for i, n := range oneSlot() {
		c[i] = fmt.Sprint(name, n)
	}
	return c
}

// oneSlot returns numbers that make one slot of any text before them: as many digits, and
// the same remainder of a linear code.
var oneSlot = sync.OnceValue(func() (ns [len(crowd{})]int) {
	found := 0
	for n := 100_000; found < len(ns); n++ {
		if roundtrip.Slot(strconv.Itoa(n)) == roundtrip.Slot("100000") {
			ns[found] = n
			found++
		}
	}
	return ns
})

// call lets every caller call once, all at the same time, and hands over what became of
// it.
func (c *crowd) call(t *testing.T, l *ratelimit.Limiter, became func(subject int, r ratelimit.Result)) {
	var all sync.WaitGroup
	for i := range 2 * len(c) {
		all.Go(func() {
			r, err := l.Allow(context.Background(), c[i/2])
			if err != nil || r.Err != nil {
				t.Errorf("Allow(%s) = %+v, %v", c[i/2], r, err)
			}
			became(i/2, r)
		})
	}
	all.Wait()
}

// admitted lets every caller call once, and all shall be admitted.
func (c *crowd) admitted(t *testing.T, l *ratelimit.Limiter, when string) {
	t.Helper()
	c.call(t, l, func(i int, r ratelimit.Result) {
		if !r.Allowed {
			t.Errorf("%s: Allow(%s) = %+v; want it admitted", when, c[i], r)
		}
	})
}

// short are the policies that bucket.lua and one.lua know, by name.
func short() map[string]ratelimit.Policy {
	all := five(1e6)
	return map[string]ratelimit.Policy{"FixedWindow": all["FixedWindow"], "SlidingWindow": all["SlidingWindow"], "TokenBucket": all["TokenBucket"]}
}

// A ban by another process holds from the next call on, also for a subject that was
// admitted a moment ago, and for no other subject.
func TestBanHoldsAtOnce(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		heard := listen(rdb)
		other := another(t, rdb)
		for name, p := range short() {
			l, elsewhere := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, p), newLimiter(t, other, ratelimit.Config{PlainKeys: true}, p)
			subjects := newCrowd(name)
			// What is no flag does not hide a ban.
			if err := rdb.Del(t.Context(), flagKey).Err(); err != nil {
				t.Fatal(err)
			}
			if err := rdb.RPush(t.Context(), flagKey, "x").Err(); err != nil {
				t.Fatal(err)
			}
			const rounds = 3
			for range rounds {
				subjects.admitted(t, l, name)
			}
			heard.heard()
			began := time.Now()
			for n := range 8 {
				if err := elsewhere.Ban(t.Context(), subjects[n], time.Hour); err != nil {
					t.Fatal(err)
				}
				subjects.call(t, l, func(i int, r ratelimit.Result) {
					switch {
					case i > n:
						if !r.Allowed || r.Banned {
							t.Errorf("%s: with %d bans Allow of another subject = %+v; want it admitted", name, n+1, r)
						}
					case r.Allowed || !r.Banned || r.RetryAfter > time.Hour || r.RetryAfter < 59*time.Minute:
						t.Errorf("%s: with %d bans Allow of subject %d = %+v; want it banned for an hour", name, n+1, i, r)
					}
				})
			}
			r, err := l.Peek(t.Context(), subjects[31])
			// Nothing was decided twice.
			if used := r.Limit - r.Remaining; err != nil || used != 2*(rounds+8) {
				t.Errorf("%s: %d units are used, %v; want one for each call", name, used, err)
			}
			// Who saw the flag asks for all bans from the start.
			n := len(slices.DeleteFunc(heard.heard(), func(a asked) bool { return !a.flag }))
			if isCluster(rdb) && n > 0 || n > 4 && time.Since(began) < time.Second {
				t.Errorf("%s: %d runs asked for the flag; want few, and none on a cluster", name, n)
			}
			// A shorter ban leaves the flag to the longer ones.
			if err := elsewhere.Ban(t.Context(), "another", time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if ttl := rdb.PTTL(t.Context(), flagKey).Val(); ttl < 59*time.Minute || ttl > time.Hour+time.Second {
				t.Errorf("%s: the flag has a TTL of %v; want more than the longest ban's", name, ttl)
			}
		}
	})
}

// No call that began after Ban returned is admitted, whatever is under way.
func TestBansUnderLoad(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		other := another(t, rdb)
		for name, p := range short() {
			l, elsewhere := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true, PlainKeys: true}, p), newLimiter(t, other, ratelimit.Config{PlainKeys: true}, p)
			subjects := newCrowd(name)
			var banned [len(subjects)]atomic.Bool
			var calls atomic.Int64
			var all sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			for i := range 2 * len(subjects) {
				all.Go(func() {
					for ctx.Err() == nil {
						was := banned[i/2].Load()
						r, err := l.Allow(context.Background(), subjects[i/2])
						if err != nil || r.Err != nil {
							t.Errorf("Allow(%s) = %+v, %v", subjects[i/2], r, err)
						}
						if was && (r.Allowed || !r.Banned) {
							t.Errorf("Allow(%s) after its ban = %+v; want a denial", subjects[i/2], r)
						}
						if i/2%2 == 1 && !r.Allowed {
							t.Errorf("Allow(%s) without a ban = %+v; want it admitted", subjects[i/2], r)
						}
						calls.Add(1)
					}
				})
			}
			for i := 0; i < len(subjects); i += 2 {
				for n := calls.Load(); calls.Load() < n+64 && !t.Failed(); { // half of the callers are known by now
					time.Sleep(100 * time.Microsecond)
				}
				if err := elsewhere.Ban(t.Context(), subjects[i], time.Hour); err != nil {
					t.Error(err)
				}
				banned[i].Store(true)
			}
			for n := calls.Load(); calls.Load() < n+256 && !t.Failed(); {
				time.Sleep(100 * time.Microsecond)
			}
			cancel()
			all.Wait()
			if err := rdb.Del(t.Context(), flagKey).Err(); err != nil { // for the next policy
				t.Fatal(err)
			}
		}
	})
}

// Subjects that were found not to be banned less than a second ago have no ban asked for
// while there is none under their prefix: a flag for all of them is asked for instead.
func TestBanKeysAreNotAskedFor(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		heard := listen(rdb)
		for name, p := range short() {
			l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, p)
			elsewhere := newLimiter(t, rdb, ratelimit.Config{Prefix: "other:", PlainKeys: true}, p)
			// round returns the runs for several subjects: for one there would be no key less.
			round := func(subjects crowd) (several []asked, bans int) {
				heard.heard()
				subjects.admitted(t, l, name)
				for _, a := range heard.heard() {
					switch all := a.bans == a.states; {
					case isCluster(rdb) && (a.flag || !all):
						t.Errorf("%s: a run on a cluster asked for %+v; want all bans and no flag", name, a)
					case !isCluster(rdb) && a.flag == all:
						t.Errorf("%s: a run asked for %+v; want the flag unless all bans are asked for", name, a)
					case a.states > 1:
						several = append(several, a)
						bans += a.bans
					}
				}
				return several, bans
			}
			var second []asked
			proven := false
			// Rounds of more than a second prove nothing, and now and then a subject takes the
			// place of another in what the process knows.
			for try := 0; try < 10 && !proven; try++ {
				subjects := newCrowd(fmt.Sprint(name, try, "-"))
				if err := elsewhere.Ban(t.Context(), subjects[1], time.Minute); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				first, bans := round(subjects)
				if len(first) > 0 && bans == 0 {
					t.Errorf("%s: the first runs asked for %+v; want bans as well", name, first)
				}
				second, bans = round(subjects)
				proven = isCluster(rdb) || len(second) > 0 && bans == 0 && time.Since(began) < time.Second
			}
			if !proven {
				t.Errorf("%s: the second runs asked for %+v; want no bans", name, second)
			}
		}
	})
}

// When bans have ended, or are lifted, nothing is left of them.
func TestBansEnd(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		heard := listen(rdb)
		l := newLimiter(t, rdb, ratelimit.Config{PlainKeys: true}, ratelimit.TokenBucket("api", 1, time.Minute, 1e6))
		subjects := newCrowd("s")
		subjects.admitted(t, l, "at first")
		banned := func(what string) {
			t.Helper()
			subjects.call(t, l, func(i int, r ratelimit.Result) {
				if r.Banned != (i == 3) {
					t.Errorf("%s: Allow of subject %d = %+v; want subject 3 banned", what, i, r)
				}
			})
		}
		if err := l.Ban(t.Context(), subjects[3], time.Hour); err != nil {
			t.Fatal(err)
		}
		banned("banned for an hour")
		if err := l.Unban(t.Context(), subjects[3]); err != nil {
			t.Fatal(err)
		}
		subjects.admitted(t, l, "after an Unban")
		if err := rdb.Del(t.Context(), flagKey).Err(); err != nil { // which would stay for the hour
			t.Fatal(err)
		}
		const long = 300 * time.Millisecond
		began := time.Now()
		if err := l.Ban(t.Context(), subjects[3], long); err != nil {
			t.Fatal(err)
		}
		// The flag outlives it by a second.
		if ttl := rdb.PTTL(t.Context(), flagKey).Val(); ttl > long+time.Second || ttl < 0 && time.Since(began) < long+time.Second {
			t.Errorf("the flag of a ban of %v has a TTL of %v; want a second more", long, ttl)
		}
		subjects.call(t, l, func(i int, r ratelimit.Result) {
			if r.Banned != (i == 3) && time.Since(began) < long {
				t.Errorf("banned for a moment: Allow of subject %d = %+v; want subject 3 banned", i, r)
			}
		})
		for r, err := l.Peek(t.Context(), subjects[3]); r.Banned; r, err = l.Peek(t.Context(), subjects[3]) {
			if err != nil || r.RetryAfter > long {
				t.Fatalf("Peek = %+v, %v; want a ban of at most %v", r, err, long)
			}
			time.Sleep(r.RetryAfter)
		}
		if time.Since(began) < long {
			t.Errorf("a ban of %v ended after %v", long, time.Since(began))
		}
		subjects.admitted(t, l, "after the ban's end")
		// Once the flag has ended, and so has what was seen of it, runs ask for it and for no
		// bans.
		if err := rdb.Del(t.Context(), flagKey).Err(); err != nil {
			t.Fatal(err)
		}
		l.LookEvery(time.Hour)
		l.ForgetFlag()
		subjects.admitted(t, l, "later")
		heard.heard()
		subjects.admitted(t, l, "later")
		if flags := slices.ContainsFunc(heard.heard(), func(a asked) bool { return a.flag }); flags == isCluster(rdb) {
			t.Errorf("runs without bans ask for the flag: %t; want the opposite, but not on a cluster", flags)
		}
	})
}

// A flag that was lost is made up for: no subject goes on for longer than lookEvery
// without its ban being looked at.
func TestLostFlag(t *testing.T) {
	t.Parallel()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		listen(rdb)
		for name, p := range short() {
			l := newLimiter(t, rdb, ratelimit.Config{NoDenialCache: true, PlainKeys: true}, p)
			const look = 100 * time.Millisecond
			l.LookEvery(look)
			subjects := newCrowd(name)
			subjects.admitted(t, l, name)
			known := time.Now()
			for i := range 8 {
				if err := l.Ban(t.Context(), subjects[i], time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			if err := rdb.Del(t.Context(), flagKey).Err(); err != nil {
				t.Fatal(err)
			}
			// To have seen the ban must not count as having found none.
			for late := 0; late < 3; time.Sleep(look / 4) {
				if time.Since(known) > look {
					late++
				}
				subjects.call(t, l, func(i int, r ratelimit.Result) {
					if i >= 8 && !r.Allowed || i < 8 && r.Allowed && late > 0 {
						t.Errorf("%s: %v after the last look at a ban, Allow of subject %d = %+v; want the first 8 banned", name, time.Since(known), i, r)
					}
				})
			}
		}
	})
}

// No ban is there without the flag, for a moment either: on a cluster, where two runs
// write them, the flag comes first.
func TestFlagIsRaisedFirst(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		n := listen(rdb)
		l := newLimiter(t, rdb, ratelimit.Config{}, ratelimit.FixedWindow("api", 10, time.Hour))
		if err := l.Ban(t.Context(), "k", time.Minute); err != nil {
			t.Fatal(err)
		}
		flag := slices.IndexFunc(n.runs, func(a asked) bool { return a.flag })
		ban := slices.IndexFunc(n.runs, func(a asked) bool { return a.bans > 0 })
		_, cluster := rdb.(*redis.ClusterClient)
		if flag < 0 || ban < 0 || cluster && flag >= ban || !cluster && flag != ban {
			t.Errorf("runs = %+v; want the flag no later than the ban", n.runs)
		}
	})
}
