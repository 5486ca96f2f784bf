package ratelimit

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// world is a Redis whose clock the test moves. The shipped scripts ask for TIME
// and nothing else: miniredis has a clock of its own to set, and on a server the
// stored states are moved the other way instead.
type world struct {
	t    *testing.T
	rdb  *redis.Client
	mini *miniredis.Miniredis
	now  time.Time // of miniredis
	off  int64     // a server's clock is this far behind the test's, µs
}

// pass lets d pass. Steps back are allowed.
func (w *world) pass(d time.Duration) {
	if d < 0 {
		// A TTL is a point in time. Neither way of moving the clock moves it back.
		w.persist()
	}
	if w.mini != nil {
		w.now = w.now.Add(d)
		w.mini.SetTime(w.now)
		return
	}
	w.off += d.Microseconds()
	w.eachState(func(key string, p Policy) {
		w.move(key, p.algo, d.Microseconds())
	})
}

// time returns the test's time of a server's.
func (w *world) time(server int64) int64 { return server + w.off }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil && err != redis.Nil {
		w.t.Fatal(err)
	}
}

func (w *world) eachState(fn func(key string, p Policy)) {
	ctx := w.t.Context()
	keys, err := w.rdb.Keys(ctx, "*").Result()
	w.must(err)
	for _, k := range keys {
		_, rest, _ := strings.Cut(k, "}:")
		if rest != "" && !strings.HasSuffix(rest, backSuffix) && !strings.HasSuffix(rest, resetSuffix) {
			fn(k, Policy{algo: algorithm(rest[0])})
		}
	}
}

func (w *world) persist() {
	keys, err := w.rdb.Keys(w.t.Context(), "*").Result()
	w.must(err)
	for _, key := range keys {
		w.must(w.rdb.Persist(w.t.Context(), key).Err())
	}
}

// move makes a state d microseconds older.
func (w *world) move(key string, algo algorithm, d int64) {
	ctx := w.t.Context()
	switch algo {
	case slidingLog, concurrency:
		zs, err := w.rdb.ZRangeWithScores(ctx, key, 0, -1).Result()
		w.must(err)
		for i := range zs {
			zs[i].Score -= float64(d)
		}
		if len(zs) > 0 {
			w.must(w.rdb.ZAdd(ctx, key, zs...).Err())
		}
	default:
		v, err := w.rdb.Get(ctx, key).Result()
		if err == redis.Nil {
			return // it has just expired
		}
		w.must(err)
		if b := []byte(v); b[0] >= 'C' { // as tokenbucket.lua says
			const since, lives = 1 + 8, 1 + 3*8
			for _, at := range []int{since, lives} {
				n := math.Float64frombits(binary.LittleEndian.Uint64(b[at:])) - float64(d)
				binary.LittleEndian.PutUint64(b[at:], math.Float64bits(n))
			}
			w.must(w.rdb.Set(ctx, key, b, redis.KeepTTL).Err())
			return
		}
		parts := strings.Split(v, ":")
		at := 0
		if algo == tokenBucket {
			at = 1
		}
		n, err := strconv.ParseInt(parts[at], 10, 64)
		w.must(err)
		parts[at] = strconv.FormatInt(n-d, 10)
		w.must(w.rdb.Set(ctx, key, strings.Join(parts, ":"), redis.KeepTTL).Err())
	}
}

func inWorlds(t *testing.T, body func(t *testing.T, w *world)) {
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		m, rdb := redistest.Mini(t)
		w := &world{t: t, rdb: rdb, mini: m, now: time.UnixMicro(1_800_000_000_123_457)}
		m.SetTime(w.now)
		body(t, w)
	})
	redistest.RunOn(t, redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		body(t, &world{t: t, rdb: rdb.(*redis.Client)})
	})
}

// A key whose TTL was lost must end all the same, and must not block for ever.
func TestLostTTLHeals(t *testing.T) {
	inWorlds(t, func(t *testing.T, w *world) {
		for name, p := range map[string]Policy{
			"FixedWindow":   FixedWindow("p", 2, time.Hour),
			"SlidingLog":    SlidingLog("p", 2, time.Hour),
			"SlidingWindow": SlidingWindow("p", 2, time.Hour),
			"TokenBucket":   TokenBucket("p", 2, time.Hour, 2),
			"Concurrency":   Concurrency("p", 2, time.Hour),
		} {
			l, err := New(w.rdb, Config{Timeout: time.Minute, NoDenialCache: true}, p)
			w.must(err)
			if r, err := l.AllowN(t.Context(), name, 2); err != nil || !r.Allowed {
				t.Fatalf("%s: AllowN(2) = %+v, %v; want allowed", name, r, err)
			}
			w.persist()
			r, err := l.AllowN(t.Context(), name, 2)
			if err != nil || r.Allowed || r.RetryAfter > 2*time.Hour {
				t.Fatalf("%s: AllowN(2) again = %+v, %v; want denied for a while", name, r, err)
			}
			wait := r.RetryAfter
			if p.algo == slidingWindow {
				wait = 2 * time.Hour // a server's aligned windows stay where they are
			}
			w.pass(wait)
			if r, err := l.AllowN(t.Context(), name, 2); err != nil || !r.Allowed {
				t.Fatalf("%s: AllowN(2) after RetryAfter = %+v, %v; want allowed", name, r, err)
			}
			w.must(w.rdb.FlushDB(t.Context()).Err())
		}
	})
}

// exact plays random calls against the models.
type exact struct {
	*world
	t        *testing.T
	rng      *rand.Rand
	l        *Limiter
	policies []Policy
	keys     []string
	models   map[string][]model // by key
	steps    int
	denials  int
	taken    []*takenCall
}

type takenCall struct {
	key string
	set *policySet
	res *Reservation
	m   []*mark
	n   int64
}

// oneCall is a call and what the models say to it.
func (x *exact) oneCall(f *flight, seat int) {
	x.t.Helper()
	cl := &f.calls[seat]
	s := cl.subject
	if s.err != nil {
		x.t.Fatalf("step %d: %v", x.steps, s.err)
	}
	r := &s.runs[cl.run]
	got := s.result(r, cl.order, s.room(r, cl.order))
	x.steps++
	now := x.time(s.now)
	ms := x.models[cl.base]
	room := int64(maxExact)
	for i, m := range ms {
		if !x.policies[i].shadow {
			room = min(room, m.avail(now))
		}
	}
	room = max(room, 0)
	need, granted, allowed := max(cl.cost, 1), int64(0), false
	switch {
	case cl.cost > 0:
		if allowed = cl.cost <= room; allowed {
			granted = cl.cost
		}
	case cl.cost < 0:
		granted = min(room, -cl.cost)
		allowed = granted > 0
	default:
		allowed = room > 0
	}
	fail := func(what string, g, w any) {
		x.t.Helper()
		var states []string
		for i, m := range ms {
			states = append(states, fmt.Sprintf("%+v after %+v and %v units", m, s.snaps[i], r.before()[i]))
		}
		x.t.Fatalf("step %d at %d, cost %d under %v: %s = %v; want %v\nresult %+v\nmodels %s", x.steps, now, cl.cost, x.policies, what, g, w, got, states)
	}
	if got.Allowed != allowed || got.Granted != granted {
		fail("allowed, granted", fmt.Sprint(got.Allowed, got.Granted), fmt.Sprint(allowed, granted))
	}
	marks := make([]*mark, len(ms))
	retry := time.Duration(0)
	for i, m := range ms {
		p := &got.Policies[i]
		before := m.avail(now)
		took := granted
		if x.policies[i].shadow {
			if cl.cost > 0 && before < cl.cost {
				took = 0
			}
			took = min(took, max(before, 0))
		}
		if took > 0 {
			k := m.take(now, took, cl.lease)
			marks[i] = &k
		}
		if p.Allowed != (before >= need) {
			fail(p.Name+" allowed", p.Allowed, before >= need)
		}
		left := m.avail(now)
		if p.Remaining != max(left, 0) || p.Limit != m.size() {
			fail(p.Name+" remaining, limit", fmt.Sprint(p.Remaining, p.Limit), fmt.Sprint(max(left, 0), m.size()))
		}
		fits := func(n int64) func(int64) bool {
			return func(at int64) bool { return m.avail(at) >= n }
		}
		switch {
		case p.Allowed:
			if p.RetryAfter != 0 {
				fail(p.Name+" retry after", p.RetryAfter, 0)
			}
		case need > m.size():
			if p.RetryAfter != Never {
				fail(p.Name+" retry after", p.RetryAfter, Never)
			}
		default:
			x.denials++
			if p.RetryAfter == 0 || !checkWait(now, p.RetryAfter, fits(need)) {
				fail(p.Name+" retry after", p.RetryAfter, "tight")
			}
		}
		if !p.Shadow && !p.Allowed {
			retry = max(retry, p.RetryAfter)
		}
		if left >= m.size() {
			if p.NextAfter != 0 && m.idle(now) {
				fail(p.Name+" next after", p.NextAfter, 0)
			}
		} else if p.NextAfter == 0 || !checkWait(now, p.NextAfter, fits(max(left, 0)+1)) {
			fail(p.Name+" next after", p.NextAfter, "tight")
		}
		if !checkWait(now, p.ResetAfter, m.idle) {
			fail(p.Name+" reset after", p.ResetAfter, "tight")
		}
	}
	if got.RetryAfter != retry && !got.Allowed {
		fail("retry after", got.RetryAfter, retry)
	}
	if got.Allowed && cl.cost > 0 && x.rng.IntN(4) == 0 {
		res := &Reservation{Result: got, l: x.l, key: cl.base, n: cl.cost, lease: cl.lease}
		res.taken(s, r, cl.order)
		x.taken = append(x.taken, &takenCall{cl.base, cl.set, res, marks, cl.cost})
	}
}

// flight sends random calls on random keys in one flight.
func (x *exact) flight() {
	f := &flight{}
	largest := int64(1)
	for _, p := range x.policies {
		largest = max(largest, p.Limit())
	}
	unit := max(1, largest/8)
	if x.rng.IntN(3) == 0 {
		// One cost for all, as the shorter script takes it.
		cost := []int64{1, 1, 2, unit, -unit, 0}[x.rng.IntN(6)]
		for _, i := range x.rng.Perm(len(x.keys))[:1+x.rng.IntN(len(x.keys))] {
			for range 1 + x.rng.IntN(8)*x.rng.IntN(2) {
				cl := call{set: x.l.set, base: x.keys[i], state: x.keys[i] + x.l.set.policies[0].suffix, cost: max(min(cost, x.l.set.most+1), -x.l.set.most)}
				if x.l.set.leased {
					cl.lease = newLease()
				}
				f.calls = append(f.calls, cl)
			}
		}
		x.send(f)
		return
	}
	for range 1 + x.rng.IntN(28) {
		cl := call{set: x.l.set, base: x.keys[x.rng.IntN(len(x.keys))]}
		cl.state = cl.base + x.l.set.policies[0].suffix
		switch x.rng.IntN(12) {
		case 0:
			cl.cost = 0
		case 1:
			cl.cost = -(1 + x.rng.Int64N(2*unit))
		case 2:
			cl.cost = 1 + x.rng.Int64N(largest+2)
		case 3, 4, 5:
			cl.cost = 1 + x.rng.Int64N(unit)
		default:
			cl.cost = 1
		}
		cl.cost = max(min(cl.cost, x.l.set.most+1), -x.l.set.most)
		if x.l.set.leased {
			cl.lease = newLease()
		}
		for range 1 + x.rng.IntN(3) {
			f.calls = append(f.calls, cl)
			if x.l.set.leased {
				cl.lease = newLease()
			}
		}
	}
	x.send(f)
}

func (x *exact) send(f *flight) {
	x.l.core.send(context.Background(), f)
	// The models hear of the calls in the order in which the script took them: by
	// subject. Between subjects there is no order.
	for _, ms := range x.models {
		for _, m := range ms {
			if l, ok := m.(*logModel); ok {
				l.batch = false
			}
		}
	}
	for i := range f.calls {
		x.oneCall(f, i)
	}
}

// giveBack cancels a reservation or refunds the latest units, at a time that only
// the script knows: the model is told the server's time just before, and the
// clock of a server runs on, so only what does not depend on it is done there.
func (x *exact) giveBack() {
	if len(x.taken) == 0 || x.mini == nil {
		return
	}
	i := x.rng.IntN(len(x.taken))
	tc := x.taken[i]
	x.taken[i] = x.taken[len(x.taken)-1]
	x.taken = x.taken[:len(x.taken)-1]
	if tc.set != x.l.set {
		return // made under other limits
	}
	x.steps++
	now := x.now.UnixMicro()
	n := 1 + x.rng.Int64N(tc.n)
	args := tc.res.refundArgs(n)
	generic := x.rng.IntN(3) == 0
	if generic {
		args = x.l.refundArgs(n)
	}
	if _, err := x.l.conn.Run(x.t.Context(), "refund", refundScript.Cmd(x.t.Context(), refundKeys(tc.key, x.l.set), args...).Once()); err != nil {
		x.t.Fatalf("step %d: refund: %v", x.steps, err)
	}
	x.persist() // what is known of a bucket's queue as well, which less would be given back without
	for i, m := range x.models[tc.key] {
		k := tc.m[i]
		switch {
		case generic:
			m.giveBack(now, n, nil)
		case k != nil:
			took := n
			if x.policies[i].algo != concurrency {
				took = min(n, tc.res.took[i])
			}
			m.giveBack(now, took, k)
		}
	}
}

// change gives the limits other numbers.
func (x *exact) change() {
	x.forget()
	for i, p := range x.policies {
		scale := func(n int64) int64 { return max(1, n*(1+x.rng.Int64N(8))/4) }
		most := originals[p.name].Limit() * 4
		p.limit = min(scale(p.limit), most)
		if p.algo == tokenBucket {
			p.burst = min(scale(p.burst), most)
		}
		if x.rng.IntN(2) == 0 {
			// Powers of two apart, so that a server's states can be moved by one
			// number that all windows divide.
			p.window = originals[p.name].window * time.Duration([]int{1, 2, 4}[x.rng.IntN(3)])
		}
		x.policies[i] = p
		for _, ms := range x.models {
			ms[i].become(p)
		}
	}
	x.l = x.with()
}

func (x *exact) with() *Limiter {
	l, err := x.l.With(x.policies...)
	if err != nil {
		x.t.Fatalf("With(%v): %v", x.policies, err)
	}
	return l
}

// clock moves the clock, mostly forward.
func (x *exact) clock() {
	whole := time.Duration(0) // what all windows divide
	for _, p := range x.policies {
		whole = max(whole, originals[p.name].window*4)
	}
	d := time.Duration(0)
	switch x.rng.IntN(20) {
	case 0:
		d = -time.Duration(x.rng.Int64N(int64(whole))) / 8
	case 1:
		// Not by whole windows: at that very microsecond a log's next entry would be
		// one too far in the future.
		d = -whole*time.Duration(x.rng.Int64N(20)) - 13*time.Microsecond
	case 2:
		d = whole * time.Duration(x.rng.Int64N(4))
	case 3, 4, 5, 6, 7:
		d = time.Duration(x.rng.Int64N(int64(whole))) / 4
	default:
		d = time.Duration(x.rng.Int64N(int64(whole))) / 40
	}
	d = d.Truncate(time.Microsecond)
	if x.mini == nil {
		// Aligned windows and raised ticks stay where they are.
		if x.rng.IntN(4) != 0 {
			return
		}
		aligned := false
		for _, p := range x.policies {
			n, _ := p.numbers()
			aligned = aligned || n.tick > 1 || p.limit > 1_000_000 || p.algo == slidingWindow || p.algo == fixedWindow && p.offset >= 0
		}
		if aligned {
			d = d.Truncate(whole)
		}
		if d == 0 {
			return
		}
	}
	if d < 0 {
		x.forget()
	}
	x.pass(d)
}

// forget drops states that are as good as gone, since Redis may or may not have
// expired them by now, and the models would remember them in the past or under a
// longer window. From then on Redis expires nothing either.
func (x *exact) forget() {
	x.persist()
	now := x.now
	if x.mini == nil {
		var err error
		now, err = x.rdb.Time(x.t.Context()).Result()
		x.must(err)
	}
	for key, ms := range x.models {
		for i, m := range ms {
			if m.idle(x.time(now.UnixMicro())) {
				ms[i] = newModel(x.policies[i])
				x.must(x.rdb.Del(x.t.Context(), key+x.l.set.policies[i].suffix).Err())
			}
		}
	}
}

// The policies that the models are played against. Windows are short, so that a
// server's own clock crosses many of them.
var originals = func() map[string]Policy {
	m := make(map[string]Policy)
	for _, p := range []Policy{
		FixedWindow("fixed", 9, 20*time.Millisecond),
		FixedWindow("aligned", 9, 20*time.Millisecond).Aligned(3 * time.Millisecond),
		SlidingLog("log", 12, 20*time.Millisecond),
		SlidingWindow("counter", 10, 20*time.Millisecond),
		SlidingWindow("many", 900_000_000_000, 40*time.Millisecond),
		TokenBucket("bucket", 7, 10*time.Millisecond, 11),
		TokenBucket("large", 300_000_000_000, 40*time.Millisecond, 800_000_000_000),
		Concurrency("leases", 8, 20*time.Millisecond),
	} {
		m[p.name] = p
	}
	return m
}()

func TestExact(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{
		{"fixed"}, {"aligned"}, {"log"}, {"counter"}, {"many"}, {"bucket"}, {"large"}, {"leases"},
		{"fixed", "log", "counter", "bucket", "leases"},
		{"log", "fixed shadow", "counter", "bucket shadow", "leases shadow"},
		{"log shadow"},
	} {
		t.Run(strings.Join(names, "+"), func(t *testing.T) {
			t.Parallel()
			inWorlds(t, func(t *testing.T, w *world) {
				seed := uint64(time.Now().UnixNano())
				if s := os.Getenv("RATELIMIT_SEED"); s != "" {
					seed, _ = strconv.ParseUint(s, 10, 64)
				}
				t.Logf("RATELIMIT_SEED=%d", seed)
				x := playExact(t, w, rand.New(rand.NewPCG(seed, 0)), names, 4_000)
				if x.denials < x.steps/50 && names[0] != "log shadow" {
					t.Errorf("only %d denials in %d steps; the play proves little", x.denials, x.steps)
				}
				t.Logf("%d steps, %d denials, no mismatch", x.steps, x.denials)
			})
		})
	}
}

func playExact(t *testing.T, w *world, rng *rand.Rand, names []string, steps int) *exact {
	x := &exact{world: w, t: t, rng: rng, models: make(map[string][]model)}
	for _, n := range names {
		n, shadow := strings.CutSuffix(n, " shadow")
		p := originals[n]
		if shadow {
			p = p.Shadow()
		}
		x.policies = append(x.policies, p)
	}
	l, err := New(w.rdb, Config{Timeout: 10 * time.Second, NoDenialCache: true}, x.policies...)
	if err != nil {
		t.Fatal(err)
	}
	x.l = l
	for i := range 3 {
		key := fmt.Sprintf("t{%d}", i)
		x.keys = append(x.keys, key)
		for _, p := range x.policies {
			x.models[key] = append(x.models[key], newModel(p))
		}
	}
	for x.steps < steps {
		x.flight()
		x.clock()
		switch x.rng.IntN(40) {
		case 0:
			x.change()
		case 1:
			x.persist()
		case 2, 3, 4, 5:
			x.giveBack()
		}
	}
	return x
}

// bytesSource makes a fuzzer's bytes the source of all choices, and goes on by
// itself when they end.
type bytesSource struct {
	data []byte
	rest *rand.PCG
}

func (s *bytesSource) Uint64() uint64 {
	if len(s.data) < 8 {
		return s.rest.Uint64()
	}
	n := binary.LittleEndian.Uint64(s.data)
	s.data = s.data[8:]
	return n
}

// FuzzDifferential plays the same choices on the models, miniredis and a server.
func FuzzDifferential(f *testing.F) {
	names := slices.Sorted(maps.Keys(originals))
	for i := range names {
		f.Add(byte(i), byte(i+3), []byte(strings.Repeat(names[i], 40)))
	}
	server := redistest.Start(f).Client()
	f.Fuzz(func(t *testing.T, a, b byte, data []byte) {
		one, two := names[int(a)%len(names)], names[int(b)%len(names)]
		policies := []string{one}
		if two != one {
			policies = append(policies, two+" shadow"[:len(" shadow")*int(b>>7)])
		}
		source := func() *rand.Rand { return rand.New(&bytesSource{data, rand.NewPCG(uint64(a), uint64(b))}) }
		m, rdb := redistest.Mini(t)
		w := &world{t: t, rdb: rdb, mini: m, now: time.UnixMicro(1_800_000_000_123_457)}
		m.SetTime(w.now)
		playExact(t, w, source(), policies, 200)
		if err := server.FlushDB(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		playExact(t, &world{t: t, rdb: server}, source(), policies, 200)
	})
}
