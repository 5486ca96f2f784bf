package ratelimit

import (
	"fmt"
	"math/big"
	"slices"
	"time"
)

// The models say what each algorithm promises in the plainest way there is, with
// big rational numbers and lists, and share nothing with the code under test.
// Times are microseconds.

// model holds one policy's use of one key.
type model interface {
	// avail returns how many units are free at now.
	avail(now int64) int64
	// idle reports whether nothing is used at now.
	idle(now int64) bool
	// take takes n units, all at once.
	take(now, n int64, lease string) mark
	// giveBack gives n units back that were taken at m, or the latest.
	giveBack(now, n int64, m *mark)
	// become changes the policy's numbers.
	become(p Policy)
	// size is how many units can be free at most.
	size() int64
}

// mark says when units were taken, in the model's own terms.
type mark struct {
	at     int64
	tokens *tokens
	era    *int
	lease  string
	units  int64

	// Of a window: when the call was, what the window held just after, and how much of
	// that was the call's.
	when, top, n int64
}

// lows are to how few units of a window the latest were given back. A window is a number: it
// can't tell whose units are left, but those above a low that came later are gone.
type lows []low

type low struct{ start, when, units int64 }

// left is how many units of k are there still.
func (ls lows) left(k *mark) int64 {
	left := k.n
	for _, l := range ls {
		if l.start == k.at && l.when >= k.when {
			left = min(left, k.n-k.top+l.units)
		}
	}
	return max(left, 0)
}

// note adds a low of the window that began at start. Of before, the other window that
// counts, all are kept, and 32 in all.
func (ls *lows) note(start, when, units, before int64) {
	*ls = slices.DeleteFunc(*ls, func(l low) bool {
		return l.start != before && (l.start != start || l.units >= units)
	})
	if k := *ls; len(k) >= 32 {
		if k[0].start == k[1].start {
			k[1].units = k[0].units
		}
		*ls = k[1:]
	}
	*ls = append(*ls, low{start, when, units})
}

func newModel(p Policy) model {
	switch p.algo {
	case fixedWindow:
		return &fixedModel{p: p}
	case slidingLog:
		return &logModel{p: p}
	case slidingWindow:
		return &counterModel{p: p, stored: p.window.Microseconds()}
	case tokenBucket:
		return &bucketModel{p: p, era: new(int)}
	}
	return &leaseModel{p: p}
}

// A fixed window, anchored at its first unit or aligned.
type fixedModel struct {
	p           Policy
	start, used int64
	lows        lows
}

func (m *fixedModel) size() int64 { return m.p.limit }
func (m *fixedModel) now(now int64) (start, used int64) {
	w := m.p.window.Microseconds()
	fresh := now
	if m.p.offset >= 0 {
		fresh = now - (now-m.p.offset)%w
	}
	start = m.start
	if m.p.offset >= 0 {
		start -= (start - m.p.offset) % w
	}
	switch {
	case m.used == 0:
		return fresh, 0
	case start > now: // the clock was stepped back
		if start-now > w {
			return fresh, 0
		}
		return start, m.used
	case m.p.offset >= 0:
		if start < fresh {
			return fresh, 0
		}
		return fresh, m.used
	case now-m.start >= w:
		return fresh, 0
	}
	return m.start, m.used
}
func (m *fixedModel) avail(now int64) int64 { _, u := m.now(now); return m.p.limit - u }
func (m *fixedModel) idle(now int64) bool   { _, u := m.now(now); return u == 0 }
func (m *fixedModel) take(now, n int64, _ string) mark {
	m.start, m.used = m.now(now)
	if n > 0 {
		m.used += n
	}
	return mark{at: m.start, when: now, top: m.used, n: n}
}
func (m *fixedModel) giveBack(now, n int64, k *mark) {
	switch {
	case k == nil:
		if m.used > 0 {
			m.lows.note(m.start, now, max(m.used-n, 0), m.start)
		}
	case k.at == m.start:
		n = min(n, m.lows.left(k))
	default:
		return
	}
	m.used = max(0, m.used-n)
}
func (m *fixedModel) become(p Policy) { m.p = p }

// A list of what was taken when.
type logModel struct {
	p     Policy
	at, n []int64
	batch bool // the call is not the first of its flight that takes units
}

func (m *logModel) size() int64 { return m.p.limit }
func (m *logModel) live(now int64) (used int64) {
	w := m.p.window.Microseconds()
	if len(m.at) == 0 || m.at[len(m.at)-1]-now > w {
		return 0
	}
	for i, t := range m.at {
		if t > now-w {
			used += m.n[i]
		}
	}
	return used
}
func (m *logModel) avail(now int64) int64 { return m.p.limit - m.live(now) }
func (m *logModel) idle(now int64) bool   { return m.live(now) == 0 }
func (m *logModel) take(now, n int64, _ string) mark {
	t := now
	if last := len(m.at) - 1; last >= 0 {
		if m.at[last]-now > m.p.window.Microseconds() {
			m.at, m.n = nil, nil
		} else if m.batch {
			t = m.at[last]
		} else {
			t = max(now, m.at[last]+1)
		}
	}
	m.batch = true
	// What has ended is forgotten, and does not come back with a longer window.
	for len(m.at) > 0 && m.at[0] <= now-m.p.window.Microseconds() {
		m.at, m.n = m.at[1:], m.n[1:]
	}
	m.at, m.n = append(m.at, t), append(m.n, n)
	return mark{at: t}
}
func (m *logModel) giveBack(now, n int64, k *mark) {
	for i := len(m.at) - 1; i >= 0 && n > 0; i-- {
		if m.at[i] <= now-m.p.window.Microseconds() || k != nil && m.at[i] != k.at {
			continue
		}
		d := min(n, m.n[i])
		m.n[i] -= d
		n -= d
	}
	at, units := m.at[:0:0], m.n[:0:0]
	for i := range m.at {
		if m.n[i] > 0 {
			at, units = append(at, m.at[i]), append(units, m.n[i])
		}
	}
	m.at, m.n = at, units
}
func (m *logModel) become(p Policy) { m.p = p }

// Two counters; the one before counts by the part of it still covered.
type counterModel struct {
	p                Policy
	stored           int64 // window of the counters
	start, prev, cur int64
	lows             lows
}

func (m *counterModel) size() int64 { return m.p.limit }
func (m *counterModel) now(now int64) (start, prev, cur int64) {
	w := m.stored // until the next write after a change
	fresh := now - now%w
	switch {
	case m.prev+m.cur == 0:
		return fresh, 0, 0
	case m.start == fresh || m.start == fresh+w:
		return m.start, m.prev, m.cur
	case m.start == fresh-w:
		return fresh, m.cur, 0
	}
	return fresh, 0, 0
}
func (m *counterModel) used(now int64) *big.Rat {
	start, prev, cur := m.now(now)
	num, _ := m.p.numbers()
	tick := num.tick
	for max(m.p.limit, prev, cur)*(m.stored/tick) > 1<<52 {
		tick *= 10 // only after large limits were changed
	}
	e := max(0, (now-start)/tick)
	w := m.stored / tick
	used := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(prev), big.NewInt(max(0, w-e))), big.NewInt(w))
	return used.Add(used, new(big.Rat).SetInt64(cur))
}
func (m *counterModel) avail(now int64) int64 {
	return m.p.limit - ceilRat(m.used(now))
}
func (m *counterModel) idle(now int64) bool {
	_, prev, cur := m.now(now)
	return prev+cur == 0
}
func (m *counterModel) take(now, n int64, _ string) mark {
	if w := m.p.window.Microseconds(); m.stored != w {
		start, _, _ := m.now(now)
		from := max(start, now) // a clock that was stepped back begins nothing in the past
		m.cur, m.prev, m.start, m.stored = ceilRat(m.used(now)), 0, from-from%w, w
	}
	m.start, m.prev, m.cur = m.now(now)
	m.cur += n
	return mark{at: m.start, when: now, top: m.cur, n: n}
}
func (m *counterModel) giveBack(now, n int64, k *mark) {
	switch {
	case k == nil && m.cur+m.prev > 0:
		before := m.start - m.stored
		d := min(n, m.cur)
		m.cur -= d
		if d = min(n-d, m.prev); d > 0 {
			m.prev -= d
			m.lows.note(before, now, m.prev, m.start)
		}
		m.lows.note(m.start, now, m.cur, before)
	case k == nil || m.stored != m.p.window.Microseconds():
	case k.at == m.start:
		m.cur -= min(n, m.cur, m.lows.left(k))
	case k.at == m.start-m.stored:
		m.prev -= min(n, m.prev, m.lows.left(k))
	}
}
func (m *counterModel) become(p Policy) { m.p = p }

// A bucket is a queue of tokens, which drain first in, first out.
type bucketModel struct {
	p      Policy
	stored numbers
	queue  []*tokens
	since  int64

	// What of a reservation is in the queue cannot be told without the queue. entered
	// counts what went in, and bounds it from below.
	entered int64
	era     *int       // another one each time it begins anew
	holes   [][2]int64 // what was given back behind others
}

// tokens are those of one call.
type tokens struct{ n *big.Rat }

func (m *bucketModel) size() int64 { return m.p.burst }

// level is what the queue holds.
func level(queue []*tokens) *big.Rat {
	sum := new(big.Rat)
	for _, q := range queue {
		sum.Add(sum, q.n)
	}
	return sum
}

// now returns a copy of the queue as it is at now, and since when it drains.
func (m *bucketModel) now(now int64) (since int64, queue []*tokens) {
	n, _ := m.p.numbers()
	t := now / n.tick * n.tick
	since = m.since / n.tick * n.tick
	for _, q := range m.queue {
		queue = append(queue, &tokens{new(big.Rat).Set(q.n)})
	}
	if m.stored != (numbers{}) && (m.stored.win != n.win || m.stored.tick != n.tick) {
		// As far as units·period is exact.
		whole := min(ceilRat(level(queue)), (1<<53-1)/(n.win/n.tick))
		queue = []*tokens{{big.NewRat(whole, 1)}}
	}
	perMicro := big.NewRat(n.rate, n.win)
	if since > t {
		full := new(big.Rat).SetInt64(m.p.burst)
		ticks := ceilRat(full.Quo(full, new(big.Rat).Mul(perMicro, big.NewRat(n.tick, 1))))
		if (since-t)/n.tick > ticks {
			return t, nil
		}
		return since, queue
	}
	gone := new(big.Rat).Mul(perMicro, big.NewRat(t-since, 1))
	for len(queue) > 0 && queue[0].n.Cmp(gone) <= 0 {
		gone.Sub(gone, queue[0].n)
		queue[0].n.SetInt64(0)
		queue = queue[1:]
	}
	if len(queue) > 0 {
		queue[0].n.Sub(queue[0].n, gone)
	}
	return t, queue
}
func (m *bucketModel) avail(now int64) int64 {
	_, queue := m.now(now)
	return floorRat(new(big.Rat).Sub(new(big.Rat).SetInt64(m.p.burst), level(queue)))
}
func (m *bucketModel) idle(now int64) bool {
	_, queue := m.now(now)
	return level(queue).Sign() == 0
}

// settle brings the queue to now, so that marks still point into it.
func (m *bucketModel) settle(now int64) {
	since, queue := m.now(now)
	if n, _ := m.p.numbers(); m.stored == n || m.stored == (numbers{}) {
		kept := m.queue[len(m.queue)-len(queue):]
		for _, q := range m.queue[:len(m.queue)-len(queue)] {
			q.n.SetInt64(0)
		}
		for i := range kept {
			kept[i].n.Set(queue[i].n)
		}
		queue = kept
	}
	m.since, m.queue = since, queue
}
func (m *bucketModel) take(now, n int64, _ string) mark {
	num, _ := m.p.numbers()
	if since := m.since / num.tick * num.tick; since > now {
		if _, queue := m.now(now); queue == nil { // another queue begins
			m.era, m.holes = new(int), nil
		}
	}
	if m.settle(now); level(m.queue).Sign() == 0 {
		m.since = now / num.tick * num.tick
	}
	m.stored = num
	own := &tokens{big.NewRat(n, 1)}
	m.queue = append(m.queue, own)
	m.entered += n
	return mark{at: m.entered, tokens: own, era: m.era}
}
func (m *bucketModel) giveBack(now, n int64, k *mark) {
	if num, _ := m.p.numbers(); m.stored.win != num.win || m.stored.tick != num.tick {
		return
	}
	at := max(now, m.since)
	_, queue := m.now(at)
	back := level(queue)
	if k == nil && back.Sign() > 0 {
		m.settle(at)
	}
	if k == nil {
		back := big.NewRat(n, 1)
		for _, q := range m.queue {
			if q.n.Cmp(back) > 0 {
				q.n.Sub(q.n, back)
				break
			}
			back.Sub(back, q.n)
			q.n.SetInt64(0)
		}
		return
	}
	if k.era != m.era {
		return
	}
	later := m.entered - k.at
	for _, h := range m.holes {
		if h[0] > k.at {
			later -= h[1]
		}
	}
	back.Sub(back, big.NewRat(later, 1))
	if most := big.NewRat(n, 1); back.Cmp(most) > 0 {
		back = most
	}
	if back.Sign() <= 0 {
		return
	}
	if m.settle(at); back.Cmp(k.tokens.n) > 0 {
		panic(fmt.Sprintf("%v given back of a call that has %v in the queue", back, k.tokens.n))
	}
	k.tokens.n.Sub(k.tokens.n, back)
	units := floorRat(back)
	if k.at == m.entered {
		m.entered -= units
	} else if units > 0 {
		m.holes = append(m.holes, [2]int64{k.at, units})
		m.holes = m.holes[max(0, len(m.holes)-32):]
	}
}
func (m *bucketModel) become(p Policy) { m.p = p }

// A list of leases, each with its end.
type leaseModel struct {
	p    Policy
	ends []int64
	ids  []string
}

func (m *leaseModel) size() int64 { return m.p.limit }
func (m *leaseModel) live(now int64) (ends []int64, ids []string) {
	if len(m.ends) > 0 && slices.Max(m.ends)-now > 2*m.p.window.Microseconds() {
		return nil, nil
	}
	for i, e := range m.ends {
		if e > now {
			ends, ids = append(ends, e), append(ids, m.ids[i])
		}
	}
	return ends, ids
}
func (m *leaseModel) avail(now int64) int64 {
	ends, _ := m.live(now)
	return m.p.limit - int64(len(ends))
}
func (m *leaseModel) idle(now int64) bool { return m.avail(now) == m.p.limit }
func (m *leaseModel) take(now, n int64, lease string) mark {
	ends, ids := m.live(now)
	for range n {
		ends, ids = append(ends, now+m.p.window.Microseconds()), append(ids, lease)
	}
	m.ends, m.ids = ends, ids
	return mark{lease: lease, units: n}
}
func (m *leaseModel) giveBack(_, _ int64, k *mark) {
	if k == nil {
		return
	}
	for i := len(m.ids) - 1; i >= 0; i-- {
		if m.ids[i] == k.lease {
			m.ids, m.ends = slices.Delete(m.ids, i, i+1), slices.Delete(m.ends, i, i+1)
		}
	}
}
func (m *leaseModel) become(p Policy) { m.p = p }

func floorRat(r *big.Rat) int64 {
	return new(big.Int).Div(r.Num(), r.Denom()).Int64() // Euclidean: the denominator is positive
}

func ceilRat(r *big.Rat) int64 { return -floorRat(new(big.Rat).Neg(r)) }

// checkWait checks that d is the smallest wait from now, in whole microseconds,
// after which ok holds.
func checkWait(now int64, d time.Duration, ok func(at int64) bool) bool {
	at := now + d.Microseconds()
	return d%time.Microsecond == 0 && ok(at) && (d == 0 || !ok(at-1))
}
