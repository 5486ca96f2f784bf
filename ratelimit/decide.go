package ratelimit

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed decide.lua
	decideSource string
	//go:embed one.lua
	oneSource string
	//go:embed bucket.lua
	bucketSource string

	decideScript = roundtrip.NewScript(withParts(decideSource))
	oneScript    = roundtrip.NewScript(withParts(oneSource))
	bucketScript = roundtrip.NewScript(withParts(bucketSource))
)

// maxSubjects bounds the subjects of one script run, so that Redis serves others
// in between.
const maxSubjects = 64

// uniformAt is where in the arguments the cost goes that all calls have.
const uniformAt = 3

// subject is what a flight asks about one key under one set of policies. Denials and
// reservations keep it, so it does not point into the flight, see flight.of.
type subject struct {
	set   *policySet
	runs  []run // in order of arrival
	first [1]run

	// The reply.
	err    error
	now    int64 // server time, µs
	banned int64 // until, µs; 0 if not
	snaps  []snap
	rooms  []PolicyResult // for the results of its calls, all runs one after another
}

// run is a row of neighbouring calls on one subject with the same cost, which the
// script takes as one. What became of each call of it follows from these numbers.
type run struct {
	cost    int64
	granted int64   // units, all calls together
	nums    []int64 // two for each policy or, if some are listed, four; see the methods
	np      int32   // policies
	calls   int32
	first   int32 // calls in earlier runs
	call    int32 // which of the flight's is the first
}

// numbers is how many nums a run has.
func (set *policySet) numbers() int {
	if set.listed {
		return 4 * len(set.policies)
	}
	return 2 * len(set.policies)
}

// part returns those nums that come k-th for each policy.
func (r *run) part(k int) []int64 {
	np := int(r.np)
	return r.nums[k*np : (k+1)*np : (k+1)*np]
}

// before is the units per policy that earlier runs took.
func (r *run) before() []int64 { return r.part(0) }

// took is the units per policy: fewer than granted for a shadow that was short.
func (r *run) took() []int64 { return r.part(1) }

// when tells for each listed policy that denied when it admits. Only sets with listed
// policies have it, and over.
func (r *run) when() []int64 { return r.part(2) }

// over tells for each listed policy that holds more than its limit when it admits one unit.
func (r *run) over() []int64 { return r.part(3) }

// send sends a flight and fills in the outcome of its calls.
func (c *core) send(ctx context.Context, f *flight) {
	f.sent = time.Now()
	c.group(f)
	parts := c.parts(f, f.subject)
	// Once more if bans must be looked at, and if the server turns out to know slots.
	for tries := 0; len(parts) > 0 && tries < 3; tries++ {
		parts = c.try(ctx, f, parts, tries > 0)
	}
	for _, part := range parts {
		fail(part, errReply)
	}
}

// parts divides subjects, which are in order of their sets, into those that go into one
// script run. It may change their order.
func (c *core) parts(f *flight, subjects []*subject) (parts [][]*subject) {
	// A client that is no ClusterClient has one lane. Where its server has told that keys
	// of different slots can't meet, each slot has runs of its own, and behind a proxy that
	// knows no slots each key.
	slotted := c.lanes.one != nil && c.conn.IsCluster()
	if slotted {
		slices.SortStableFunc(subjects, func(a, b *subject) int {
			return cmp.Or(cmp.Compare(a.set.id, b.set.id), cmp.Compare(f.of(a).slot(), f.of(b).slot()))
		})
	}
	for i := 0; i < len(subjects); {
		first, j := subjects[i], i+1
		for j < len(subjects) && j-i < maxSubjects && subjects[j].set == first.set && (!slotted || !c.cfg.RoutingProxy && f.of(subjects[j]).slot() == f.of(first).slot()) {
			j++
		}
		parts = append(parts, subjects[i:j])
		i = j
	}
	return parts
}

// slot is that of the call's keys on a cluster.
func (cl *call) slot() uint16 { return roundtrip.Slot(cl.base) }

// try runs a script for each of parts. It returns those about which nothing was decided:
// their bans must be looked at, which all asks for from the start, or their keys are in
// different slots.
func (c *core) try(ctx context.Context, f *flight, parts [][]*subject, all bool) (again [][]*subject) {
	cmds := make([]redis.Cmder, len(parts))
	looks := make([]int, len(parts)) // at the bans of so many subjects, the first of a part
	for i, part := range parts {
		cmds[i], looks[i] = c.command(f, part, all)
	}
	err := c.conn.DoEachBy(ctx, f.until, "decide", cmds...)
	for i, part := range parts {
		if err != nil {
			fail(part, err)
			continue
		}
		cmd := cmds[i].(*roundtrip.IntsCmd)
		if e := cmd.Err(); e != nil {
			if crossesSlots(e) && (len(part) > 1 || !all) {
				again = append(again, c.parts(f, part)...)
				continue
			}
			fail(part, c.conn.Classify("decide", e))
			continue
		}
		if looks[i] < len(part) && c.mayBan(cmd) {
			again = append(again, part)
			continue
		}
		if e := parse(part, cmd); e != nil {
			fail(part, e)
			continue
		}
		f.looked(part[:looks[i]])
		c.outdate(f, part)
	}
	return again
}

// crossesSlots reports whether a server refused a command, before it did anything, since
// it keeps slots apart in which the command has keys.
func crossesSlots(err error) bool { return redis.HasErrorPrefix(err, "CROSSSLOT") }

// outdate drops the denials of keys of which something was taken: less remains
// than they say, and under the windows of other policies with the same state units
// may end sooner. It comes before any caller of the flight hears of it.
func (c *core) outdate(f *flight, part []*subject) {
	if c.denied == nil {
		return
	}
	for _, s := range part {
		for i := range s.runs {
			if s.runs[i].granted > 0 {
				known := f.of(s).known
				c.denied.bucket(known.hash).drop(known.subject)
				break
			}
		}
	}
}

func fail(part []*subject, err error) {
	for _, s := range part {
		s.err = err
	}
}

// tables keeps the tables of flights past. A table finds the first call on a subject by
// its hash: the place that it names, or one behind it, holds the call's number from 1.
// A map would take five times as long.
var tables = sync.Pool{New: func() any { return new([]int32) }}

// newTable returns an empty table for n calls, whose length is a power of two.
func newTable(n int) *[]int32 {
	t := tables.Get().(*[]int32)
	size := 2 << bits.Len(uint(n))
	if cap(*t) < size {
		*t = make([]int32, size)
	}
	*t = (*t)[:size]
	clear(*t)
	return t
}

// hash is that of the call's key.
func (cl *call) hash() uint64 {
	if cl.known == nil {
		return 0
	}
	return cl.known.hash
}

// joins reports whether two calls are on one subject.
func (cl *call) joins(other *call) bool { return cl.set == other.set && cl.base == other.base }

// group sorts the calls of a flight by set and subject.
func (c *core) group(f *flight) {
	if len(f.calls) == 1 {
		cl := &f.calls[0]
		if cl.left {
			return
		}
		s := &subject{set: cl.set}
		s.runs = s.first[:0]
		s.line(cl, 0)
		cl.subject = s
		f.subject = []*subject{s}
		return
	}
	t := newTable(len(f.calls))
	table, mask := *t, uint64(len(*t)-1)
	n := 0
	for i := range f.calls {
		cl := &f.calls[i]
		if cl.left {
			continue
		}
		at := cl.hash() & mask
		for table[at] != 0 && !cl.joins(&f.calls[table[at]-1]) {
			at = (at + 1) & mask
		}
		if table[at] == 0 {
			table[at] = int32(i + 1)
			n++
		}
		cl.run = table[at] - 1 // the first call on its subject, until it is put in line
	}
	subjects := make([]subject, n)
	f.subject = make([]*subject, 0, n)
	mixed := false
	for i := range f.calls {
		cl := &f.calls[i]
		if cl.left {
			continue
		}
		if int(cl.run) == i {
			s := &subjects[len(f.subject)]
			s.set, s.runs = cl.set, s.first[:0]
			f.subject = append(f.subject, s)
			mixed = mixed || cl.set != f.subject[0].set
			cl.subject = s
		} else {
			cl.subject = f.calls[cl.run].subject
		}
		cl.subject.line(cl, i)
	}
	tables.Put(t)
	if mixed {
		slices.SortStableFunc(f.subject, func(a, b *subject) int { return int(a.set.id) - int(b.set.id) })
	}
}

// of returns the first call on a subject.
func (f *flight) of(s *subject) *call { return &f.calls[s.runs[0].call] }

// command builds the script run for subjects of one set, which may change their order.
// The bans of the first looks of them are looked at.
func (c *core) command(f *flight, part []*subject, all bool) (_ *roundtrip.IntsCmd, looks int) {
	set := part[0].set
	single, uniform := true, true // one call a subject, one cost for all
	for _, s := range part {
		r := &s.runs[0]
		single = single && r.calls == 1
		uniform = uniform && len(s.runs) == 1 && r.cost == part[0].runs[0].cost
	}
	if uniform && set.simple && (single || part[0].runs[0].cost > 0) {
		looks = c.looks(f, part, all)
		return c.simple(f, part, looks, single), looks
	}
	uniform = uniform && single
	keys := make([]string, 0, len(part)*(1+len(set.policies)))
	for _, s := range part {
		cl := f.of(s)
		keys = append(keys, cl.banKey(), cl.state)
		for i := range set.policies[1:] {
			keys = append(keys, cl.base+set.policies[1+i].suffix)
		}
	}
	args := decideScript.Args(keys, len(set.header)+4*len(part))
	header := len(args)
	args = append(args, set.header...)
	if uniform {
		args[header+uniformAt] = part[0].runs[0].cost
	}
	for _, s := range part {
		if set.phased {
			args = append(args, phase(f.of(s).base))
		}
		if !uniform {
			args = append(args, len(s.runs))
		}
		for i := range s.runs {
			if !uniform {
				args = append(args, s.runs[i].cost, int(s.runs[i].calls))
			}
			if set.leased {
				args = append(args, f.calls[s.runs[i].call].lease)
			}
		}
	}
	return decideScript.Ints(context.Background(), args).Once(), c.looks(f, part, true)
}

// simple is command for what bucket.lua and one.lua know. single says that each
// subject has one call.
func (c *core) simple(f *flight, part []*subject, looks int, single bool) *roundtrip.IntsCmd {
	p := &part[0].set.policies[0]
	keys := make([]string, 0, len(part)+looks+1)
	for _, s := range part {
		keys = append(keys, f.of(s).state)
	}
	for _, s := range part[:looks] {
		keys = append(keys, f.of(s).base)
	}
	if looks < len(part) && !part[0].set.alone {
		keys = append(keys, c.keys.flag)
	}
	script, own, calls := oneScript, p.args[:5], 0
	if p.algo == tokenBucket {
		script, own = bucketScript, p.args[1:5]
	}
	if !single {
		calls = len(part)
	}
	args := append(script.Args(keys, len(own)+2+calls), own...)
	args = append(args, part[0].runs[0].cost, len(part))
	for _, s := range part[:calls] {
		args = append(args, int(s.runs[0].calls))
	}
	return script.Ints(context.Background(), args).Once()
}

// banKey is the key of the ban, or that of the only policy if the ban is not to be
// looked at.
func (cl *call) banKey() string {
	if cl.set.alone {
		return cl.state
	}
	return cl.base
}

// line puts the i-th call of a flight in the subject's row: into the last run if it can
// be taken together with it, or into a new one. With leases each is one.
func (s *subject) line(cl *call, i int) {
	if n := len(s.runs) - 1; n >= 0 && cl.cost >= 0 && s.runs[n].cost == cl.cost && !s.set.leased {
		cl.order = int64(s.runs[n].calls)
		cl.run = int32(n)
		s.runs[n].calls++
		return
	}
	cl.run, cl.order = int32(len(s.runs)), 0
	next := run{cost: cl.cost, calls: 1, call: int32(i)}
	if n := len(s.runs); n > 0 {
		next.first = s.runs[n-1].first + s.runs[n-1].calls
	}
	s.runs = append(s.runs, next)
}

var errReply = &roundtrip.Error{Package: "ratelimit", Op: "decide", Kind: roundtrip.ErrBug,
	Err: errors.New("the script's reply is not as expected")}

// errForeign is what a subject gets whose keys hold something else.
var errForeign = &roundtrip.Error{Package: "ratelimit", Op: "decide", Kind: roundtrip.ErrBug,
	Err: errors.New("what Redis holds at a key of the subject is not a limiter's")}

// parse reads a reply and works out what became of each call.
func parse(part []*subject, cmd *roundtrip.IntsCmd) error {
	reply, err := cmd.Result()
	if err != nil {
		return errReply
	}
	r := reader{reply: reply}
	next := r.next
	now := next()
	np, each, runs, calls := len(part[0].set.policies), part[0].set.numbers(), 0, 0
	for _, s := range part {
		runs += len(s.runs)
		calls += s.calls()
	}
	rooms := make([]PolicyResult, np*calls)
	nums := make([]int64, np+each*runs)
	snaps := make([]snap, np*len(part))
	left, nums := nums[:np], nums[np:]
	for _, s := range part {
		s.now = now
		n := np * s.calls()
		s.rooms, rooms = rooms[:n:n], rooms[n:]
		x := r.next()
		if x == -1 {
			s.err = errForeign
			continue
		}
		if x < 0 {
			s.banned = -x
			continue
		}
		s.snaps, snaps = snaps[:np:np], snaps[np:]
		for i := range s.snaps {
			if i > 0 {
				x = r.next()
			}
			s.snaps[i] = snap{x: x, y: r.next()}
			if s.set.policies[i].algo != fixedWindow {
				s.snaps[i].z = r.next()
				if s.snaps[i].z < 0 {
					s.snaps[i].z, s.snaps[i].w = -1-s.snaps[i].z, r.next()
				}
			}
		}
		s.replay(next, left, nums)
		nums = nums[each*len(s.runs):]
	}
	if r.bad || len(r.reply) > 0 {
		return errReply
	}
	return nil
}

type reader struct {
	reply []int64
	bad   bool
}

func (r *reader) next() int64 {
	if len(r.reply) == 0 {
		r.bad = true
		return 0
	}
	n := r.reply[0]
	r.reply = r.reply[1:]
	return n
}

// replay repeats the script's decisions on the state it returned: the same
// integers, so the same outcome. next returns the times at which listed policies
// admit what they denied; nil if somebody else finds out.
//
// left is room for a number per policy, nums for all runs.
func (s *subject) replay(next func() int64, left, nums []int64) {
	each := s.set.numbers()
	for i := range left {
		left[i] = s.set.policies[i].left(s.snaps[i], 0, s.now)
	}
	for i := range s.runs {
		r := &s.runs[i]
		r.np = int32(len(s.set.policies))
		r.nums, nums = nums[:each:each], nums[each:]
		before, took := r.before(), r.took()
		if i > 0 {
			last := &s.runs[i-1]
			for p := range before {
				before[p] = last.before()[p] + last.took()[p]
			}
		}
		room := int64(maxExact)
		for p := range left {
			if !s.set.policies[p].shadow {
				room = min(room, left[p])
			}
		}
		room = max(room, 0)
		n := int64(0)
		switch {
		case r.cost > 0:
			n = min(room/r.cost, int64(r.calls))
			r.granted = n * r.cost
		case r.cost < 0:
			r.granted = min(room, -r.cost)
		}
		for p := range left {
			pol := &s.set.policies[p]
			units, all := r.granted, n == int64(r.calls)
			if pol.shadow {
				l := max(left[p], 0)
				if r.cost > 0 {
					if m := l / r.cost; m < n {
						units, all = m*r.cost, false
					}
				} else {
					units = min(units, l)
				}
			}
			took[p] = units
			left[p] -= units
			if !pol.listed() || next == nil {
				continue
			}
			if need := max(r.cost, 1); need > left[p] && need <= pol.cap && !(r.cost > 0 && all) {
				r.when()[p] = next()
			}
			if left[p] < 0 {
				r.over()[p] = next()
			}
		}
	}
}

// calls is how many calls the subject has.
func (s *subject) calls() int {
	last := &s.runs[len(s.runs)-1]
	return int(last.first + last.calls)
}

// room is where the n-th call of a run has its policies' results: one allocation for
// a flight. It must be asked for once only.
func (s *subject) room(r *run, n int64) []PolicyResult {
	np := len(s.snaps)
	at := (int(r.first) + int(n)) * np
	if at+np > len(s.rooms) {
		return nil
	}
	return s.rooms[at : at+np : at+np]
}

// result tells the n-th call of a run what became of it. policies is room for what
// each policy says; nil if there is none yet.
func (s *subject) result(r *run, n int64, policies []PolicyResult) Result {
	res := Result{At: time.UnixMicro(s.now)}
	if s.banned > 0 {
		res.Banned = true
		res.RetryAfter = after(s.banned, s.now)
		res.NextAfter, res.ResetAfter = res.RetryAfter, res.RetryAfter
		return res
	}
	need := max(r.cost, 1)
	switch {
	case r.cost > 0:
		if res.Allowed = n < r.granted/r.cost; res.Allowed {
			res.Granted = r.cost
		}
	case r.cost < 0:
		res.Granted = r.granted
		res.Allowed = r.granted > 0
	default:
		res.Allowed = true // unless a policy has nothing left, see below
	}
	if res.Policies = policies; policies == nil {
		res.Policies = make([]PolicyResult, len(s.snaps))
	}
	earlier, took := r.before(), r.took()
	for i := range s.snaps {
		p := &s.set.policies[i]
		before, total := earlier[i], earlier[i]+took[i]
		if r.cost > 0 {
			before += min(n*r.cost, took[i])
			total = earlier[i] + min((n+1)*r.cost, took[i])
		}
		admitted := p.left(s.snaps[i], before, s.now) >= need
		if r.cost == 0 && !admitted && !p.shadow {
			res.Allowed = false
		}
		var when, over int64
		if p.listed() {
			when, over = r.when()[i], r.over()[i]
		}
		res.Policies[i] = p.result(s.snaps[i], total, need, s.now, when, over, admitted)
	}
	res.summarise()
	return res
}

// totals returns the units taken from each policy when the n-th call of the run
// was decided, that call included.
func (r *run) totals(n int64) []int64 {
	before, took := r.before(), r.took()
	ts := make([]int64, len(before))
	for i := range ts {
		ts[i] = before[i] + took[i]
		if r.cost > 0 {
			ts[i] = before[i] + min((n+1)*r.cost, took[i])
		}
	}
	return ts
}

// summarise fills in the deciding policy from the policies.
func (r *Result) summarise() {
	var d *PolicyResult
	for i := range r.Policies {
		p := &r.Policies[i]
		switch {
		case p.Shadow || !r.Allowed && p.Allowed:
		case d == nil,
			r.Allowed && p.Remaining < d.Remaining,
			!r.Allowed && p.RetryAfter > d.RetryAfter:
			d = p
		}
	}
	if d == nil {
		return
	}
	r.Policy, r.Limit, r.Remaining = d.Name, d.Limit, d.Remaining
	r.NextAfter, r.ResetAfter = d.NextAfter, d.ResetAfter
	if !r.Allowed {
		r.RetryAfter = d.RetryAfter
	}
}
