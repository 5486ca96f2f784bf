package sessionmodel

import (
	"encoding/gob"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// conf is how a store of a history is configured. Keys are numbers, so that a
// history can be printed; the player makes keys of them.
type conf struct {
	Keys      []int // the first signs, all verify
	Send      bool  // SendUnsigned
	Unsigned  bool  // AcceptUnsigned
	Enc       []int // the first encrypts, all decrypt
	Store     bool  // StorePlaintext
	Plain     bool  // AcceptPlaintext
	Idle, Abs time.Duration
	Touch     time.Duration
	Max       int
	Refuse    bool // AtLimit is RefuseNew
	Detect    bool // DetectConflicts
}

func (c *conf) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "idle %v abs %v", c.Idle, c.Abs)
	if len(c.Keys) > 0 {
		fmt.Fprintf(&b, " keys %v", c.Keys)
	}
	if c.Send {
		b.WriteString(" SendUnsigned")
	}
	if c.Unsigned {
		b.WriteString(" AcceptUnsigned")
	}
	if len(c.Enc) > 0 {
		fmt.Fprintf(&b, " encryption %v", c.Enc)
	}
	if c.Store {
		b.WriteString(" StorePlaintext")
	}
	if c.Plain {
		b.WriteString(" AcceptPlaintext")
	}
	if c.Max > 0 {
		fmt.Fprintf(&b, " MaxPerUser %d", c.Max)
		if c.Refuse {
			b.WriteString(" RefuseNew")
		}
	}
	if c.Detect {
		b.WriteString(" DetectConflicts")
	}
	return b.String()
}

type opKind int

const (
	opLoad opKind = iota
	opSet
	opDelete
	opAppend
	opPop      // all elements of a list, as Flashes does
	opPopFirst // one element of a list
	opMutate   // changes a map where it is
	opBig      // a value beyond MaxBytes
	opBad      // a value of a type that can't be stored
	opBind
	opMaxAge
	opSave
	opCommit
	opRegenerate
	opEmptyID // s.ID = "" and Save
	opExpireNow
	opDestroy
	opTouch
	opReload
	opClose
	opRevoke
	opRevokeUser
	opVanish // the session expires in Redis
	opDeploy
	opClear
	opSleep
	opRace
)

// fault is what happens to the commands of one step.
type fault int

const (
	whole     fault = iota
	down            // no command is carried out
	lostReply       // the reply to the first is lost
)

// step is one call of a history. Numbers that point at nothing make it do nothing,
// so that steps can be left out.
type step struct {
	op      opKind
	slot    int // of a request
	store   int
	browser int
	back    int // 0: the browser's cookie; n: the n-th before it; -1: none; -2: one that nobody sent
	key     int // of a value and of a list
	n       int // number that makes a value unlike others; seconds; which session
	user    int
	fault   fault
	conf    *conf
	pair    []step // of opRace
}

// plan is a history before it is played.
type plan struct {
	seed   uint64
	stores [2]*conf
	steps  []step
	passes bool // time passes in it
}

const (
	slots    = 6
	browsers = 2
	users    = 2
)

var storeNames = [2]string{"A", "B"}

// keys of plain values, and of lists. They are kept apart, since the page does not
// say what becomes of a key that one request makes a list and another does not.
var (
	valueKeys = []any{"a", "b", 7}
	listKeys  = []string{"l", "_flash"}
)

// Cart is a type that only gob can store.
type Cart struct {
	Item string
	N    int
}

type unregistered struct{ N int }

func init() { gob.Register(Cart{}) }

// value returns the value that a number stands for.
func value(n int) any {
	switch n % 13 {
	case 0:
		return n
	case 1:
		return fmt.Sprint("text ", n)
	case 2:
		return n%2 == 0
	case 3:
		return float64(n) / 8
	case 4:
		return []byte(fmt.Sprint(n))
	case 5:
		return time.Unix(int64(n), 123456789).UTC()
	case 6:
		return []string{"x", fmt.Sprint(n)}
	case 7:
		return map[string]string{"n": fmt.Sprint(n)}
	case 8:
		return map[string]any{"n": int64(n), "list": []any{"y", n}}
	case 9:
		return time.Duration(n) * time.Second
	case 10:
		return Cart{Item: "tea", N: n}
	case 11:
		return int64(n)
	}
	return nil
}

// canon is a text that is the same for equal values of the same type only.
func canon(v any) string {
	switch v := v.(type) {
	case string:
		if len(v) > 1000 {
			return "big"
		}
		return "string:" + v
	case time.Time:
		return "time:" + v.Format(time.RFC3339Nano) + v.Location().String()
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = canon(e)
		}
		return "[]any:" + strings.Join(parts, ",")
	}
	return fmt.Sprintf("%T:%#v", v, v)
}

func keyLabel(k any) string {
	if s, ok := k.(string); ok {
		return s
	}
	return fmt.Sprintf("%T(%v)", k, k)
}

func userName(n int) string { return fmt.Sprint("u", n) }

func (st step) String() string {
	r := fmt.Sprint("r", st.slot)
	var s string
	switch st.op {
	case opLoad:
		from := fmt.Sprint("cookie of browser ", st.browser)
		switch {
		case st.back == -1:
			from = fmt.Sprint("no cookie, browser ", st.browser)
		case st.back == -2:
			from = fmt.Sprint("a made-up cookie, browser ", st.browser)
		case st.back > 0:
			from = fmt.Sprintf("cookie %d before that of browser %d", st.back, st.browser)
		}
		s = fmt.Sprintf("%s = %s.New(%s)", r, storeNames[st.store], from)
	case opSet:
		s = fmt.Sprintf("%s.Values[%v] = %s", r, valueKeys[st.key%len(valueKeys)], canon(value(st.n)))
	case opDelete:
		s = fmt.Sprintf("delete(%s.Values, %v)", r, valueKeys[st.key%len(valueKeys)])
	case opAppend:
		s = fmt.Sprintf("append %d to list %s of %s", st.n, listKeys[st.key%2], r)
	case opPop:
		s = fmt.Sprintf("take all of list %s of %s", listKeys[st.key%2], r)
	case opPopFirst:
		s = fmt.Sprintf("take the first of list %s of %s", listKeys[st.key%2], r)
	case opMutate:
		s = fmt.Sprintf("change the map %v of %s in place (%d)", valueKeys[st.key%len(valueKeys)], r, st.n)
	case opBig:
		s = fmt.Sprintf("%s.Values[%v] = 70,000 bytes", r, valueKeys[st.key%len(valueKeys)])
	case opBad:
		s = fmt.Sprintf("%s.Values[%v] = unregistered{}", r, valueKeys[st.key%len(valueKeys)])
	case opBind:
		s = fmt.Sprintf("Bind(%s, %q)", r, bindName(st.user))
	case opMaxAge:
		s = fmt.Sprintf("%s.Options.MaxAge = %d", r, st.n)
	case opSave:
		s = fmt.Sprintf("Save(%s)", r)
	case opCommit:
		s = fmt.Sprintf("Commit(%s)", r)
	case opRegenerate:
		s = fmt.Sprintf("Regenerate(%s)", r)
	case opEmptyID:
		s = fmt.Sprintf("%s.ID = \"\"; Save(%s)", r, r)
	case opExpireNow:
		s = fmt.Sprintf("%s.Options.MaxAge = -1; Save(%s)", r, r)
	case opDestroy:
		s = fmt.Sprintf("Destroy(%s)", r)
	case opTouch:
		s = fmt.Sprintf("Touch(%s)", r)
	case opReload:
		s = fmt.Sprintf("Reload(%s)", r)
	case opClose:
		s = fmt.Sprintf("%s ends", r)
	case opRevoke:
		s = fmt.Sprintf("%s.Revoke(%s, id number %d)", storeNames[st.store], userName(st.user), st.n)
	case opRevokeUser:
		s = fmt.Sprintf("%s.RevokeUser(%s)", storeNames[st.store], userName(st.user))
		if st.n >= 0 {
			s = fmt.Sprintf("%s.RevokeUser(%s, except id number %d)", storeNames[st.store], userName(st.user), st.n)
		}
	case opVanish:
		s = fmt.Sprintf("session number %d expires in Redis", st.n)
	case opDeploy:
		s = fmt.Sprintf("deploy %s: %v", storeNames[st.store], st.conf)
	case opClear:
		s = fmt.Sprintf("%s.Clear", storeNames[st.store])
	case opSleep:
		s = fmt.Sprintf("%v pass", time.Duration(st.n)*time.Second)
	case opRace:
		s = fmt.Sprintf("at once: %v | %v", st.pair[0], st.pair[1])
	}
	switch st.fault {
	case down:
		s += "   [Redis down]"
	case lostReply:
		s += "   [reply lost once]"
	}
	return s
}

func bindName(n int) string {
	if n < 0 {
		return ""
	}
	return userName(n)
}

// generate makes the history of a seed.
func generate(seed uint64, length int, passes bool) *plan {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 17)), passes: passes}
	p := &plan{seed: seed, passes: passes}
	base := g.conf()
	p.stores = [2]*conf{base, base}
	if g.IntN(3) == 0 {
		p.stores[1] = g.sibling(base)
	}
	g.stores = p.stores
	// Every second history has no faults of Redis, so that what is common is not
	// hidden by what is rare.
	g.faults = g.IntN(2) == 0
	for range length {
		p.steps = append(p.steps, g.step())
	}
	return p
}

type generator struct {
	*rand.Rand
	passes  bool
	faults  bool
	open    [slots]bool
	n       int // the last number that made a value
	stories [2][]step
	stores  [2]*conf
}

// conf draws a configuration. Those of one history that share sessions come from
// sibling.
func (g *generator) conf() *conf {
	c := &conf{Idle: 30 * time.Minute, Abs: 8 * time.Hour}
	if g.IntN(2) == 0 {
		keyStages[g.IntN(len(keyStages))].sign(c)
	}
	if g.IntN(2) == 0 {
		keyStages[g.IntN(len(keyStages))].encrypt(c)
	}
	c.Max = max(0, g.IntN(6)-2)
	c.Refuse = g.IntN(2) == 0
	c.Detect = g.IntN(3) == 0
	return c
}

// sibling returns the configuration of a deploy beside or after old, with which it
// must get along.
func (g *generator) sibling(old *conf) *conf {
	c := *old
	switch g.IntN(7) {
	case 0:
		c.Idle = []time.Duration{10 * time.Minute, 20 * time.Minute, time.Hour}[g.IntN(3)]
	case 1:
		c.Abs = []time.Duration{2 * time.Hour, 4 * time.Hour, 24 * time.Hour}[g.IntN(3)]
	case 2:
		c.Max = g.IntN(4)
		c.Refuse = g.IntN(2) == 0
	case 3:
		c.Detect = !c.Detect
	default:
		g.rotate(&c)
	}
	return &c
}

// keyStage is a stage of beginning to use keys and of rotating them, as the page
// describes it. Neighbours run side by side during a deploy.
type keyStage struct {
	keys        []int
	hold, allow bool // the keys are known and not used yet; what is without one is accepted
}

var keyStages = []keyStage{
	{},
	{keys: []int{1}, hold: true},
	{keys: []int{1}, allow: true},
	{keys: []int{1}},
	{keys: []int{1, 2}},
	{keys: []int{2, 1}},
}

func (k keyStage) sign(c *conf)    { c.Keys, c.Send, c.Unsigned = k.keys, k.hold, k.allow }
func (k keyStage) encrypt(c *conf) { c.Enc, c.Store, c.Plain = k.keys, k.hold, k.allow }

// rotate goes one stage on, or back.
func (g *generator) rotate(c *conf) {
	keys, hold, allow, set := c.Keys, c.Send, c.Unsigned, keyStage.sign
	if g.IntN(2) == 0 {
		keys, hold, allow, set = c.Enc, c.Store, c.Plain, keyStage.encrypt
	}
	i := slices.IndexFunc(keyStages, func(k keyStage) bool {
		return slices.Equal(k.keys, keys) && k.hold == hold && k.allow == allow
	})
	j := i + 1 - 2*g.IntN(2)
	if j == 0 && len(c.Enc) > 0 {
		j = 2 // not to a server that can't read what others have encrypted
	}
	set(keyStages[min(max(j, 0), len(keyStages)-1)], c)
}

func (g *generator) slot() int {
	var open []int
	for i, o := range g.open {
		if o {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return g.IntN(slots)
	}
	return open[g.IntN(len(open))]
}

func (g *generator) fault(st *step) {
	if !g.faults || g.IntN(8) != 0 {
		return
	}
	st.fault = down
	if g.IntN(3) == 0 {
		st.fault = lostReply
	}
}

func (g *generator) load(slot, browser int) step {
	st := step{op: opLoad, slot: slot, store: g.IntN(2), browser: browser}
	switch g.IntN(25) {
	case 0, 1:
		st.back = 1 + g.IntN(3)
	case 2:
		st.back = -1
	case 3:
		st.back = -2
	}
	g.fault(&st)
	return st
}

// change is a change of what a request holds, which asks nobody.
func (g *generator) change(slot int) step {
	g.n++
	st := step{slot: slot, key: g.IntN(6), n: g.n}
	switch g.IntN(16) {
	case 0, 1, 2, 3, 4:
		st.op = opSet
		st.n = g.n*13 + g.IntN(13)
		if g.IntN(6) == 0 {
			st.n = g.IntN(26)
		}
	case 5, 6:
		st.op = opDelete
	case 7, 8, 9:
		st.op = opAppend
	case 10:
		st.op = opPop
	case 11:
		st.op = opPopFirst
	case 12:
		st.op = opMutate
	case 13:
		st.op = opMaxAge
		st.n = []int{0, 600, 7200, 7200, 100000}[g.IntN(5)]
	default:
		st = g.bind(slot)
	}
	if g.IntN(40) == 0 {
		st.op = opBig
		if g.IntN(2) == 0 {
			st.op = opBad
		}
	}
	return st
}

func (g *generator) bind(slot int) step {
	st := step{op: opBind, slot: slot, user: g.IntN(users + 1)}
	if st.user == users {
		st.user = g.IntN(3) - 1 // the first user more often than others, "" now and then
		st.user = min(st.user, users-1)
	}
	return st
}

// write is a call of a request that writes what it holds.
func (g *generator) write(slot int) step {
	st := step{slot: slot}
	switch g.IntN(10) {
	case 0, 1, 2:
		st.op = opSave
	case 3, 4, 5, 6:
		st.op = opCommit
	case 7, 8:
		st.op = opRegenerate
	case 9:
		st.op = opEmptyID
	}
	g.fault(&st)
	return st
}

// call is any call of a request.
func (g *generator) call(slot int) step {
	st := step{slot: slot}
	switch g.IntN(16) {
	case 0:
		st.op = opDestroy
	case 1, 2:
		st.op = opTouch
	case 3:
		st.op = opReload
	case 4:
		st.op = opExpireNow
		if g.IntN(2) == 0 {
			st.op = opClose
			return st
		}
	default:
		return g.write(slot)
	}
	g.fault(&st)
	return st
}

func (g *generator) admin() step {
	st := step{store: g.IntN(2), user: g.IntN(users), n: g.IntN(30)}
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		st.op = opRevoke
	case 4, 5, 6:
		st.op = opRevokeUser
		if g.IntN(2) == 0 {
			st.n = -1
		}
	case 7, 8:
		st.op = opVanish
		return st
	case 9:
		if g.IntN(4) > 0 {
			return g.admin()
		}
		st.op = opClear
	default:
		st.op = opDeploy
		// Two stores at a time are at most one deploy apart: the next deploy waits
		// until the one before has reached both.
		if g.stores[0] != g.stores[1] {
			st.conf = g.stores[1-st.store]
		} else {
			st.conf = g.sibling(g.stores[st.store])
		}
		g.stores[st.store] = st.conf
		return st
	}
	g.fault(&st)
	return st
}

// story is a sequence of steps that belong together. Two are told at a time, each
// with slots of its own, which is what makes one request save over what another has
// done.
func (g *generator) story(slot int) []step {
	browser := g.IntN(browsers)
	first := slot + g.IntN(3)
	second := slot + (first-slot+1+g.IntN(2))%3
	third := slot + 3 - (first - slot) - (second - slot)
	g.n++
	exists := []step{
		{op: opLoad, slot: third, store: g.IntN(2), browser: browser},
		{op: opSet, slot: third, key: g.IntN(3), n: g.n*13 + g.IntN(13)},
		{op: []opKind{opSave, opCommit}[g.IntN(2)], slot: third},
	}
	for range g.IntN(3) {
		g.n++
		exists = slices.Insert(exists, 2, step{op: opAppend, slot: third, key: g.IntN(2), n: g.n})
	}
	switch g.IntN(9) {
	case 0, 1, 2: // a login
		load := g.load(first, browser)
		if g.IntN(3) == 0 {
			load.back = -1
		}
		all := []step{load, g.bind(first)}
		if g.IntN(4) == 0 {
			all = append(all, g.change(first))
		}
		last := step{op: opRegenerate, slot: first}
		if g.IntN(3) == 0 {
			last = g.write(first)
		}
		if g.IntN(8) == 0 {
			all = append(all, step{op: opBig, slot: first, n: g.n})
		}
		g.fault(&last)
		return append(all, last)
	case 3, 4: // two requests of one browser at once
		all := append(exists, g.load(first, browser), g.load(second, browser))
		for range 1 + g.IntN(2) {
			all = append(all, g.change(first), g.change(second))
		}
		return append(all, g.call(first), g.call(second))
	case 5, 6: // both change the same value, or take from the same list
		a := g.change(first)
		for a.op == opBind || a.op == opMaxAge {
			a = g.change(first)
		}
		b := a
		b.slot = second
		if g.IntN(3) > 0 || a.op == opAppend { // no two elements of lists are alike
			g.n++
			b.n = g.n * 13
		}
		return append(exists, g.load(first, browser), g.load(second, browser), a, b, g.write(first), g.write(second))
	case 7: // one request ends or renews what the other holds
		renew := step{slot: first, op: []opKind{opRegenerate, opRegenerate, opRegenerate, opEmptyID, opDestroy, opExpireNow}[g.IntN(6)]}
		all := append(exists, g.load(first, browser), g.load(second, browser))
		if g.IntN(3) == 0 {
			all = append(all, g.bind(first))
		}
		if g.IntN(3) == 0 {
			all = append(all, g.bind(second))
		}
		return append(all, renew, g.change(second), g.call(second))
	}
	// Redis is down at the load and back at the save.
	load := g.load(first, browser)
	if g.faults {
		load.fault = down
	}
	if g.IntN(3) == 0 {
		exists = slices.Insert(exists, 2, step{op: opMaxAge, slot: third, n: 7200})
	}
	return append(exists, load, g.change(first), g.change(first), g.call(first))
}

func (g *generator) step() step {
	for i := range g.stories {
		if len(g.stories[i]) == 0 {
			g.stories[i] = g.story(3 * i)
		}
	}
	switch k := g.IntN(100); {
	case k < 82:
		i := g.IntN(2)
		st := g.stories[i][0]
		g.stories[i] = g.stories[i][1:]
		if st.op == opLoad {
			g.open[st.slot] = true
		}
		return st
	case k < 85:
		st := g.load(g.IntN(slots), g.IntN(browsers))
		g.open[st.slot] = true
		return st
	case k < 88:
		return g.change(g.slot())
	case k < 91:
		return g.call(g.slot())
	case k < 96:
		return g.admin()
	case g.passes:
		return step{op: opSleep, n: []int{5, 61, 200, 590, 1500, 1790, 1900, 3000, 7000}[g.IntN(9)]}
	}
	// Two calls at once.
	a := g.call(g.IntN(slots))
	b := g.call((a.slot + 1 + g.IntN(slots-1)) % slots)
	switch g.IntN(6) {
	case 0:
		b = g.load(b.slot, g.IntN(browsers))
		g.open[b.slot] = true
	case 1:
		b = step{op: opRevokeUser, store: g.IntN(2), user: g.IntN(users), n: -1}
	}
	a.fault, b.fault = whole, whole
	return step{op: opRace, pair: []step{a, b}}
}

// without returns p without the steps from i to j.
func (p *plan) without(i, j int) *plan {
	q := *p
	q.steps = slices.Delete(slices.Clone(p.steps), i, j)
	return &q
}
