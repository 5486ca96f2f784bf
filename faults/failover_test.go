package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// fleet is an application with several users, all over the slots.
type fleet struct {
	store   *session.Store
	limiter *ratelimit.Limiter
	cache   *cacheaside.Cache[string, string]
	users   []*user
	slot    func(key string) int // nil: one server

	mu     sync.Mutex
	events []event
	texts  texts
}

type user struct {
	name              string
	cookie            *http.Cookie
	slots             [3]int // of session, limit and cached value
	saved, charged, n int64
}

// Kinds of event, and indexes of user.slots.
const (
	ofSession = iota
	ofLimit
	ofCache
)

var kinds = [...]string{"session", "limit", "cache"}

// event is one call of one user.
type event struct {
	kind, slot int
	at         time.Time // when it ended
	took       time.Duration
	failed     bool // Redis did not take part
	wrong      bool // not answered by policy
}

const fleetPrefix = "faults:fleet:"

// newFleet makes a fleet whose calls have the given deadline; 0 is the default.
func newFleet(t *testing.T, rdb redis.UniversalClient, name string, users int, timeout time.Duration, slot func(string) int) *fleet {
	t.Helper()
	f := &fleet{slot: slot}
	var err error
	if f.store, err = session.New(rdb, session.Config{Keys: [][]byte{secret}, Prefix: fleetPrefix + name + ":", Timeout: timeout}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.store.Close() })
	f.limiter, err = ratelimit.New(rdb, ratelimit.Config{Prefix: fleetPrefix + name + ":", PlainKeys: true, Timeout: timeout}, ratelimit.FixedWindow("hour", 1e9, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f.cache, err = cacheaside.New(rdb, name, func(_ context.Context, key string) (string, error) { return "value of " + key, nil },
		cacheaside.Config{TTL: time.Hour, L1Entries: -1, Prefix: fleetPrefix, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cache.Close() })
	for i := range users {
		u := &user{name: name + strconv.Itoa(i)}
		tag := ""
		err := eventually(10*time.Second, func() (err error) {
			if u.cookie, err = signIn(f.store); err != nil || slot == nil {
				return err
			}
			_, s, err := load(f.store, u.cookie)
			if err != nil {
				return err
			}
			tag, _, _ = strings.Cut(session.ID(s), ".")
			if slot("{"+tag+"}")*3/16384 != i%3 {
				return errors.New("a session on another master is wanted")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if slot != nil {
			u.slots = [3]int{
				slot("{" + tag + "}"),
				slot(fleetPrefix + name + ":{" + u.name + "}"),
				slot(fleetPrefix + name + ":" + u.name),
			}
		}
		f.users = append(f.users, u)
	}
	return f
}

// call has one user make a call of each kind.
func (f *fleet) call(u *user) {
	u.n++
	f.timed(u, ofSession, func() (failed, wrong bool) {
		r, s, err := load(f.store, u.cookie)
		f.texts.note(err)
		if err == nil && s.IsNew {
			return true, true // signed out
		}
		s.Values["n"] = u.n
		err = f.store.Save(r, httptest.NewRecorder(), s)
		f.texts.note(err)
		if err == nil {
			u.saved = u.n
		}
		return err != nil, err != nil && !errors.Is(err, session.ErrUnavailable)
	})
	f.timed(u, ofLimit, func() (failed, wrong bool) {
		r, err := f.limiter.Allow(context.Background(), u.name)
		f.texts.note(r.Err)
		if err == nil && r.Source == ratelimit.SourceRedis {
			u.charged++
		}
		return r.Source != ratelimit.SourceRedis, err != nil || !r.Allowed
	})
	f.timed(u, ofCache, func() (failed, wrong bool) {
		// Each time anew, so that what is measured is that the master can be
		// written to.
		invErr := f.cache.Invalidate(context.Background(), u.name)
		f.texts.note(invErr)
		v, err := f.cache.Get(context.Background(), u.name)
		return invErr != nil, err != nil || v != "value of "+u.name
	})
}

func (f *fleet) timed(u *user, kind int, call func() (failed, wrong bool)) {
	start := time.Now()
	failed, wrong := call()
	e := event{kind: kind, slot: u.slots[kind], at: time.Now(), took: time.Since(start), failed: failed, wrong: wrong}
	f.mu.Lock()
	f.events = append(f.events, e)
	f.mu.Unlock()
}

// drive has all users make calls until ctx ends.
func (f *fleet) drive(ctx context.Context) {
	var all sync.WaitGroup
	for _, u := range f.users {
		all.Go(func() {
			for ctx.Err() == nil {
				f.call(u)
				sleep(ctx, 5*time.Millisecond)
			}
		})
	}
	all.Wait()
}

// outage sums up what happened since the fault to calls in the slots for which
// hit is true.
type outage struct {
	calls, failed, wrong int
	lasted               time.Duration // until the last failure
	longest              time.Duration
	last                 time.Time // the end of the last call
}

func (f *fleet) outage(since time.Time, kind int, hit func(slot int) bool) (o outage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.kind != kind || e.at.Before(since) || !hit(e.slot) {
			continue
		}
		o.calls++
		o.longest = max(o.longest, e.took)
		o.last = e.at
		if e.wrong {
			o.wrong++
		}
		if e.failed {
			o.failed++
			o.lasted = max(o.lasted, e.at.Sub(since))
		}
	}
	return o
}

func (o outage) String() string {
	return fmt.Sprintf("%d of %d calls failed, the last after %d ms; longest %d ms", o.failed, o.calls, o.lasted.Milliseconds(), o.longest.Milliseconds())
}

// audit checks that every session is there, and what is missing of the last
// acknowledged writes: replication is asynchronous, so a master that dies takes
// the last moments with it.
func (f *fleet) audit(t *testing.T) (lostWrites, lostUnits int64) {
	t.Helper()
	for _, u := range f.users {
		_, s, err := load(f.store, u.cookie)
		if err != nil || s.IsNew || s.Values["before"] != "the fault" {
			t.Errorf("%s's session is lost (%v)", u.name, err)
			continue
		}
		n, _ := s.Values["n"].(int64)
		if n > u.n {
			t.Errorf("%s's session says %d; only %d were tried", u.name, n, u.n)
		}
		lostWrites += max(u.saved-n, 0)
		r, err := f.limiter.Peek(context.Background(), u.name)
		if err != nil || r.Err != nil {
			t.Errorf("%s's limit: %v, %v", u.name, err, r.Err)
		}
		used := r.Limit - r.Remaining
		if used > u.n {
			t.Errorf("%s was charged %d units for %d calls", u.name, used, u.n)
		}
		lostUnits += max(u.charged-used, 0)
	}
	return lostWrites, lostUnits
}

// during drives fleets while f runs, and a control if there is one.
func during(f func(), beside *control, fleets ...*fleet) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	if beside != nil {
		all.Go(func() { beside.drive(ctx) })
	}
	for _, fl := range fleets {
		all.Go(func() { fl.drive(ctx) })
	}
	time.Sleep(300 * time.Millisecond)
	f()
	cancel()
	all.Wait()
}

// recovered waits until no call of the fleets failed for a while.
func recovered(since time.Time, patience time.Duration, hit func(int) bool, fleets ...*fleet) {
	for time.Since(since) < patience {
		time.Sleep(50 * time.Millisecond)
		calm := true
		for _, f := range fleets {
			for kind := range kinds {
				o := f.outage(since, kind, hit)
				calm = calm && o.failed > 0 && o.last.Sub(since)-o.lasted > 500*time.Millisecond
			}
		}
		if calm {
			return
		}
	}
}

// control is a client of its own that writes to one key all the while, by go-redis alone.
// When it is served again after a fault tells what the machine and Redis took.
type control struct {
	rdb redis.UniversalClient
	key string

	mu     sync.Mutex
	failed time.Time // the end of the last call that did
}

func (c *control) drive(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.rdb.Set(context.Background(), c.key, 1, 0).Err()
		if err != nil {
			c.mu.Lock()
			c.failed = time.Now()
			c.mu.Unlock()
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

// lasted is how long its calls failed.
func (c *control) lasted(since time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.failed.Sub(since), 0)
}

// isMaster waits until a server is one, and returns for how long.
func isMaster(t *testing.T, s *redistest.Server, since time.Time) time.Duration {
	rdb := s.Client()
	err := eventually(15*time.Second, func() error {
		info, err := rdb.Info(context.Background(), "replication").Result()
		if err == nil && !strings.Contains(info, "role:master") {
			err = errors.New("the replica has not taken over")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return time.Since(since)
}

// TestCluster kills a master of three and moves slots, while two applications are
// in use: one with the documented client options, one with go-redis' defaults.
func TestCluster(t *testing.T) {
	t.Parallel()
	cl := redistest.StartCluster(t, 3, true)
	asDocumented := cl.Client(func(o *redis.ClusterOptions) {
		o.ClusterStateReloadInterval = time.Second
		o.ContextTimeoutEnabled = true
	})
	byDefault := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cl.Addrs()})
	t.Cleanup(func() { byDefault.Close() })
	slot := func(key string) int { return int(asDocumented.ClusterKeySlot(context.Background(), key).Val()) }
	names := []string{"documented options", "default options"}

	t.Run("slots move", func(t *testing.T) {
		// Deadlines that a busy machine keeps, since none may be missed.
		fleets := []*fleet{newFleet(t, asDocumented, "moved1-", 9, 3*time.Second, slot), newFleet(t, byDefault, "moved2-", 9, 3*time.Second, slot)}
		start := time.Now()
		moves := 0
		during(func() {
			for _, f := range fleets {
				for _, u := range f.users[:2] {
					for _, s := range u.slots {
						from, err := cl.Owner(t.Context(), s)
						if err != nil {
							t.Error(err)
							continue
						}
						to := cl.Masters[0]
						if from == to {
							to = cl.Masters[1]
						}
						for _, dest := range []*redistest.Server{to, from} { // and back
							if err := cl.MigrateSlot(t.Context(), s, dest, func() { time.Sleep(30 * time.Millisecond) }); err != nil {
								t.Errorf("move slot %d: %v", s, err)
							}
							moves++
						}
					}
				}
			}
		}, nil, fleets...)
		for i, f := range fleets {
			for kind, name := range kinds {
				o := f.outage(start, kind, func(int) bool { return true })
				t.Logf("%s, %s: %s, while slots moved %d times", names[i], name, o, moves)
				if o.wrong > 0 || o.failed > 1 {
					t.Errorf("%s, %s: %d of %d calls failed, %d not by policy; want at most one: %s", names[i], name, o.failed, o.calls, o.wrong, f.texts.String())
				}
			}
			if writes, units := f.audit(t); writes+units > 0 {
				t.Errorf("%s: %d writes and %d units are lost; want none", names[i], writes, units)
			}
		}
	})

	t.Run("a master dies", func(t *testing.T) {
		fleets := []*fleet{newFleet(t, asDocumented, "documented", 9, 0, slot), newFleet(t, byDefault, "default", 9, 0, slot)}
		const victim = 1
		hit := func(slot int) bool { return slot*3/16384 == victim }
		var killed time.Time
		var failover time.Duration
		beside := &control{rdb: cl.Client(), key: "control"}
		for i := 0; !hit(slot(beside.key)); i++ {
			beside.key = "control" + strconv.Itoa(i)
		}
		late := redistest.Within(t, time.Second)
		during(func() {
			killed = time.Now()
			cl.Masters[victim].Kill()
			failover = isMaster(t, cl.Replicas[victim], killed)
			recovered(killed, 60*time.Second, hit, fleets...)
		}, beside, fleets...)
		_, call := late()
		failover = max(failover, beside.lasted(killed))
		t.Logf("the replica took over and a plain client was served after %d ms", failover.Milliseconds())
		for i, f := range fleets {
			for kind, name := range kinds {
				o := f.outage(killed, kind, hit)
				others := f.outage(killed, kind, func(slot int) bool { return !hit(slot) })
				t.Logf("%s, %s: on its slots %s; on other slots %s", names[i], name, o, others)
				if o.wrong+others.wrong > 0 {
					t.Errorf("%s, %s: %d calls were not answered by policy; want none", names[i], name, o.wrong+others.wrong)
				}
				// A reload of the topology a second, the breaker's longest pause, and a call.
				if bound := failover + 2*time.Second + call; o.failed == 0 || o.lasted > bound {
					t.Errorf("%s, %s: calls failed for %v, the replica took over after %v; want an end after at most %v", names[i], name, o.lasted, failover, bound)
				}
				if o.longest > call {
					t.Errorf("%s, %s: a call took %v; want at most what its deadlines allow, %v", names[i], name, o.longest, call)
				}
				if others.failed > others.calls/20 {
					t.Errorf("%s, %s: %d of %d calls to healthy masters failed; want next to none", names[i], name, others.failed, others.calls)
				}
			}
			writes, units := f.audit(t)
			t.Logf("%s: %d acknowledged writes and %d units were lost with the master", names[i], writes, units)
		}
	})
}

// TestSentinel kills the master that three Sentinels watch.
func TestSentinel(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t, 500*time.Millisecond)
	f := newFleet(t, s.Client(), "sentinel", 6, 0, nil)
	everywhere := func(int) bool { return true }
	var killed time.Time
	var failover time.Duration
	beside := &control{rdb: s.Client(), key: "control"}
	late := redistest.Within(t, time.Second)
	during(func() {
		killed = time.Now()
		s.Master.Kill()
		failover = isMaster(t, s.Replica, killed)
		recovered(killed, 60*time.Second, everywhere, f)
	}, beside, f)
	_, call := late()
	failover = max(failover, beside.lasted(killed))
	t.Logf("the replica took over and a plain client was served after %d ms", failover.Milliseconds())
	for kind, name := range kinds {
		o := f.outage(killed, kind, everywhere)
		t.Logf("%s: %s", name, o)
		if o.wrong > 0 {
			t.Errorf("%s: %d calls were not answered by policy; want none", name, o.wrong)
		}
		if bound := failover + 2*time.Second + call; o.failed == 0 || o.lasted > bound {
			t.Errorf("%s: calls failed for %v, the replica took over after %v; want an end after at most %v", name, o.lasted, failover, bound)
		}
		if o.longest > call {
			t.Errorf("%s: a call took %v; want at most what its deadlines allow, %v", name, o.longest, call)
		}
	}
	writes, units := f.audit(t)
	t.Logf("%d acknowledged writes and %d units were lost with the master", writes, units)
}
