package ratelimit

import (
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
	at    int64
	level *big.Rat
	lease string
	units int64
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
		return &bucketModel{p: p, stored: p.window.Microseconds(), level: new(big.Rat)}
	}
	return &leaseModel{p: p}
}

// A fixed window, anchored at its first unit or aligned.
type fixedModel struct {
	p           Policy
	start, used int64
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
	return mark{at: m.start}
}
func (m *fixedModel) giveBack(now, n int64, k *mark) {
	if k == nil || k.at == m.start {
		m.used = max(0, m.used-n)
	}
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
	tick, _ := m.p.tick()
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
		m.cur, m.prev, m.start, m.stored = ceilRat(m.used(now)), 0, now-now%w, w
	}
	m.start, m.prev, m.cur = m.now(now)
	m.cur += n
	return mark{at: m.start}
}
func (m *counterModel) giveBack(now, n int64, k *mark) {
	switch {
	case k == nil:
		d := min(n, m.cur)
		m.cur -= d
		m.prev -= min(n-d, m.prev)
	case m.stored != m.p.window.Microseconds():
	case k.at == m.start:
		m.cur -= min(n, m.cur)
	case k.at == m.start-m.stored:
		m.prev -= min(n, m.prev)
	}
}
func (m *counterModel) become(p Policy) { m.p = p }

// A bucket's level in tokens, which drains.
type bucketModel struct {
	p      Policy
	stored int64 // period of the level
	tick   int64
	level  *big.Rat
	since  int64
}

func (m *bucketModel) size() int64 { return m.p.burst }
func (m *bucketModel) now(now int64) (since int64, level *big.Rat) {
	tick, _ := m.p.tick()
	w := m.p.window.Microseconds()
	t := now / tick * tick
	since, level = m.since/tick*tick, new(big.Rat).Set(m.level)
	if m.stored != w || m.tick != 0 && m.tick != tick {
		// As far as units·period is exact.
		level.SetInt64(min(ceilRat(level), (1<<53-1)/(w/tick)))
	}
	perMicro := big.NewRat(m.p.limit, w)
	if since > t {
		full := new(big.Rat).SetInt64(m.p.burst)
		ticks := ceilRat(full.Quo(full, new(big.Rat).Mul(perMicro, big.NewRat(tick, 1))))
		if (since-t)/tick > ticks {
			return t, new(big.Rat)
		}
		return since, level
	}
	level.Sub(level, new(big.Rat).Mul(perMicro, big.NewRat(t-since, 1)))
	if level.Sign() < 0 {
		level.SetInt64(0)
	}
	return t, level
}
func (m *bucketModel) avail(now int64) int64 {
	_, level := m.now(now)
	return floorRat(level.Sub(new(big.Rat).SetInt64(m.p.burst), level))
}
func (m *bucketModel) idle(now int64) bool {
	_, level := m.now(now)
	return level.Sign() == 0
}
func (m *bucketModel) take(now, n int64, _ string) mark {
	tick, _ := m.p.tick()
	m.since, m.level = m.now(now)
	if m.level.Sign() == 0 {
		m.since = now / tick * tick
	}
	m.stored, m.tick = m.p.window.Microseconds(), tick
	m.level.Add(m.level, big.NewRat(n, 1))
	return mark{at: m.since, level: new(big.Rat).Set(m.level)}
}
func (m *bucketModel) giveBack(now, n int64, k *mark) {
	if tick, _ := m.p.tick(); m.stored != m.p.window.Microseconds() || m.tick != tick {
		return
	}
	since, level := m.since, new(big.Rat).Set(m.level)
	if t := now / m.tick * m.tick; t > since {
		since, level = m.now(now)
	}
	back := big.NewRat(n, 1)
	if k != nil {
		rest := new(big.Rat).Mul(big.NewRat(m.p.limit, m.stored), big.NewRat(max(0, since-k.at), 1))
		rest.Sub(k.level, rest)
		if rest.Sign() < 0 {
			rest.SetInt64(0)
		}
		if rest.Cmp(back) < 0 {
			back = rest
		}
	}
	if back.Sign() == 0 && level.Sign() > 0 {
		return
	}
	if level.Sub(level, back); level.Sign() < 0 {
		level.SetInt64(0)
	}
	m.since, m.level = since, level
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
