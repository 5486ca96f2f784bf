package sessionmodel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/session"
)

const (
	cookieName = "sid"
	prefix     = "model:"
)

// player plays one history on a Redis of its own.
type player struct {
	rdb    redis.UniversalClient
	fault  *faulty
	plan   *plan
	stores [2]*session.Store
	confs  [2]*conf
	reqs   [slots]*played
	jars   [browsers][]string // cookies by the time they came; "" after a deletion
	known  []string           // one cookie value a token, the newest signature
	signed map[string]int     // which key signed a cookie
	ids    []string           // public ids in the order they were seen
	models []*model
	rng    *rand.Rand
	trace  []string
	steps  int
	tally  map[string]int
	now    func() time.Time
	settle func() // waits for what happens in the background; nil: nothing does
	pause  func(time.Duration)
	mu     sync.Mutex
}

type played struct {
	st      *session.Store
	conf    *conf
	r       *http.Request
	s       *sessions.Session
	browser int
	store   int
	label   string
}

// sink takes what the hooks are told during a call. It travels in the context.
type sink struct {
	mu     sync.Mutex
	events []event
}

type sinkKey struct{}

func (k *sink) add(e event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, e)
}

// faulty is a hook of the client that makes commands fail.
type faulty struct {
	kind  atomic.Int32
	fired atomic.Bool
}

// refusal is an answer that says that Redis can't be asked now. It is not worth a
// second try, so that a history does not wait.
type refusal string

func (r refusal) Error() string { return string(r) }
func (refusal) RedisError()     {}

const downText = refusal("MISCONF the history says that Redis is down")

func (f *faulty) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *faulty) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		switch fault(f.kind.Load()) {
		case down:
			cmd.SetErr(downText)
			return downText
		case lostReply:
			if f.fired.CompareAndSwap(false, true) {
				_ = next(ctx, cmd)
				cmd.SetErr(io.ErrUnexpectedEOF)
				return io.ErrUnexpectedEOF
			}
		}
		return next(ctx, cmd)
	}
}

func (f *faulty) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		fail := func(err error) error {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		switch fault(f.kind.Load()) {
		case down:
			return fail(downText)
		case lostReply:
			if f.fired.CompareAndSwap(false, true) {
				_ = next(ctx, cmds)
				return fail(io.ErrUnexpectedEOF)
			}
		}
		return next(ctx, cmds)
	}
}

func (f *faulty) set(k fault) {
	f.fired.Store(false)
	f.kind.Store(int32(k))
}

func keyBytes(kind string, n, size int) []byte {
	sum := sha256.Sum256([]byte(fmt.Sprint(kind, n)))
	return sum[:size]
}

// open makes a store of a configuration.
func (p *player) open(c *conf) (*session.Store, error) {
	cfg := session.Config{
		Prefix: prefix, SendUnsigned: c.Send, AcceptUnsigned: c.Unsigned, StorePlaintext: c.Store, AcceptPlaintext: c.Plain, IdleTimeout: c.Idle, AbsoluteTimeout: c.Abs, TouchEvery: c.Touch,
		MaxPerUser: c.Max, DetectConflicts: c.Detect, Timeout: time.Minute,
		Label: func(r *http.Request) string { return r.Header.Get("X-Label") },
	}
	if c.Refuse {
		cfg.AtLimit = session.RefuseNew
	}
	for _, n := range c.Keys {
		cfg.Keys = append(cfg.Keys, keyBytes("sign", n, 32))
	}
	for _, n := range c.Enc {
		cfg.EncryptionKeys = append(cfg.EncryptionKeys, keyBytes("encrypt", n, 32))
	}
	tell := func(kind string) func(context.Context, session.Event) {
		return func(ctx context.Context, e session.Event) {
			if k, ok := ctx.Value(sinkKey{}).(*sink); ok {
				k.add(event{kind, e.ID, e.OldID, e.User})
			}
		}
	}
	cfg.Hooks = session.Hooks{Created: tell("Created"), Destroyed: tell("Destroyed"), Regenerated: tell("Regenerated"), Revoked: tell("Revoked"), Adopted: tell("Adopted")}
	return session.New(p.rdb, cfg)
}

func (p *player) millis() int64 { return p.now().UnixMilli() }

// newRequest makes a request of a browser.
func newRequest(ctx context.Context, value, label string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "https://shop.example/", nil)
	if value != "" {
		r.Header.Set("Cookie", cookieName+"="+value)
	}
	r.Header.Set("X-Label", label)
	return r
}

// held returns what a session holds.
func held(s *sessions.Session) (map[string]string, map[string][]string) {
	values, lists := map[string]string{}, map[string][]string{}
	for k, v := range s.Values {
		label := keyLabel(k)
		if l, ok := v.([]any); ok && slices.Contains(listKeys, label) {
			for _, e := range l {
				lists[label] = append(lists[label], canon(e))
			}
			continue
		}
		if _, ok := v.(unregistered); ok {
			values[label] = "bad"
			continue
		}
		values[label] = canon(v)
	}
	return values, lists
}

// take reads the cookies that a call set, and gives them to the browser.
func (p *player) take(w *httptest.ResponseRecorder, browser int, c *conf) (all []cookie) {
	for _, line := range w.Header()["Set-Cookie"] {
		got, err := http.ParseSetCookie(line)
		if err != nil {
			all = append(all, cookie{fault: err.Error()})
			continue
		}
		ck := cookie{maxAge: got.MaxAge, deletes: got.MaxAge < 0 || got.Value == ""}
		if got.Name != cookieName || got.Path != "/" || !got.Secure || !got.HttpOnly || got.SameSite != http.SameSiteLaxMode || got.Domain != "" {
			ck.fault = line
		}
		p.mu.Lock()
		if ck.deletes {
			if jar := p.jars[browser]; len(jar) > 0 && jar[len(jar)-1] != "" {
				p.jars[browser] = append(jar, "")
			}
		} else {
			ck.raw, _, _ = strings.Cut(got.Value, ".")
			ck.signed = p.signer(got.Value)
			p.signed[got.Value] = ck.signed
			p.jars[browser] = append(p.jars[browser], got.Value)
			i := slices.IndexFunc(p.known, func(v string) bool { raw, _, _ := strings.Cut(v, "."); return raw == ck.raw })
			if i < 0 {
				p.known = append(p.known, got.Value)
			} else {
				p.known[i] = got.Value
			}
		}
		p.mu.Unlock()
		all = append(all, ck)
	}
	return all
}

// signer finds the key that signed a cookie: 0 none, -1 an unknown one.
func (p *player) signer(value string) int {
	raw, sig, ok := strings.Cut(value, ".")
	if !ok {
		return 0
	}
	for n := 1; n <= 9; n++ {
		if sig == signature(n, raw) {
			return n
		}
	}
	return -1
}

func (p *player) note(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id != "" && !slices.Contains(p.ids, id) {
		p.ids = append(p.ids, id)
	}
}

// do carries out one step and returns what was seen of it.
func (p *player) do(st *step, race bool) *seen {
	k := &sink{}
	ctx := context.WithValue(context.Background(), sinkKey{}, k)
	o := &seen{}
	if !race {
		f := st.fault
		if _, cluster := p.rdb.(*redis.ClusterClient); f == lostReply && (p.detects(st) || st.op == opClear || cluster) {
			f = whole // it is not sent again, on a cluster by nobody that the hook sees
			st.fault = whole
		}
		p.fault.set(f)
		defer p.fault.set(whole)
	}
	o.at.lo = p.millis()
	defer func() {
		o.at.hi = p.millis()
		o.events = k.events
	}()
	switch st.op {
	case opLoad:
		p.load(ctx, st, o)
		return o
	case opRevoke, opRevokeUser:
		st0, c := p.stores[st.store], p.confs[st.store]
		o.conf = c
		p.mu.Lock()
		if len(p.ids) > 0 && st.n >= 0 {
			o.targetID = p.ids[st.n%len(p.ids)]
			if s := p.models[0].byID(o.targetID); s != nil && s.id != o.targetID && p.unsure(o.targetID) {
				o.targetID = s.id
			}
		}
		p.mu.Unlock()
		if st.op == opRevoke {
			if o.targetID == "" {
				o.skipped = true
				return o
			}
			ok, err := st0.Revoke(ctx, userName(st.user), o.targetID)
			o.ok, o.err = ok, errorClass(err)
			return o
		}
		var except []string
		if o.targetID != "" {
			except = []string{o.targetID}
		}
		n, err := st0.RevokeUser(ctx, userName(st.user), except...)
		o.n, o.err = n, errorClass(err)
		return o
	case opVanish:
		if len(p.ids) == 0 {
			o.skipped = true
			return o
		}
		o.targetID = p.ids[st.n%len(p.ids)]
		if s := p.models[0].byID(o.targetID); s == nil || s.id != o.targetID {
			o.skipped = true
			return o
		}
		p.rdb.Del(ctx, redisKey(o.targetID))
		return o
	case opDeploy:
		s, err := p.open(st.conf)
		if err != nil {
			o.err = err.Error()
			return o
		}
		p.stores[st.store], p.confs[st.store] = s, st.conf
		return o
	case opClear:
		n, err := p.stores[st.store].Clear(ctx)
		o.n, o.err = n, errorClass(err)
		return o
	case opSleep:
		p.pause(time.Duration(st.n) * time.Second)
		return o
	}
	q := p.reqs[st.slot]
	if q == nil || p.avoided(st, race) {
		o.skipped = true
		return o
	}
	o.conf, o.label = q.conf, q.label
	q.r = q.r.WithContext(ctx)
	w := httptest.NewRecorder()
	key := valueKeys[st.key%len(valueKeys)]
	list := listKeys[st.key%len(listKeys)]
	var err error
	switch st.op {
	case opSet:
		q.s.Values[key] = value(st.n)
	case opDelete:
		delete(q.s.Values, key)
	case opMutate:
		switch v := q.s.Values[key].(type) {
		case map[string]any:
			v["changed"] = st.n
		case map[string]string:
			v["changed"] = strconv.Itoa(st.n)
		case []string:
			v[0] = strconv.Itoa(st.n)
		case []byte:
			v[0] = byte('a' + st.n%26)
		default:
			o.skipped = true
			return o
		}
	case opBig:
		q.s.Values[key] = strings.Repeat("x", 70_000+st.n)
	case opBad:
		q.s.Values[key] = unregistered{st.n}
	case opAppend:
		if list == "_flash" {
			q.s.AddFlash(st.n)
		} else {
			l, _ := q.s.Values[list].([]any)
			q.s.Values[list] = append(l, st.n)
		}
	case opPop:
		if list == "_flash" {
			q.s.Flashes()
		} else {
			delete(q.s.Values, list)
		}
	case opPopFirst:
		l, _ := q.s.Values[list].([]any)
		switch len(l) {
		case 0:
			o.skipped = true
			return o
		case 1:
			delete(q.s.Values, list)
		default:
			q.s.Values[list] = l[1:]
		}
	case opBind:
		err = q.st.Bind(q.s, bindName(st.user))
	case opMaxAge:
		q.s.Options.MaxAge = st.n
	case opSave:
		err = q.st.Save(q.r, w, q.s)
	case opCommit:
		o.changed = q.st.Changed(q.s)
		o.needs = q.st.NeedsCookie(q.s)
		o.wrote, err = q.st.Commit(w, q.r, q.s)
	case opRegenerate:
		err = q.st.Regenerate(w, q.r, q.s)
	case opEmptyID:
		q.s.ID = ""
		err = q.st.Save(q.r, w, q.s)
	case opExpireNow:
		q.s.Options.MaxAge = -1
		err = q.st.Save(q.r, w, q.s)
		p.reqs[st.slot] = nil
	case opDestroy:
		err = q.st.Destroy(w, q.r, q.s)
		if err != nil {
			p.reqs[st.slot] = nil
		}
	case opTouch:
		err = q.st.Touch(q.r, q.s)
	case opReload:
		err = q.st.Reload(q.r, q.s)
	case opClose:
		p.reqs[st.slot] = nil
		return o
	}
	o.err = errorClass(err)
	o.cookies = p.take(w, q.browser, q.conf)
	o.look(q)
	p.note(o.id)
	return o
}

// unsure reports whether Redis is about to forget a superseded id.
func (p *player) unsure(id string) bool {
	now := p.millis()
	for _, t := range p.models[0].tokens {
		if t.id == id && t.superseded {
			_, sure := t.known(span{now, now})
			return !sure
		}
	}
	return false
}

// avoided reports whether a step is left out, since the model does not know what is
// right then.
func (p *player) avoided(st *step, race bool) bool {
	if asksNobody(st.op) {
		return false
	}
	r := p.models[0].reqs[st.slot]
	now := p.millis()
	_, _, sure := p.models[0].stand(r, span{now, now})
	if !sure {
		return true // Redis is about to forget a superseded id
	}
	if race && !r.loaded && (st.op == opRegenerate || st.op == opEmptyID || st.op == opSave || st.op == opCommit) {
		return true // it loads first, and the other call may come in between
	}
	return false
}

// blurred reports whether two calls at once may end otherwise than in either order. The
// limit acts after the save, so that a save may find what RevokeUser has not ended yet, or
// miss what the other save of the two has ended.
func (p *player) blurred(a, b *step) bool {
	limited := func(st *step) bool {
		switch st.op {
		case opSave, opCommit, opRegenerate, opEmptyID:
			q := p.reqs[st.slot]
			return q != nil && q.conf.Max > 0 && !q.conf.Refuse
		}
		return false
	}
	other := func(st *step) bool { return st.op == opRevokeUser || limited(st) && p.superseded(st) }
	return limited(a) && other(b) || limited(b) && other(a)
}

// superseded reports whether a step is of a request whose id is superseded.
func (p *player) superseded(st *step) bool {
	now := p.millis()
	_, how, _ := p.models[0].stand(p.models[0].reqs[st.slot], span{now, now})
	return how == superseded
}

func (p *player) detects(st *step) bool {
	q := p.reqs[st.slot]
	switch st.op {
	case opSave, opCommit, opRegenerate, opEmptyID, opExpireNow:
		return q != nil && q.conf.Detect
	}
	return false
}

// look notes what a request holds.
func (o *seen) look(q *played) {
	o.isNew, o.loaded, o.id = q.s.IsNew, session.Loaded(q.s), session.ID(q.s)
	o.values, o.lists = held(q.s)
	o.maxAge = q.s.Options.MaxAge
	o.ttlIdle, o.ttlAbs = q.st.TTL(q.s)
}

func (p *player) load(ctx context.Context, st *step, o *seen) {
	q := &played{st: p.stores[st.store], conf: p.confs[st.store], browser: st.browser, store: st.store}
	p.mu.Lock() // another call may be given a cookie at the same time
	q.label = fmt.Sprint("device ", p.steps)
	var value string
	jar := p.jars[st.browser]
	switch {
	case st.back == -2:
		o.made = true
		sum := sha256.Sum256([]byte(fmt.Sprint("made up", p.steps)))
		value = base64.RawURLEncoding.EncodeToString(append(sum[:2:2], sum[:]...))
	case st.back >= 0 && len(jar) > st.back:
		value = jar[len(jar)-1-st.back]
	}
	o.conf, o.label = q.conf, q.label
	o.came, _, _ = strings.Cut(value, ".")
	o.signed = p.signed[value]
	p.mu.Unlock()
	q.r = newRequest(ctx, value, q.label)
	s, err := q.st.New(q.r, cookieName)
	q.s = s
	o.err = errorClass(err)
	o.look(q)
	p.reqs[st.slot] = q
}

func redisKey(id string) string {
	tag, hash, _ := strings.Cut(id, ".")
	return prefix + "{" + tag + "}:" + hash
}

func indexKeys(user string) []string {
	sum := sha256.Sum256([]byte(user))
	return []string{prefix + "user:{" + base64.RawURLEncoding.EncodeToString(sum[:]) + "}", prefix + "user:{" + hex.EncodeToString(sum[:]) + "}"}
}

// view is what a cookie led to.
type view struct {
	seen
	value string
	raw   string
	conf  *conf
}

// snapshot is the state that the stores show after a step.
type snapshot struct {
	views   []view
	users   map[int][]session.Info
	all     []string // ids; nil: not asked
	length  int
	at      span
	ttls    map[string]time.Duration // by id
	indexes map[string]time.Duration
	err     error
}

// look asks for everything. In between it leaves out cookies that have been dead
// for a while, and All.
func (p *player) look(full bool) *snapshot {
	ctx := context.Background()
	sn := &snapshot{users: map[int][]session.Info{}, ttls: map[string]time.Duration{}, indexes: map[string]time.Duration{}}
	sn.at.lo = p.millis()
	m := p.models[0]
	// A load prolongs a session, so where time passes not every step is followed by
	// loads.
	known := p.known
	if p.plan.passes && !full && p.rng.IntN(3) > 0 {
		known = nil
	}
	for i, value := range known {
		raw, _, _ := strings.Cut(value, ".")
		if s, _ := m.target(raw); !full && (s == nil || !s.live) && p.rng.IntN(6) != 0 {
			continue
		}
		for j := range p.stores {
			if !full && (p.steps+i+j)%2 == 0 {
				continue
			}
			if full && j == 1 && p.confs[0] == p.confs[1] {
				continue
			}
			v := view{value: value, raw: raw, conf: p.confs[j]}
			v.signed = p.signed[value]
			q := &played{st: p.stores[j], conf: p.confs[j], r: newRequest(ctx, value, "")}
			v.at.lo = p.millis()
			s, err := q.st.New(q.r, cookieName)
			v.at.hi = p.millis()
			q.s = s
			v.err = errorClass(err)
			v.seen.look(q)
			if p.settle != nil {
				p.settle()
			}
			sn.views = append(sn.views, v)
		}
	}
	if p.settle != nil {
		p.settle() // Sessions does not wait for what loads prolong
	}
	for u := range users {
		if !full && (p.steps+u)%2 == 0 && len(m.boundTo(userName(u), nil)) == 0 {
			continue
		}
		infos, err := p.stores[p.steps%2].Sessions(ctx, userName(u))
		if err != nil {
			sn.err = disagree("Sessions", "%s: %v", userName(u), err)
			return sn
		}
		sn.users[u] = infos
	}
	pipe := p.rdb.Pipeline()
	ttls := map[string]*redis.DurationCmd{}
	for _, s := range m.sess {
		if s.live {
			ttls[s.id] = pipe.PTTL(ctx, redisKey(s.id))
		}
	}
	idx := map[string][]*redis.DurationCmd{}
	for u := range users {
		for _, k := range indexKeys(userName(u)) {
			idx[userName(u)] = append(idx[userName(u)], pipe.PTTL(ctx, k))
		}
	}
	if p.settle != nil {
		p.settle()
	}
	if _, err := pipe.Exec(ctx); err != nil {
		sn.err = err
		return sn
	}
	for id, c := range ttls {
		sn.ttls[id] = c.Val()
	}
	for u, cs := range idx {
		sn.indexes[u] = max(cs[0].Val(), cs[1].Val())
	}
	if full {
		sn.all = []string{}
		for info, err := range p.stores[p.steps%2].All(ctx) {
			if err != nil {
				sn.err = disagree("All", "%v", err)
				return sn
			}
			sn.all = append(sn.all, info.ID)
		}
		n, err := p.stores[p.steps%2].Len(ctx)
		if err != nil {
			sn.err = disagree("Len", "%v", err)
			return sn
		}
		sn.length = n
	}
	sn.at.hi = p.millis()
	return sn
}

// agree compares a snapshot with the model, and lets the model learn what it left
// open.
func (m *model) agree(sn *snapshot) error {
	if sn.err != nil {
		return sn.err
	}
	for i := range sn.views {
		v := &sn.views[i]
		s, old := m.target(v.raw)
		reads := v.conf.accepts(v.signed)
		gone := s == nil || !s.live || old || !reads
		if !gone {
			surely, perhaps := s.expired(v.conf, v.at)
			if s.maybe && v.isNew || surely || perhaps && v.isNew {
				s.maybe, gone = true, true
				if sn.ttls[s.id] < 0 {
					s.live = false
				}
			}
		}
		if v.err != "nil" {
			return disagree("load", "%s", v.err)
		}
		if gone {
			if !v.isNew || v.id != "" || len(v.values)+len(v.lists) > 0 {
				why := "it is nobody's"
				switch {
				case !reads:
					why = "its signature is not to be believed"
				case old:
					why = fmt.Sprintf("session %d has a new id", s.no)
				case s != nil:
					why = fmt.Sprintf("session %d has ended", s.no)
				}
				return disagree("load opened", "a cookie opens %v %v (%s)", v.values, v.lists, why)
			}
			continue
		}
		if v.isNew {
			return disagree("load lost", "the cookie of session %d opens nothing", s.no)
		}
		if v.id != s.id || v.maxAge != s.maxAge || !v.loaded {
			return disagree("load", "session %d has ID %s MaxAge %d Loaded %v; want %s %d", s.no, v.id, v.maxAge, v.loaded, s.id, s.maxAge)
		}
		if err := s.sameContent(v.conf, v.values, v.lists); err != nil {
			return fmt.Errorf("session %d, read by a store with %v: %w", s.no, v.conf, err)
		}
		before := s.exp
		s.use(v.conf, v.at, false)
		if err := s.checkTTL(&v.seen, before); err != nil {
			return err
		}
	}
	for _, s := range m.sess {
		ttl, asked := sn.ttls[s.id]
		if !s.live || !asked {
			continue
		}
		if ttl == -2 {
			if s.exp.lo-slack < sn.at.hi {
				s.live = false
				continue
			}
			return disagree("key is gone", "of session %d", s.no)
		}
		if ttl == -1 {
			return disagree("key without TTL", "of session %d", s.no)
		}
		ends := sn.at.plus(ttl)
		if ends.hi < s.exp.lo-slack || ends.lo > s.exp.hi+slack {
			return disagree("PTTL", "of session %d is %v; want %.1f to %.1f s", s.no, ttl, float64(s.exp.lo-sn.at.lo)/1000, float64(s.exp.hi-sn.at.lo)/1000)
		}
		s.maybe = false
	}
	for u, infos := range sn.users {
		if err := m.listed(userName(u), infos, sn); err != nil {
			return err
		}
	}
	for u, ttl := range sn.indexes {
		bound := m.boundTo(u, nil)
		if ttl == -1 {
			return disagree("key without TTL", "the index of %s", u)
		}
		if ttl == -2 {
			if len(bound) > 0 && !m.anyMaybe() {
				return disagree("index is gone", "of %s, who has %d sessions", u, len(bound))
			}
			delete(m.index, u)
			continue
		}
		end := sn.at.plus(ttl)
		for _, s := range bound {
			if end.hi < s.exp.lo-slack {
				return disagree("index ends early", "%v before session %d of %s", time.Duration(s.exp.lo-end.hi)*time.Millisecond, s.no, u)
			}
		}
		if was := m.index[u]; end.hi < was-slack {
			return disagree("TTL of an index fell", "by %v, of %s", time.Duration(was-end.hi)*time.Millisecond, u)
		}
		m.index[u] = max(m.index[u], end.lo)
	}
	if sn.all != nil {
		var want []string
		for _, s := range m.sess {
			if s.live {
				want = append(want, s.id)
			}
		}
		slices.Sort(want)
		slices.Sort(sn.all)
		if got := slices.Compact(sn.all); !slices.Equal(got, want) {
			return disagree("All", "%d sessions; want %d", len(got), len(want))
		}
		if sn.length != len(want) {
			return disagree("Len", "%d; want %d", sn.length, len(want))
		}
	}
	return nil
}

// listed checks what Sessions says.
func (m *model) listed(user string, infos []session.Info, sn *snapshot) error {
	want := m.boundTo(user, nil)
	text := func() string {
		var w, g []string
		for _, s := range want {
			w = append(w, fmt.Sprintf("%d %s", s.no, s.id))
		}
		for _, i := range infos {
			no := -1
			if s := m.byID(i.ID); s != nil {
				no = s.no
			}
			g = append(g, fmt.Sprintf("%d %s", no, i.ID))
		}
		return fmt.Sprintf("Sessions(%s) are %v; want %v", user, g, w)
	}
	if len(infos) != len(want) {
		return disagree("Sessions", "%s", text())
	}
	for i, info := range infos {
		s := m.byID(info.ID)
		if s == nil || s.id != info.ID || !slices.Contains(want, s) {
			return disagree("Sessions", "%s", text())
		}
		switch {
		case info.User != user:
			return disagree("Info.User", "%q; want %q", info.User, user)
		case info.Label != s.label:
			return disagree("Info.Label", "%q of session %d; want %q", info.Label, s.no, s.label)
		case !s.created.near(info.Created.UnixMilli()):
			return disagree("Info.Created", "of session %d is off by %v", s.no, time.Duration(info.Created.UnixMilli()-s.created.lo)*time.Millisecond)
		case !s.exp.near(info.Expires.UnixMilli()):
			return disagree("Info.Expires", "of session %d is off by %v", s.no, time.Duration(info.Expires.UnixMilli()-s.exp.lo)*time.Millisecond)
		case i > 0 && info.LastSeen.After(infos[i-1].LastSeen):
			return disagree("order of Sessions", "%v after %v", infos[i-1].LastSeen, info.LastSeen)
		}
	}
	return nil
}

// play plays the history and returns the first disagreement.
func (p *player) play() error {
	p.rng = rand.New(rand.NewPCG(p.plan.seed, 3))
	p.models = []*model{newModel()}
	p.signed, p.tally = map[string]int{}, map[string]int{}
	for i, c := range p.plan.stores {
		s, err := p.open(c)
		if err != nil {
			return err
		}
		p.stores[i], p.confs[i] = s, c
		if i == 1 && p.plan.stores[0] == c {
			p.stores[1] = s
			if s2, err := p.open(c); err == nil {
				p.stores[1] = s2 // another process
			}
		}
	}
	for i := range p.plan.steps {
		st := p.plan.steps[i] // a copy: do may take a fault back
		if err := p.one(&st); err != nil {
			p.trace = append(p.trace, fmt.Sprintf("    DISAGREES: %v", err))
			return err
		}
	}
	return p.end()
}

// one plays one step and compares.
func (p *player) one(st *step) error {
	p.steps++
	var next []*model
	var errs []error
	if st.op == opRace {
		a, b := st.pair[0], st.pair[1]
		if p.blurred(&a, &b) {
			return nil
		}
		var oa, ob *seen
		var wg sync.WaitGroup
		wg.Go(func() { oa = p.do(&a, true) })
		wg.Go(func() { ob = p.do(&b, true) })
		wg.Wait()
		if oa.skipped && ob.skipped {
			return nil
		}
		for _, m := range p.models {
			for _, order := range [][2]int{{0, 1}, {1, 0}} {
				sts, os := []*step{&a, &b}, []*seen{oa, ob}
				first, err := m.apply(sts[order[0]], os[order[0]])
				if err != nil {
					errs = append(errs, err)
					continue
				}
				for _, m := range first {
					second, err := m.apply(sts[order[1]], os[order[1]])
					if err != nil {
						errs = append(errs, err)
					}
					next = append(next, second...)
				}
			}
		}
		p.log(st, oa, ob)
		p.count(&a, oa, "race ")
		p.count(&b, ob, "race ")
	} else {
		o := p.do(st, false)
		if o.skipped {
			return nil
		}
		if st.op == opDeploy && o.err != "" {
			return errors.New("deploy: " + o.err)
		}
		for _, m := range p.models {
			ms, err := m.apply(st, o)
			if err != nil {
				errs = append(errs, err)
			}
			next = append(next, ms...)
		}
		p.log(st, o)
		p.count(st, o, "")
	}
	if len(next) == 0 {
		return errs[0]
	}
	if asksNobody(st.op) {
		p.models = next
		return nil
	}
	p.models = next
	if p.settle != nil {
		p.settle()
	}
	sn := p.look(p.steps%10 == 0 && st.op != opRace)
	return p.filter(sn)
}

// filter keeps the models that agree with the snapshot.
func (p *player) filter(sn *snapshot) error {
	var keep []*model
	var first error
	for _, m := range p.models {
		if err := m.agree(sn); err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		keep = append(keep, m)
	}
	if len(keep) == 0 {
		return first
	}
	p.models = keep
	return nil
}

// count notes what kinds of situations the histories reach.
func (p *player) count(st *step, o *seen, how string) {
	if opNames[st.op] == "" || o.skipped {
		return
	}
	name := how + opNames[st.op] + " -> " + firstWord(o.err)
	if st.op == opLoad && o.err == "nil" && o.isNew {
		name += " new"
	}
	p.tally[name]++
	m := p.models[0]
	for _, e := range o.events {
		p.tally[name+", "+e.kind]++
	}
	if st.op == opLoad || st.op == opRevoke || st.op == opRevokeUser || m.reqs[st.slot] == nil {
		return
	}
	r := m.reqs[st.slot]
	s, old := m.target(r.raw)
	switch {
	case old || r.old:
		p.tally[name+", id superseded"]++
	case s == nil && !r.loaded:
		p.tally[name+", not loaded, unknown"]++
	case s == nil:
	case !s.live:
		p.tally[name+", gone"]++
	case !r.loaded:
		p.tally[name+", not loaded"]++
	default:
		d := r.difference()
		if surely, _ := r.conflicts(d, s); surely {
			p.tally[name+", over another's change"]++
			if len(d.removed) > 0 {
				p.tally[name+", over another's change, list"]++
			}
		}
		if r.sawUser != s.user {
			p.tally[name+", another bound it"]++
		}
	}
}

func asksNobody(op opKind) bool {
	switch op {
	case opSet, opDelete, opAppend, opPop, opPopFirst, opMutate, opBig, opBad, opBind, opMaxAge, opClose:
		return true
	}
	return false
}

func (p *player) log(st *step, seen ...*seen) {
	line := st.String()
	for _, o := range seen {
		if o.err != "" && !(asksNobody(st.op) && o.err == "nil") {
			line += "  -> " + o.err
		}
		if st.op == opLoad || st.op == opRace {
			if m := p.models[0]; o.id != "" {
				if s := m.byID(o.id); s != nil {
					line += fmt.Sprintf(" (session %d %v %v)", s.no, o.values, o.lists)
				}
			}
		}
		if st.op == opRevoke {
			line += fmt.Sprintf(" %v", o.ok)
		}
		if st.op == opRevokeUser || st.op == opClear {
			line += fmt.Sprintf(" %d", o.n)
		}
		if o.targetID != "" {
			no := -1
			if s := p.models[0].byID(o.targetID); s != nil {
				no = s.no
			}
			line += fmt.Sprintf(" [the id is of session %d]", no)
		}
		for _, c := range o.cookies {
			switch {
			case c.deletes:
				line += " deletes the cookie"
			case c.maxAge != 0:
				line += fmt.Sprintf(" cookie, Max-Age %d", c.maxAge)
			default:
				line += " cookie"
			}
		}
		for _, e := range o.events {
			line += " " + e.kind
		}
	}
	p.trace = append(p.trace, line)
}

// end compares everything once more, tries cookies under another name, and looks
// for keys without an expiry.
func (p *player) end() error {
	ctx := context.Background()
	if err := p.filter(p.look(true)); err != nil {
		return err
	}
	for _, value := range p.known {
		r := httptest.NewRequest(http.MethodGet, "https://shop.example/", nil)
		r.Header.Set("Cookie", "other="+value)
		s, err := p.stores[0].New(r, "other")
		if err != nil || !s.IsNew || len(s.Values) > 0 {
			return disagree("load opened", "a cookie under another name: %v, %v", s.Values, err)
		}
	}
	it := p.rdb.Scan(ctx, 0, "*", 1000).Iterator()
	var keys []string
	for it.Next(ctx) {
		keys = append(keys, it.Val())
	}
	if err := it.Err(); err != nil {
		return err
	}
	pipe := p.rdb.Pipeline()
	for _, k := range keys {
		pipe.PTTL(ctx, k)
	}
	cmds, err := pipe.Exec(ctx)
	if err != nil && len(keys) > 0 {
		return err
	}
	for i, c := range cmds {
		if ttl := c.(*redis.DurationCmd).Val(); ttl == -1 {
			return disagree("key without TTL", "%s", keys[i])
		}
	}
	for _, v := range p.known {
		raw, _, _ := strings.Cut(v, ".")
		b, err := base64.RawURLEncoding.DecodeString(raw)
		if err != nil || len(b) != 34 {
			return disagree("cookie", "%s is not base64url of 34 bytes", raw)
		}
		for _, k := range keys {
			if strings.Contains(k, raw) || bytes.Contains([]byte(k), b[2:]) {
				return disagree("key holds the secret", "%s", k)
			}
		}
	}
	return nil
}
