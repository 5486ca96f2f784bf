package sessionmodel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redporch/redporch/session"
)

// span is when something happened or will, in milliseconds of Unix time: not
// before lo and not after hi.
type span struct{ lo, hi int64 }

func (s span) plus(d time.Duration) span {
	return span{s.lo + d.Milliseconds(), s.hi + d.Milliseconds()}
}

func lower(a, b span) span { return span{min(a.lo, b.lo), min(a.hi, b.hi)} }

func union(a, b span) span { return span{min(a.lo, b.lo), max(a.hi, b.hi)} }

// slack is what times may differ by beyond their spans: lifetimes are kept in
// whole seconds in places.
const slack = 2000

func (s span) near(t int64) bool { return t >= s.lo-slack && t <= s.hi+slack }

// cell is a stored value.
type cell struct {
	canon string
	enc   int // number of the key that encrypted it; 0: none
	ver   int // unlike that of every other write
}

// elem is an element of a stored list. No two of a history are alike.
type elem struct {
	canon string
	enc   int
	after []string // the elements that were before it when it was appended
}

// stored is what Redis has to hold of a session.
type stored struct {
	no      int
	id      string
	raw     string // the cookie's token; "" if no browser knows it
	live    bool
	lost    span // when it vanished from Redis
	maybe   bool // it may have expired: whether it did is learned
	cells   map[string]cell
	lists   map[string][]elem
	user    string
	label   string
	created span
	abs     span             // when it ends at the latest
	idle    [2]time.Duration // the least and the most that stores gave it
	maxAge  int
	exp     span // when it ends unless it is used
	seen    span // its last use
}

// token is a cookie's value without the signature.
type token struct {
	raw        string
	id         string
	sess       int // -1: nobody's
	superseded bool
	since      span
}

// request is what a request holds.
type request struct {
	conf     *conf
	store    int
	browser  int
	label    string
	came     string // the token its cookie had, "" without
	signed   int    // the key that signed that cookie
	accepted bool   // the store believes the cookie
	raw      string // the token of the stored session it holds; "" : none
	id       string
	loaded   bool
	old      bool           // it came with a superseded cookie
	exp      span           // when the session ends, as far as it knows
	due      span           // when the session was used last, as far as it knows
	before   string         // the superseded token that it had before its own session
	hidden   map[string]int // versions of values that it could not read
	was      bool           // it has deleted a session that was stored
	ended    bool           // it has deleted its session
	base     map[string]cell
	baseList map[string][]string
	now      map[string]string
	nowList  map[string][]string
	bind     *string
	sawUser  string
	emptied  bool // the app set its ID to ""
	maxAge0  int  // what Options.MaxAge was
	maxAge   int
	reloaded bool // it was loaded again
	learned  int  // the MaxAge that a Touch found
	resigned bool // an own cookie was sent already
}

// model is everything that the page says about the state after a history.
type model struct {
	sess   []*stored
	tokens map[string]*token
	reqs   [slots]*request
	ver    int
	index  map[string]int64 // of users' indexes: not before when they end
}

func newModel() *model {
	return &model{tokens: map[string]*token{}, index: map[string]int64{}}
}

func (m *model) clone() *model {
	c := *m
	c.sess = make([]*stored, len(m.sess))
	for i, s := range m.sess {
		d := *s
		d.cells = maps.Clone(s.cells)
		d.lists = make(map[string][]elem, len(s.lists))
		for k, l := range s.lists {
			d.lists[k] = slices.Clone(l)
		}
		c.sess[i] = &d
	}
	c.tokens = make(map[string]*token, len(m.tokens))
	for k, t := range m.tokens {
		d := *t
		c.tokens[k] = &d
	}
	c.index = maps.Clone(m.index)
	for i, r := range m.reqs {
		if r == nil {
			continue
		}
		d := *r
		d.base = maps.Clone(r.base)
		d.now = maps.Clone(r.now)
		d.hidden = maps.Clone(r.hidden)
		d.baseList = make(map[string][]string, len(r.baseList))
		for k, l := range r.baseList {
			d.baseList[k] = slices.Clone(l)
		}
		d.nowList = make(map[string][]string, len(r.nowList))
		for k, l := range r.nowList {
			d.nowList[k] = slices.Clone(l)
		}
		c.reqs[i] = &d
	}
	return &c
}

// wrong is a disagreement: a class, by which shrinking tells one from another, and
// what was seen.
type wrong struct{ class, text string }

func (w *wrong) Error() string { return w.class + ": " + w.text }

func disagree(class, format string, args ...any) error {
	return &wrong{class, fmt.Sprintf(format, args...)}
}

// errorClass names the errors of the package.
func errorClass(err error) string {
	var all []string
	if errors.Is(err, session.ErrSuperseded) {
		return "ErrSuperseded" // it matches ErrSessionGone as well
	}
	for _, e := range []struct {
		err  error
		name string
	}{
		{session.ErrUnavailable, "ErrUnavailable"},
		{session.ErrSessionGone, "ErrSessionGone"},
		{session.ErrTooLarge, "ErrTooLarge"},
		{session.ErrConflict, "ErrConflict"},
		{session.ErrUnsupported, "ErrUnsupported"},
		{session.ErrCookie, "ErrCookie"},
		{session.ErrTooManySessions, "ErrTooManySessions"},
	} {
		if errors.Is(err, e.err) {
			all = append(all, e.name)
		}
	}
	switch {
	case err == nil:
		return "nil"
	case len(all) == 0:
		return "another error: " + err.Error()
	}
	return strings.Join(all, "+")
}

// event is what a hook was told.
type event struct{ kind, id, old, user string }

// cookie is a Set-Cookie that a call made.
type cookie struct {
	raw     string // "" if it deletes
	signed  int
	maxAge  int
	deletes bool
	fault   string // what is wrong with its attributes
}

// seen is what was observed of one step.
type seen struct {
	err      string // errorClass
	cookies  []cookie
	events   []event
	isNew    bool
	loaded   bool
	id       string
	values   map[string]string // of the session, after the call
	lists    map[string][]string
	maxAge   int
	ttlIdle  time.Duration
	ttlAbs   time.Duration
	n        int
	ok       bool
	wrote    bool
	changed  bool
	needs    bool
	at       span
	targetID string // of opRevoke, opRevokeUser, opVanish
	came     string // of opLoad
	signed   int
	made     bool // of opLoad: the cookie was made up
	conf     *conf
	label    string
	skipped  bool
}

func (o *seen) count(kind, id string) (n int) {
	for _, e := range o.events {
		if e.kind == kind && (id == "" || e.id == id) {
			n++
		}
	}
	return n
}

// only checks that the hooks were told of these events and no others.
func (o *seen) only(want ...event) error {
	got := slices.Clone(o.events)
	for _, w := range want {
		i := slices.IndexFunc(got, func(e event) bool {
			return e.kind == w.kind && (w.id == "" || e.id == w.id) && (w.old == "" || e.old == w.old)
		})
		if i < 0 {
			return disagree("hook not told", "of %s %s; it was told %v", w.kind, w.id, o.events)
		}
		got = slices.Delete(got, i, i+1)
	}
	if len(got) > 0 {
		return disagree("hook told", "%v; want only %v", got, want)
	}
	return nil
}

func (o *seen) nothing(class string) error {
	for _, c := range o.cookies {
		return disagree(class+" with a cookie", "%+v", c)
	}
	return o.only()
}

func (m *model) byID(id string) *stored {
	for _, t := range m.tokens {
		if t.id == id && t.sess >= 0 {
			return m.sess[t.sess]
		}
	}
	for _, s := range m.sess {
		if s.id == id {
			return s
		}
	}
	return nil
}

// target finds the session that a token leads to.
func (m *model) target(raw string) (s *stored, superseded bool) {
	t := m.tokens[raw]
	if raw == "" || t == nil || t.sess < 0 {
		return nil, false
	}
	return m.sess[t.sess], t.superseded
}

// supersededFor is how long an id stays known as superseded, in milliseconds.
const supersededFor = 30_000

// known reports whether Redis knows a superseded id as such, and whether that is
// sure.
func (t *token) known(at span) (known, sure bool) {
	switch {
	case at.hi-t.since.lo < supersededFor-slack:
		return true, true
	case at.lo-t.since.hi > supersededFor+slack:
		return false, true
	}
	return true, false
}

// standing is how a request stands to what is stored.
type standing int

const (
	none            standing = iota // it holds no stored session
	current                         // it holds a live one
	gone                            // the one that it held is not there any more
	superseded                      // the session has a new id
	supersededEnded                 // the session had a new id and has ended
	supersededOnce                  // it came with a superseded cookie that Redis has forgotten by now
)

func (m *model) stand(r *request, at span) (s *stored, how standing, sure bool) {
	raw := r.raw
	if raw == "" && r.old && !r.ended {
		raw = r.came
	}
	if raw == "" {
		return nil, none, true
	}
	t := m.tokens[raw]
	if t == nil {
		return nil, gone, true
	}
	s = m.sess[t.sess]
	if !t.superseded {
		if s.live {
			return s, current, true
		}
		return s, gone, true
	}
	known, sure := t.known(at)
	switch {
	case !known && r.raw == "":
		return nil, supersededOnce, sure
	case !known:
		return nil, gone, sure
	case !s.live:
		return s, supersededEnded, sure
	}
	return s, superseded, sure
}

// wasSuperseded reports whether the session that r holds got a new id, be it that
// Redis has forgotten that.
func (m *model) wasSuperseded(r *request) bool {
	t := m.tokens[r.raw]
	return t != nil && t.superseded
}

func (c *conf) signs() int {
	if len(c.Keys) == 0 || c.Send {
		return 0
	}
	return c.Keys[0]
}

// accepts reports whether a cookie signed by that key is believed.
func (c *conf) accepts(key int) bool {
	switch {
	case len(c.Keys) == 0:
		return key == 0
	case key == 0:
		return c.Unsigned || c.Send
	}
	return slices.Contains(c.Keys, key)
}

func (c *conf) encrypts() int {
	if len(c.Enc) == 0 || c.Store {
		return 0
	}
	return c.Enc[0]
}

func (c *conf) reads(key int) bool {
	if key == 0 {
		return len(c.Enc) == 0 || c.Plain || c.Store
	}
	return slices.Contains(c.Enc, key)
}

func (c *conf) touchEvery(idle time.Duration) time.Duration {
	if c.Touch > 0 {
		return c.Touch
	}
	return min(idle/10, time.Minute)
}

// idleOf returns the shortest and the longest idle time that the session may have
// when the store uses it.
func (s *stored) idleOf(c *conf) (least, most time.Duration) {
	if s.maxAge > 0 {
		d := time.Duration(s.maxAge) * time.Second
		return d, d
	}
	return min(c.Idle, s.idle[0]), max(c.Idle, s.idle[1])
}

// use prolongs the session, if it must or if it is due.
func (s *stored) use(c *conf, at span, must bool) {
	cap := s.created.plus(c.Abs)
	s.abs = union(lower(s.abs, cap), union(s.abs, cap))
	least, most := s.idleOf(c)
	if s.maxAge == 0 {
		s.idle = [2]time.Duration{min(c.Idle, s.idle[0]), max(c.Idle, s.idle[1])}
		if c.Idle == s.idle[0] && c.Idle == s.idle[1] {
			least, most = c.Idle, c.Idle
		}
	}
	full := span{min(at.lo+least.Milliseconds(), s.abs.lo), min(at.hi+most.Milliseconds(), s.abs.hi)}
	every := c.touchEvery(least).Milliseconds()
	switch {
	case must || at.lo-s.seen.hi > every+slack && most == least:
		s.exp, s.seen = full, at
	case at.hi-s.seen.lo <= every-slack && most == least && s.abs.lo == s.abs.hi:
		// left alone
	default:
		s.exp, s.seen = union(s.exp, full), union(s.seen, at)
	}
}

// expired reports whether the session has ended by itself for a store: surely, or
// perhaps.
func (s *stored) expired(c *conf, at span) (surely, perhaps bool) {
	least, most := s.idleOf(c)
	own := union(s.seen.plus(least), s.seen.plus(most))
	own = lower(own, s.exp)
	own.hi = max(own.hi, s.exp.hi)
	if s.maxAge == 0 && c.Idle < s.idle[0] {
		own.hi = min(own.hi, s.seen.plus(c.Idle).hi) // shorter timeouts apply to what is stored
	}
	capped := s.created.plus(c.Abs)
	own = lower(own, span{min(capped.lo, s.abs.lo), max(min(capped.hi, s.abs.hi), min(s.abs.hi, capped.hi))})
	return at.lo > own.hi+slack, at.hi > own.lo-slack
}

// visible returns what a store shows of a session.
func (s *stored) visible(c *conf) (map[string]string, map[string][]string) {
	values, lists := map[string]string{}, map[string][]string{}
	for k, v := range s.cells {
		if c.reads(v.enc) {
			values[k] = v.canon
		}
	}
	for k, l := range s.lists {
		for _, e := range l {
			if c.reads(e.enc) {
				lists[k] = append(lists[k], e.canon)
			}
		}
	}
	return values, lists
}

// sameContent compares values exactly, and lists by their elements and the order
// that each of them was appended in.
func (s *stored) sameContent(c *conf, values map[string]string, lists map[string][]string) error {
	want, wantLists := s.visible(c)
	if !maps.Equal(want, values) {
		return disagree("values", "%v; want %v", values, want)
	}
	for k, l := range wantLists {
		got := lists[k]
		a, b := slices.Sorted(slices.Values(l)), slices.Sorted(slices.Values(got))
		if !slices.Equal(a, b) {
			return disagree("list", "%s is %v; want %v", k, got, l)
		}
		for _, e := range s.lists[k] {
			i := slices.Index(got, e.canon)
			for _, before := range e.after {
				if j := slices.Index(got, before); j > i && i >= 0 {
					return disagree("order of list", "%s is %v; %s was appended after %s", k, got, e.canon, before)
				}
			}
		}
	}
	for k, l := range lists {
		if len(wantLists[k]) == 0 && len(l) > 0 {
			return disagree("list", "%s is %v; want none", k, l)
		}
	}
	return nil
}

// difference is what a save has to write.
type difference struct {
	set     []string
	del     []string
	added   map[string][]string
	removed map[string][]string
}

func (d *difference) empty() bool {
	return len(d.set)+len(d.del)+len(d.added)+len(d.removed) == 0
}

func (r *request) difference() *difference {
	d := &difference{added: map[string][]string{}, removed: map[string][]string{}}
	for k, v := range r.now {
		if b, ok := r.base[k]; !ok || b.canon != v {
			d.set = append(d.set, k)
		}
	}
	for k := range r.base {
		if _, ok := r.now[k]; !ok {
			d.del = append(d.del, k)
		}
	}
	for _, k := range listKeys {
		for _, e := range r.nowList[k] {
			if !slices.Contains(r.baseList[k], e) {
				d.added[k] = append(d.added[k], e)
			}
		}
		for _, e := range r.baseList[k] {
			if !slices.Contains(r.nowList[k], e) {
				d.removed[k] = append(d.removed[k], e)
			}
		}
	}
	slices.Sort(d.set)
	slices.Sort(d.del)
	return d
}

// has reports whether a value of r is that, "big" or "bad".
func (r *request) has(canon string) bool {
	for _, v := range r.now {
		if v == canon {
			return true
		}
	}
	return false
}

func (m *model) boundTo(user string, except *stored) (all []*stored) {
	for _, s := range m.sess {
		if s.live && s != except && s.user == user && user != "" {
			all = append(all, s)
		}
	}
	return all
}

// lost reports whether a session of the user vanished from Redis less than a minute
// ago: it may hold its place.
func (m *model) lost(user string, at span) bool {
	for _, s := range m.sess {
		if s.user == user && s.lost.hi > 0 && at.lo-s.lost.hi < 60_000+slack {
			return true
		}
	}
	return false
}

func (m *model) kill(s *stored) { s.live = false }

// ended ends a session by a call. If its reply was lost, the session is to Redis as
// one that vanished.
func (m *model) ended(s *stored, st *step, o *seen) {
	m.kill(s)
	if st.fault == lostReply {
		s.lost = o.at
	}
}

// apply returns the model after a step of which o was observed, or what of it the
// page denies. Where the page leaves a choice, o tells which was made.
func (m *model) apply(st *step, o *seen) ([]*model, error) {
	if o.skipped {
		return []*model{m}, nil
	}
	m = m.clone()
	var err error
	switch st.op {
	case opLoad:
		err = m.load(st, o)
	case opSet, opDelete, opAppend, opPop, opPopFirst, opMutate, opBig, opBad, opBind, opMaxAge:
		err = m.change(st, o)
	case opSave, opCommit, opRegenerate, opEmptyID:
		return m.save(st, o)
	case opExpireNow, opDestroy:
		err = m.destroy(st, o)
	case opTouch, opReload:
		err = m.refresh(st, o)
	case opClose:
		m.reqs[st.slot] = nil
	case opRevoke:
		err = m.revoke(st, o)
	case opRevokeUser:
		err = m.revokeUser(st, o)
	case opVanish:
		if s := m.byID(o.targetID); s != nil && s.live && s.id == o.targetID {
			m.kill(s)
			s.lost = o.at
		}
	case opClear:
		err = m.clear(st, o)
	}
	if err != nil {
		return nil, err
	}
	return []*model{m}, nil
}

func (m *model) load(st *step, o *seen) error {
	r := &request{conf: o.conf, store: st.store, browser: st.browser, label: o.label, came: o.came, signed: o.signed,
		loaded: true, base: map[string]cell{}, baseList: map[string][]string{}, now: map[string]string{}, nowList: map[string][]string{}}
	m.reqs[st.slot] = r
	if len(o.cookies) > 0 {
		return disagree("load sent a cookie", "%+v", o.cookies)
	}
	if err := o.only(); err != nil {
		return err
	}
	r.maxAge0, r.maxAge = o.maxAge, o.maxAge
	fresh := func() error {
		switch {
		case o.err != "nil":
			return disagree("load", "%s; want a new session", o.err)
		case !o.isNew || o.id != "" || len(o.values)+len(o.lists) > 0:
			return disagree("load opened", "IsNew %v, ID %q, %v %v; want a new session", o.isNew, o.id, o.values, o.lists)
		case !o.loaded:
			return disagree("Loaded", "false for a new session though Redis was asked")
		case o.maxAge != 0 || o.ttlIdle != 0 || o.ttlAbs != 0:
			return disagree("new session", "MaxAge %d TTL %v %v", o.maxAge, o.ttlIdle, o.ttlAbs)
		}
		return nil
	}
	r.accepted = o.came != "" && o.conf.accepts(o.signed)
	if !r.accepted {
		return fresh()
	}
	s, old := m.target(o.came)
	if st.fault == down {
		r.loaded = false
		r.raw = o.came
		if o.err != "ErrUnavailable" || o.loaded || len(o.values)+len(o.lists) > 0 {
			return disagree("load while Redis is down", "%s, Loaded %v, %v; want ErrUnavailable and an empty session", o.err, o.loaded, o.values)
		}
		return nil
	}
	if s == nil || !s.live || old {
		if t := m.tokens[o.came]; old && t != nil {
			r.old, _ = t.known(o.at)
		}
		return fresh()
	}
	if surely, perhaps := s.expired(o.conf, o.at); surely || perhaps && o.isNew {
		if err := fresh(); err != nil {
			return err
		}
		s.maybe = true
		return nil
	}
	return m.opened(r, s, o)
}

// opened checks that a live session was loaded, and gives the request what it
// holds.
func (m *model) opened(r *request, s *stored, o *seen) error {
	switch {
	case o.err != "nil":
		return disagree("load", "%s for session %d", o.err, s.no)
	case o.isNew:
		return disagree("load lost", "session %d: a new session instead", s.no)
	case !o.loaded:
		return disagree("Loaded", "false for session %d", s.no)
	case o.id != s.id:
		return disagree("ID", "%q; want %q", o.id, s.id)
	case o.maxAge != s.maxAge:
		return disagree("MaxAge", "%d after a load of session %d; want %d", o.maxAge, s.no, s.maxAge)
	}
	if err := s.sameContent(o.conf, o.values, o.lists); err != nil {
		return err
	}
	before := s.exp
	r.due, r.exp = s.seen, s.exp
	s.use(o.conf, o.at, false)
	r.exp = union(r.exp, s.exp)
	if err := s.checkTTL(o, before); err != nil {
		return err
	}
	r.raw, r.id, r.loaded = s.raw, s.id, true
	r.hold(s, o)
	r.maxAge0, r.maxAge = o.maxAge, o.maxAge
	return nil
}

// checkTTL compares what Store.TTL says with when the session ends: before tells
// when it did until now, which counts while a load prolongs it in the background.
func (s *stored) checkTTL(o *seen, before span) error {
	ends := span{o.at.lo, o.at.hi}.plus(o.ttlIdle)
	if exp := union(s.exp, before); ends.hi < exp.lo-slack || ends.lo > exp.hi+slack {
		return disagree("TTL idle", "%v; session %d ends in %.1f to %.1f s", o.ttlIdle, s.no, float64(s.exp.lo-o.at.lo)/1000, float64(s.exp.hi-o.at.lo)/1000)
	}
	ends = span{o.at.lo, o.at.hi}.plus(o.ttlAbs)
	if ends.hi < s.abs.lo-slack || ends.lo > s.abs.hi+slack {
		return disagree("TTL absolute", "%v; session %d ends in %.1f to %.1f s", o.ttlAbs, s.no, float64(s.abs.lo-o.at.lo)/1000, float64(s.abs.hi-o.at.lo)/1000)
	}
	return nil
}

// change mirrors what the app does to the values it holds.
func (m *model) change(st *step, o *seen) error {
	r := m.reqs[st.slot]
	k := keyLabel(valueKeys[st.key%len(valueKeys)])
	l := listKeys[st.key%len(listKeys)]
	switch st.op {
	case opSet:
		r.now[k] = canon(value(st.n))
	case opBig:
		r.now[k] = "big"
	case opBad:
		r.now[k] = "bad"
	case opDelete:
		delete(r.now, k)
	case opMutate:
		r.now[k] = o.values[k]
	case opAppend:
		r.nowList[l] = append(r.nowList[l], canon(st.n))
	case opPop:
		delete(r.nowList, l)
	case opPopFirst:
		if r.nowList[l] = slices.Delete(r.nowList[l], 0, 1); len(r.nowList[l]) == 0 {
			delete(r.nowList, l)
		}
	case opBind:
		name := bindName(st.user)
		r.bind = &name
		if o.err != "nil" {
			return disagree("Bind", "%s", o.err)
		}
	case opMaxAge:
		r.maxAge = st.n
	}
	return nil
}

// same checks that a call left the values that the app holds alone.
func (r *request) same(o *seen) error {
	if !maps.Equal(r.now, o.values) {
		return disagree("held values", "%v after the call; want %v", o.values, r.now)
	}
	for k, l := range r.nowList {
		if !slices.Equal(l, o.lists[k]) {
			return disagree("held list", "%s is %v after the call; want %v", k, o.lists[k], l)
		}
	}
	for k, l := range o.lists {
		if len(r.nowList[k]) == 0 && len(l) > 0 {
			return disagree("held list", "%s is %v after the call; want none", k, l)
		}
	}
	return nil
}

// save is Save, Commit, Regenerate, and Save with an empty ID.
func (m *model) save(st *step, o *seen) ([]*model, error) {
	r := m.reqs[st.slot]
	if st.op == opEmptyID {
		r.emptied = true
	}
	d := r.difference()
	s, how, _ := m.stand(r, o.at)
	optionChanged := r.maxAge != r.maxAge0
	// The ID of a session that was not loaded may be empty all along.
	renew := st.op == opRegenerate || r.emptied && r.raw != "" && (r.loaded || o.count("Regenerated", "") > 0)
	binds := r.bind != nil && *r.bind != ""
	something := !d.empty() || binds || r.bind != nil && r.raw != "" || optionChanged && r.raw != ""
	writes := something || renew

	if err := r.same(o); err != nil && (r.loaded || r.raw == "") {
		return nil, err
	}

	// What has to be the error, one of those that apply, and what may be besides.
	may, also := map[string]bool{}, map[string]bool{}
	if r.has("big") {
		may["ErrTooLarge"] = true
	}
	if r.has("bad") {
		may["ErrUnsupported"] = true
	}
	own := false // the request gets a session of its own
	perhapsOwn := false
	inherits := ""
	untold := false // there may be nothing to do, so that nobody is asked
	switch how {
	case none:
		own = true
	case supersededOnce:
		own = true
		also["ErrSuperseded"], also["ErrSessionGone"] = true, true
	case current:
		untold = st.op == opCommit && !writes
		if _, perhaps := s.expired(r.conf, o.at); perhaps && o.err == "ErrSessionGone" && !untold {
			s.maybe = true
			return []*model{m}, nil
		}
	case gone:
		switch {
		case st.op == opCommit && !writes:
			untold = true
		case !r.loaded:
			perhapsOwn = true
			also["ErrSessionGone"], also["ErrSuperseded"] = true, m.wasSuperseded(r)
		default:
			may["ErrSessionGone"] = true
			if m.wasSuperseded(r) {
				may["ErrSuperseded"] = true // it may have been told before
			}
		}
	case superseded:
		switch {
		case renew && !r.loaded && !binds:
			perhapsOwn = true
			also["ErrSuperseded"] = true
		case renew && (binds || s.user == r.sawUser):
			own = true
			inherits = s.user
		case !renew && d.empty() && !binds && !(optionChanged && r.loaded && r.raw != ""):
			// There is at most a Bind that takes it away from nobody, or an option of
			// what could not be loaded.
			untold = true
			also["ErrSuperseded"] = something || st.op != opCommit && r.raw != ""
		case renew || something:
			may["ErrSuperseded"] = true
			if renew && r.conf.Refuse && r.conf.Max > 0 && len(m.boundTo(r.sawUser, nil)) >= r.conf.Max {
				may["ErrTooManySessions"] = true // for its own session
			}
		}
	case supersededEnded:
		switch {
		case renew:
			may["ErrSessionGone"] = true
			also["ErrTooManySessions"] = r.conf.Refuse // it looks for room first
		case something || st.op != opCommit:
			perhapsOwn = r.raw == ""
			if perhapsOwn {
				also["ErrSessionGone"], also["ErrSuperseded"] = true, true
				untold = !something
			} else if !something && !r.loaded {
				untold = true
				also["ErrSessionGone"], also["ErrSuperseded"] = true, true
			} else {
				may["ErrSessionGone"], may["ErrSuperseded"] = true, true
			}
		default:
			untold = true
		}
	}
	if st.fault == down {
		also["ErrUnavailable"] = true
	}
	if untold && len(may) == 0 && !(o.err != "nil" && also[o.err]) && !(perhapsOwn && o.count("Created", "") > 0) {
		return m.idleCommit(st, o, r, s, how)
	}
	if own && how != superseded && st.op == opCommit && d.empty() && (r.bind == nil || *r.bind == "") {
		// An empty new session is not stored.
		if o.err != "nil" {
			return nil, disagree("Commit of an empty new session", "%s", o.err)
		}
		for _, c := range o.cookies {
			if !c.deletes {
				return nil, disagree("Commit of an empty new session sent a cookie", "%+v", c)
			}
		}
		return []*model{m}, o.only()
	}
	if st.fault == down {
		may["ErrUnavailable"] = true
	}
	conflictPerhaps := false
	if how == current && r.conf.Detect && r.loaded {
		surely, perhaps := r.conflicts(d, s)
		if surely {
			may["ErrConflict"] = true
		}
		conflictPerhaps = perhaps
	}
	var evict int
	var candidates []*stored
	user := inherits
	if r.bind != nil {
		user = *r.bind
	}
	if r.conf.Refuse && (m.lost(user, o.at) || m.lost(r.sawUser, o.at)) {
		also["ErrTooManySessions"] = true
	}
	if (binds || own) && user != "" && r.conf.Max > 0 {
		var self *stored
		if how == current {
			self = s
		}
		candidates = m.boundTo(user, self)
		already := self != nil && self.user == user
		switch {
		case len(candidates) < r.conf.Max:
		case already: // it is not one more
			if o.count("Revoked", "") > 0 {
				evict = len(candidates) + 1 - r.conf.Max
			}
		case r.conf.Refuse && !binds:
			also["ErrTooManySessions"] = true
		case r.conf.Refuse:
			may["ErrTooManySessions"] = true
		case !binds && o.count("Revoked", "") == 0:
		default:
			evict = len(candidates) + 1 - r.conf.Max
		}
	}
	if o.err != "nil" {
		ok := may[o.err] || also[o.err] || conflictPerhaps && o.err == "ErrConflict"
		for _, e := range strings.Split(o.err, "+") {
			ok = ok || may[e]
		}
		if !ok {
			class := fmt.Sprintf("%s with %s", opNames[st.op], firstWord(o.err))
			return nil, disagree(class, "want %s", wanted(may))
		}
		if err := o.nothing(opNames[st.op] + " with " + firstWord(o.err)); err != nil {
			return nil, err
		}
		if how == current && !r.loaded {
			before := *s // it may have been loaded first, which prolongs it
			s.use(r.conf, o.at, false)
			s.exp, s.seen = union(s.exp, before.exp), union(s.seen, before.seen)
		}
		if err := r.same(o); err != nil {
			// It was not loaded and now is, but could not be saved.
			return []*model{m}, r.merged(s, o)
		}
		return []*model{m}, nil
	}
	if len(may) > 0 {
		return nil, disagree(opNames[st.op]+" without error", "want %s", wanted(may))
	}
	// It was written.
	var live *cookie
	for i := range o.cookies {
		if !o.cookies[i].deletes {
			live = &o.cookies[i]
		}
		if o.cookies[i].fault != "" {
			return nil, disagree("cookie", "%s", o.cookies[i].fault)
		}
	}
	if len(o.cookies) > 1 {
		return nil, disagree("cookies", "%+v", o.cookies)
	}
	if live == nil && len(o.cookies) == 1 {
		return nil, disagree(opNames[st.op]+" deleted the cookie", "%+v", o.cookies)
	}
	if perhapsOwn {
		own = true
	}
	if perhapsOwn && live == nil && d.empty() && !binds && r.raw != "" && !r.loaded && !renew {
		// There is nothing to store in a session that was not there.
		if o.loaded {
			r.raw, r.loaded, r.bind = "", true, nil
		}
		return []*model{m}, o.only()
	}
	if own && st.op != opCommit && d.empty() && !binds && live == nil && (r.ended || how == supersededOnce) {
		return []*model{m}, o.only() // there may be nothing to save
	}
	var events []event
	prior := 0
	if s != nil {
		prior = s.maxAge
	}
	if own {
		if live == nil {
			return nil, disagree(opNames[st.op]+" of a new session sent no cookie", "it has %v %v", r.now, r.nowList)
		}
		if m.tokens[live.raw] != nil {
			return nil, disagree("a new session's cookie is not new", "%s", live.raw)
		}
		if o.id == "" {
			return nil, disagree("ID", "empty after %s", opNames[st.op])
		}
		n := &stored{no: len(m.sess), id: o.id, raw: live.raw, live: true, cells: map[string]cell{}, lists: map[string][]elem{},
			created: o.at, abs: o.at.plus(r.conf.Abs), idle: [2]time.Duration{r.conf.Idle, r.conf.Idle}, label: r.label, maxAge: max(0, r.maxAge), user: user}
		other := s
		if how == supersededOnce {
			other = m.sess[m.tokens[r.came].sess]
		}
		if how == superseded || how == supersededOnce {
			// It may continue the life of the one that the request had loaded.
			n.created, n.abs = union(n.created, other.created), union(n.abs, other.abs)
			n.idle = [2]time.Duration{min(n.idle[0], other.idle[0]), max(n.idle[1], other.idle[1])}
			if !optionChanged && (live.maxAge > 0) != (n.maxAge > 0) && how == superseded {
				n.maxAge = other.maxAge
			}
		}
		m.sess = append(m.sess, n)
		m.tokens[live.raw] = &token{raw: live.raw, id: o.id, sess: n.no}
		s = n
		// A session of its own holds all that the request does.
		r.base, r.baseList, r.hidden = map[string]cell{}, map[string][]string{}, nil
		d = r.difference()
		if how == superseded {
			r.before = r.raw
			if r.before == "" {
				r.before = r.came
			}
		}
		s.use(r.conf, o.at, true)
		events = append(events, event{kind: "Created", id: o.id})
	} else {
		if optionChanged {
			s.maxAge = max(0, r.maxAge)
		}
		if renew {
			if live == nil {
				return nil, disagree(opNames[st.op]+" sent no cookie", "")
			}
			if m.tokens[live.raw] != nil {
				return nil, disagree("a new id's cookie is not new", "%s", live.raw)
			}
			if o.id == "" || o.id == s.id {
				return nil, disagree("ID", "%q after %s, %q before", o.id, opNames[st.op], s.id)
			}
			events = append(events, event{kind: "Regenerated", id: o.id, old: s.id})
			t := m.tokens[s.raw]
			t.superseded, t.since = true, o.at
			m.tokens[live.raw] = &token{raw: live.raw, id: o.id, sess: s.no}
			s.id, s.raw = o.id, live.raw
			if binds && *r.bind != s.user {
				s.created, s.abs = o.at, o.at.plus(r.conf.Abs)
			}
		} else if live != nil && live.raw != s.raw {
			return nil, disagree(opNames[st.op]+" sent another session's cookie", "%s; want %s", live.raw, s.raw)
		}
		left := *s
		left.use(r.conf, o.at, false)
		prolongs := st.op == opSave || st.op == opEmptyID || r.conf.Detect || !r.loaded || r.bind != nil ||
			o.at.hi-r.due.lo > r.conf.touchEvery(s.idle[0]).Milliseconds()-slack
		s.use(r.conf, o.at, renew || optionChanged || prolongs)
		if prolongs && !optionChanged && !renew {
			// The page says both, that Save prolongs and that it does when it is due; and
			// that one that looks for conflicts does.
			s.exp, s.seen = union(s.exp, left.exp), union(s.seen, left.seen)
		}
	}
	if o.id != s.id {
		return nil, disagree("ID", "%q after %s; want %q", o.id, opNames[st.op], s.id)
	}
	if r.bind != nil {
		s.user, s.label = *r.bind, r.label
	}
	m.write(r, d, s)

	// Those that the limit ended.
	for _, e := range o.events {
		if e.kind != "Revoked" {
			continue
		}
		victim := m.byID(e.id)
		if victim == nil || victim.id != e.id || !slices.ContainsFunc(candidates, func(c *stored) bool { return c.no == victim.no }) {
			return nil, disagree("the limit ended", "%s, which is no other session of %v", e.id, r.bind)
		}
		victim.live = false
		events = append(events, event{kind: "Revoked", id: e.id})
		evict--
	}
	if evict != 0 {
		return nil, disagree("MaxPerUser", "%d too few or many were ended of %d others with a limit of %d", evict, len(candidates), r.conf.Max)
	}
	for _, c := range candidates {
		for _, e := range candidates {
			if m.sess[c.no].live && !m.sess[e.no].live && m.sess[c.no].seen.hi+60_000+slack < m.sess[e.no].seen.lo {
				return nil, disagree("EndOldest", "session %d was used longer ago than session %d, which was ended", c.no, e.no)
			}
		}
	}
	if err := o.only(events...); err != nil {
		return nil, err
	}

	// The cookie.
	must := st.op != opCommit || own || optionChanged && (r.loaded || prior != s.maxAge) || renew || r.signed != r.conf.signs() && !r.resigned && r.loaded
	may2 := must || r.reloaded && r.signed != r.conf.signs() || !r.loaded || s.maxAge != r.maxAge0 || s.maxAge > 0
	switch {
	case live == nil && must:
		return nil, disagree(opNames[st.op]+" sent no cookie", "")
	case live != nil && !may2:
		return nil, disagree(opNames[st.op]+" sent a cookie for no reason", "%+v", *live)
	case live != nil:
		if err := m.checkCookie(live, r, s, o); err != nil {
			return nil, err
		}
		r.resigned = true
	}
	if st.op == opCommit && o.wrote != (live != nil) {
		return nil, disagree("wroteCookie", "%v", o.wrote)
	}
	if st.op == opCommit && o.needs != (live != nil) && r.loaded {
		return nil, disagree("NeedsCookie", "%v, but a cookie was sent: %v", o.needs, live != nil)
	}
	if st.op == opCommit && !o.changed && writes {
		return nil, disagree("Changed", "false, but there was something to write")
	}
	if stale := !own && !renew && s.maxAge != r.maxAge0 && r.maxAge == r.maxAge0; stale {
		// A save that is not due to prolong the session does not learn of what
		// another request made of its MaxAge.
	} else if err := s.checkTTL(o, r.knew(s, own || renew)); err != nil {
		return nil, err
	}

	// What the request holds from now on.
	r.raw, r.id, r.old, r.ended, r.emptied = s.raw, s.id, false, false, false
	rebinds := r.bind != nil
	r.bind = nil
	if own || renew || rebinds || !r.loaded { // else it does not learn what others have bound
		r.sawUser = s.user
	}
	r.due, r.exp = s.seen, union(s.exp, r.knew(s, own || renew))
	r.maxAge0, r.maxAge = o.maxAge, o.maxAge
	if err := r.same(o); err != nil {
		// It was not loaded. Either it holds what the app set, or all that is
		// stored from now on.
		if own {
			return nil, err
		}
		if err := r.merged(s, o); err != nil {
			return nil, err
		}
	}
	r.loaded = o.loaded
	return []*model{m}, nil
}

// knew returns when the request thought that its session ends: a save that does not
// prolong it does not learn that another request did.
func (r *request) knew(s *stored, anew bool) span {
	if anew || r.exp == (span{}) {
		return s.exp
	}
	return r.exp
}

// merged checks that a request that was not loaded holds what the app set and,
// besides, what is stored; it goes on as if it had been loaded now.
func (r *request) merged(s *stored, o *seen) error {
	if s == nil || !s.live {
		return disagree("held values", "%v %v of a session that is not there; want %v %v", o.values, o.lists, r.now, r.nowList)
	}
	want, lists := s.visible(r.conf)
	maps.Copy(want, r.now)
	if !maps.Equal(want, o.values) {
		return disagree("held values", "%v after the call; want %v", o.values, want)
	}
	for _, k := range listKeys {
		all := slices.Clone(lists[k])
		for _, e := range r.nowList[k] {
			if !slices.Contains(all, e) {
				all = append(all, e)
			}
		}
		if a, b := slices.Sorted(slices.Values(all)), slices.Sorted(slices.Values(o.lists[k])); !slices.Equal(a, b) {
			return disagree("held list", "%s is %v after the call; want %v", k, o.lists[k], all)
		}
	}
	r.hold(s, o)
	for k := range r.now {
		if c, ok := s.cells[k]; !ok || !r.conf.reads(c.enc) {
			delete(r.base, k)
		}
	}
	for _, k := range listKeys {
		r.baseList[k] = lists[k]
	}
	r.loaded = o.loaded
	return nil
}

// hold makes what was observed of s the request's own.
func (r *request) hold(s *stored, o *seen) {
	r.sawUser = s.user
	r.base, r.now = map[string]cell{}, map[string]string{}
	for k, v := range o.values {
		r.base[k], r.now[k] = s.cells[k], v
	}
	r.hidden = map[string]int{}
	for k, c := range s.cells {
		if !r.conf.reads(c.enc) {
			r.hidden[k] = c.ver
		}
	}
	r.baseList, r.nowList = map[string][]string{}, map[string][]string{}
	for k, l := range o.lists {
		r.baseList[k], r.nowList[k] = slices.Clone(l), slices.Clone(l)
	}
}

// write changes s as the request says.
func (m *model) write(r *request, d *difference, s *stored) {
	key := r.conf.encrypts()
	for _, k := range d.set {
		m.ver++
		s.cells[k] = cell{r.now[k], key, m.ver}
		r.base[k] = s.cells[k]
	}
	for _, k := range d.del {
		delete(s.cells, k)
		delete(r.base, k)
	}
	for k, gone := range d.removed {
		s.lists[k] = slices.DeleteFunc(s.lists[k], func(e elem) bool { return slices.Contains(gone, e.canon) })
	}
	for k, more := range d.added {
		for _, e := range more {
			i := slices.Index(r.nowList[k], e)
			s.lists[k] = append(s.lists[k], elem{e, key, slices.Clone(r.nowList[k][:i])})
		}
	}
	for k, l := range r.nowList {
		r.baseList[k] = slices.Clone(l)
	}
	for k := range r.baseList {
		if _, ok := r.nowList[k]; !ok {
			delete(r.baseList, k)
		}
	}
}

// conflicts reports whether Redis holds something else than the request loaded
// where d overwrites, deletes or removes. It is only perhaps a conflict if a value
// was changed and changed back.
func (r *request) conflicts(d *difference, s *stored) (surely, perhaps bool) {
	for _, k := range slices.Concat(d.set, d.del) {
		base, had := r.base[k]
		now, has := s.cells[k]
		ver, hidden := r.hidden[k]
		switch {
		case had && has && base.ver == now.ver, !had && !has:
		case !had && hidden && ver == now.ver: // what could not be read does not conflict
		case had && has && base.canon == now.canon: // changed, and changed back
			perhaps = true
		default:
			surely = true
		}
	}
	for k, l := range d.removed {
		for _, e := range l {
			if !slices.ContainsFunc(s.lists[k], func(x elem) bool { return x.canon == e }) {
				surely = true
			}
		}
	}
	return surely, perhaps
}

// idleCommit is a commit that has nothing to write.
func (m *model) idleCommit(st *step, o *seen, r *request, s *stored, how standing) ([]*model, error) {
	if o.err != "nil" {
		return nil, disagree("Commit of nothing", "%s", o.err)
	}
	if err := o.only(); err != nil {
		return nil, err
	}
	resign := r.loaded && r.raw != "" && r.signed != r.conf.signs() && !r.resigned
	must := resign && how == current
	if resign && how != current && len(o.cookies) > 0 {
		must = true // it can't know that the session is gone
	}
	for i := range o.cookies {
		c := &o.cookies[i]
		if !must && !(r.raw != "" && !r.loaded) && !(s != nil && s.maxAge > 0) {
			return nil, disagree("Commit of nothing sent a cookie", "%+v", *c)
		}
		if c.raw != r.raw {
			return nil, disagree("Commit of nothing sent another cookie", "%+v", *c)
		}
		if c.signed != r.conf.signs() {
			return nil, disagree("cookie signed", "with key %d; want %d", c.signed, r.conf.signs())
		}
		r.resigned = true
		must = false
	}
	if must && len(o.cookies) == 0 {
		return nil, disagree("Commit did not sign the cookie anew", "key %d; want %d", r.signed, r.conf.signs())
	}
	if o.wrote != (len(o.cookies) > 0) && st.op == opCommit {
		return nil, disagree("wroteCookie", "%v", o.wrote)
	}
	return []*model{m}, nil
}

func (m *model) checkCookie(c *cookie, r *request, s *stored, o *seen) error {
	if c.raw != s.raw {
		return disagree("cookie", "%s; want %s", c.raw, s.raw)
	}
	if c.signed != r.conf.signs() {
		return disagree("cookie signed", "with key %d; want %d", c.signed, r.conf.signs())
	}
	if s.maxAge != r.maxAge0 && r.maxAge == r.maxAge0 && r.raw == s.raw &&
		(c.maxAge == r.maxAge0 || c.maxAge > 0 && c.maxAge <= max(r.maxAge0, r.learned)) {
		return nil // a save that is not due to prolong the session sends what was loaded
	}
	if s.maxAge == 0 && c.maxAge != 0 {
		return disagree("cookie's Max-Age", "%d; want none", c.maxAge)
	}
	if s.maxAge > 0 {
		left := (s.abs.lo - o.at.hi) / 1000
		if int64(c.maxAge) > int64(s.maxAge)+2 || int64(c.maxAge) < min(int64(s.maxAge), left)-3 {
			return disagree("cookie's Max-Age", "%d; session %d has MaxAge %d and %d s to its end", c.maxAge, s.no, s.maxAge, left)
		}
	}
	return nil
}

// destroy is Destroy, and Save with a negative MaxAge.
func (m *model) destroy(st *step, o *seen) error {
	r := m.reqs[st.slot]
	s, how, _ := m.stand(r, o.at)
	name := opNames[st.op]
	for _, c := range o.cookies {
		if !c.deletes {
			return disagree(name+" sent a cookie", "%+v", c)
		}
	}
	if len(o.cookies) > 1 {
		return disagree("cookies", "%+v", o.cookies)
	}
	live := how == current || how == superseded
	known := r.raw != "" || live
	m.reqs[st.slot] = nil
	if st.fault == down && known {
		if o.err != "ErrUnavailable" {
			return disagree(name+" while Redis is down", "%s; want ErrUnavailable", o.err)
		}
		if st.op == opDestroy && len(o.cookies) == 0 {
			return disagree(name+" left the cookie", "")
		}
		return o.only()
	}
	if o.err != "nil" {
		if st.fault == down && o.err == "ErrUnavailable" && r.came != "" {
			return nil
		}
		return disagree(name, "%s", o.err)
	}
	if known && len(o.cookies) == 0 {
		return disagree(name+" left the cookie", "")
	}
	if st.op == opDestroy && !known && r.came == "" && len(o.cookies) > 0 && !r.was {
		return disagree(name+" without a session deletes a cookie", "%+v", o.cookies)
	}
	var want []event
	if live {
		surely, perhaps := s.expired(r.conf, o.at)
		n := o.count("Destroyed", s.id)
		if how == superseded {
			n = o.count("Destroyed", "")
		}
		if n >= 1 && !surely || n == 0 && !perhaps && st.fault != lostReply {
			want = append(want, event{kind: "Destroyed"})
		}
		m.ended(s, st, o)
	}
	if other, _ := m.target(r.before); other != nil && other.live && o.count("Destroyed", other.id) > 0 {
		// The session that it had loaded before it made its own ends as well.
		want = append(want, event{kind: "Destroyed", id: other.id})
		m.kill(other)
	}
	if err := o.only(want...); err != nil {
		return err
	}
	if st.op == opDestroy {
		if len(o.values)+len(o.lists) > 0 || o.id != "" {
			return disagree("Destroy left values", "%v %v, ID %q", o.values, o.lists, o.id)
		}
		// Values that are set from now on make a new session.
		m.reqs[st.slot] = &request{conf: r.conf, store: r.store, browser: r.browser, label: r.label, came: r.came, signed: r.signed, accepted: r.accepted,
			loaded: true, ended: true, was: r.raw != "" || r.was, base: map[string]cell{}, baseList: map[string][]string{}, now: map[string]string{}, nowList: map[string][]string{},
			maxAge0: o.maxAge, maxAge: o.maxAge}
	}
	return nil
}

// refresh is Touch and Reload.
func (m *model) refresh(st *step, o *seen) error {
	r := m.reqs[st.slot]
	s, how, _ := m.stand(r, o.at)
	name := opNames[st.op]
	if err := o.nothing(name); err != nil {
		return err
	}
	switch {
	case how == supersededOnce && (o.err == "ErrSuperseded" || o.err == "ErrSessionGone"):
		return r.same(o)
	case how == none || how == supersededOnce:
		if o.err != "nil" {
			return disagree(name+" of a session that is not stored", "%s", o.err)
		}
		return r.same(o)
	case st.fault == down && o.err == "ErrUnavailable":
		return r.same(o)
	case how == gone && m.wasSuperseded(r) && o.err == "ErrSuperseded":
		return r.same(o)
	case how == superseded && (st.fault != down || r.raw == "") || how == supersededEnded && o.err == "ErrSuperseded":
		if o.err != "ErrSuperseded" {
			return disagree(name, "%s; want ErrSuperseded", o.err)
		}
		return r.same(o)
	}
	want := "nil"
	lost := how != current
	if !lost {
		if surely, perhaps := s.expired(r.conf, o.at); surely || perhaps && o.err == "ErrSessionGone" {
			lost, s.maybe = true, true
		}
	}
	switch {
	case st.fault == down:
		want = "ErrUnavailable"
	case lost:
		want = "ErrSessionGone"
	}
	if o.err == "nil" && lost && !r.loaded && st.op == opTouch {
		return nil
	}
	if o.err != want {
		return disagree(name, "%s; want %s", o.err, want)
	}
	if want != "nil" {
		return r.same(o)
	}
	if st.op == opTouch {
		if err := r.same(o); err != nil {
			return err
		}
		s.use(r.conf, o.at, true)
		r.learned = s.maxAge
		return nil
	}
	r.bind, r.emptied, r.reloaded = nil, false, true
	return m.opened(r, s, o)
}

func (m *model) revoke(st *step, o *seen) error {
	s := m.byID(o.targetID)
	if st.fault == down {
		if o.err != "ErrUnavailable" || o.ok {
			return disagree("Revoke while Redis is down", "%v, %s", o.ok, o.err)
		}
		return o.only()
	}
	if o.err != "nil" {
		return disagree("Revoke", "%s", o.err)
	}
	want := s != nil && s.live && s.user == userName(st.user) && m.knows(o.targetID, o.at)
	if want {
		if _, perhaps := s.expired(o.conf, o.at); perhaps && !o.ok {
			s.maybe = true
			return o.only()
		}
	}
	if o.ok != want && !(st.fault == lostReply && want) {
		return disagree("Revoke", "%v; want %v", o.ok, want)
	}
	if !want {
		return o.only()
	}
	m.ended(s, st, o)
	if st.fault == lostReply && o.count("Revoked", "") == 0 {
		return o.only()
	}
	return o.only(event{kind: "Revoked"})
}

// knows reports whether an id is that of a session now, or still known as
// superseded.
func (m *model) knows(id string, at span) bool {
	for _, t := range m.tokens {
		if t.id == id {
			known, _ := t.known(at)
			return !t.superseded || known
		}
	}
	return false
}

func (m *model) revokeUser(st *step, o *seen) error {
	if st.fault == down {
		if o.err != "ErrUnavailable" || o.n != 0 {
			return disagree("RevokeUser while Redis is down", "%d, %s", o.n, o.err)
		}
		return o.only()
	}
	if o.err != "nil" {
		return disagree("RevokeUser", "%s", o.err)
	}
	var want []event
	optional := 0
	for _, s := range m.sess {
		if !s.live || s.user != userName(st.user) {
			continue
		}
		excepted := st.n >= 0 && o.targetID != "" && s.id == o.targetID
		if excepted {
			continue
		}
		if st.n >= 0 && o.targetID != "" && m.byID(o.targetID) == s {
			// It is known by an id it had before.
			if m.knows(o.targetID, o.at) {
				continue
			}
		}
		told := o.count("Revoked", s.id)
		if _, perhaps := s.expired(o.conf, o.at); perhaps && told == 0 {
			s.maybe = true
			continue
		}
		if st.fault == lostReply && told == 0 {
			optional++
		} else {
			want = append(want, event{kind: "Revoked", id: s.id})
		}
		m.ended(s, st, o)
	}
	if o.n < len(want) || o.n > len(want)+optional {
		return disagree("RevokeUser", "%d; want %d", o.n, len(want))
	}
	return o.only(want...)
}

func (m *model) clear(st *step, o *seen) error {
	if st.fault == down {
		if o.err != "ErrUnavailable" || o.n != 0 {
			return disagree("Clear while Redis is down", "%d, %s", o.n, o.err)
		}
		return nil
	}
	if o.err != "nil" {
		return disagree("Clear", "%s", o.err)
	}
	n := 0
	for _, s := range m.sess {
		if s.live {
			n++
		}
		m.kill(s)
	}
	if o.n != n && !m.anyMaybe() {
		return disagree("Clear", "%d; want %d", o.n, n)
	}
	m.index = map[string]int64{}
	for _, t := range m.tokens {
		t.since = span{} // it is not known as superseded either
	}
	return nil
}

func (m *model) anyMaybe() bool {
	return slices.ContainsFunc(m.sess, func(s *stored) bool { return s.maybe })
}

func wanted(may map[string]bool) string {
	if len(may) == 0 {
		return "nil"
	}
	return strings.Join(slices.Sorted(maps.Keys(may)), " or ")
}

func firstWord(s string) string {
	if i := strings.IndexByte(s, ':'); i > 0 {
		return s[:i]
	}
	return s
}

var opNames = map[opKind]string{
	opLoad: "New", opSave: "Save", opCommit: "Commit", opRegenerate: "Regenerate", opEmptyID: "Save with an empty ID", opExpireNow: "Save with a negative MaxAge",
	opDestroy: "Destroy", opTouch: "Touch", opReload: "Reload", opRevoke: "Revoke", opRevokeUser: "RevokeUser",
}
