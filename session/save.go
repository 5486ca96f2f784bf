package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/sessions"
)

// saveKind is what a save does with a session that did not change.
type saveKind uint8

const (
	saveChanges saveKind = iota // nothing
	saveAlways                  // prolong it, send the cookie
	saveAnew                    // give it a new id
)

// save is behind Save, Commit and Regenerate.
func (st *Store) save(w http.ResponseWriter, r *http.Request, s *sessions.Session, kind saveKind) (wrote bool, err error) {
	x := st.own(s)
	if n := s.Name(); n != "" {
		x.name = n
	}
	opts := x.options(s)
	if kind == saveChanges && st.settled(x, s, opts) {
		st.n.unchanged.Add(1)
		return x.resend && x.saved == stored && st.sendCookie(w, x, opts), nil
	}
	if st.deletes(opts) {
		return st.destroy(writeContext(r), w, r, s, x, opts)
	}
	ctx := writeContext(r)
	if x.saved == unasked {
		if err := st.catchUp(ctx, s, x); err != nil {
			return false, err
		}
		opts = x.options(s)
		if kind == saveChanges && x.saved != stored && st.settled(x, s, opts) {
			return false, nil // an option of a session that there is not
		}
	}
	if x.saved == renewed {
		if kind == saveAnew {
			return st.divide(ctx, w, r, s, x, opts, x.next)
		}
		if st.settled(x, s, opts) {
			return false, nil
		}
		return false, st.gone(replySuperseded)
	}
	if x.saved != stored {
		return st.create(ctx, w, r, s, x, opts)
	}
	if s.ID == "" {
		kind = saveAnew
	}
	if x.blob != nil {
		return st.saveBlob(ctx, w, r, s, x, opts, kind)
	}
	for range maxMerges {
		if wrote, err = st.saveHash(ctx, w, r, s, x, opts, kind); err != errBond {
			return wrote, err
		}
	}
	return false, ErrConflict
}

// errBond says that the bond was another one, which x has now.
var errBond = errors.New("session: another request has given the session a bond")

// saveHash saves a stored session. Its error may be errBond.
func (st *Store) saveHash(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options, kind saveKind) (wrote bool, err error) {
	was := x.bond
	defer func() {
		if !onMaster(err) && err != errBond {
			x.bond = was
		}
	}()
	var c changes
	switch {
	case kind == saveAnew && (st.seals() || x.bond != nil):
		c, err = st.rebond(x, s, true)
	case st.seals() && x.sealing != bonded: // what is unknown is of no use without the key
		if c, err = st.rebond(x, s, false); err == nil && c.none() {
			x.bond, c = was, changes{bytes: x.bytes, other: x.other}
		}
	default:
		c, err = st.diff(x, s, x.tok.tag())
	}
	if err != nil {
		return false, err
	}
	if kind == saveChanges && c.none() && x.bind == nil && opts == x.was {
		st.n.unchanged.Add(1)
		return x.resend && st.sendCookie(w, x, opts), nil
	}
	return st.update(ctx, w, r, s, x, opts, kind, c)
}

// settled reports whether nothing of s is to be written. It finds out for most
// sessions, and takes the others for changed.
func (st *Store) settled(x *state, s *sessions.Session, opts sessions.Options) bool {
	switch {
	case st.deletes(opts):
		return x.saved == absent || x.saved == destroyed
	case x.saved != stored: // one that is superseded has nothing to write either
		if x.saved == unasked && (x.bind != nil || opts != x.was) {
			return false
		}
		return len(s.Values) == 0 && (x.bind == nil || *x.bind == "")
	}
	return x.blob == nil && s.ID != "" && x.bind == nil && opts == x.was && x.unchanged(s)
}

// update writes the changes of a stored session, under a new id if it gets one.
func (st *Store) update(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options, kind saveKind, c changes) (bool, error) {
	left, at, lasts := st.lasts(x, opts)
	cookie := kind != saveChanges || opts != x.was || x.resend || !lasts && opts.MaxAge > 0
	tok := x.tok
	if kind == saveAnew {
		var err error
		if tok, err = st.newToken(x.name, tok.tag()); err != nil {
			return false, err
		}
	}
	if err := st.guard(x, tok, opts, cookie, &c); err != nil {
		return false, err
	}
	args := st.argsFor(modeUpdate, x, opts, &c)
	if kind == saveAnew {
		args.mode = modeRegenerate
	}
	user := st.bindArgs(r, x, &args)
	// The field goes with the id that it is authenticated with, also where new values are
	// stored in plain: those that are encrypted need it.
	if x.bond != nil && (kind == saveAnew || st.seals() && (x.sealing != bonded || x.bond.stale)) {
		x.bond.stale = false
		args.bond = st.bondField(x.bond, x.name, tok.id).held
	}
	args.bondWas, args.checkBond = x.held, args.bond != "" || kind == saveAnew && st.sealers != nil
	var reply saveReply
	var err error
	switch {
	case lasts && kind != saveAnew && x.bind == nil && len(args.expect) == 0 && !args.checkBond:
		reply.status, err = st.runChange(ctx, opName(kind), tok.key, &args)
		reply.created, reply.absolute, reply.maxAge, reply.ttl, reply.at = x.meta.created, x.meta.absolute, x.meta.maxAge, left, at
	case kind == saveAnew:
		reply, user, err = st.rename(ctx, tok, x, &args, user)
	default:
		entered := ""
		if x.bind != nil || args.raise && args.maxAge > 0 { // the index must live as long
			entered = user
		}
		reply, err = st.runIndexed(ctx, opName(kind), tok, x.tok, x.tok.key, &args, entered)
	}
	if !onMaster(err) {
		return false, err
	}
	switch reply.status {
	case replyGone:
		return false, st.gone(reply.status)
	case replySuperseded:
		if kind == saveAnew {
			return st.divide(ctx, w, r, s, x, opts, reply.next)
		}
		return false, st.gone(reply.status)
	case replyConflict:
		return false, ErrConflict
	case replyBond:
		st.openBond(x, x.tok.id, reply.bond)
		return false, errBond
	}
	if args.checkBond && args.bond != "" {
		x.held = args.bond
	}
	old := x.tok
	x.tok, x.user, x.bind = tok, user, nil
	opts = st.done(s, x, opts, &c, reply)
	st.n.saved.Add(1)
	if kind == saveAnew {
		st.n.regenerated.Add(1)
		tell(st.cfg.Hooks.Regenerated, ctx, Event{Name: x.name, ID: tok.id, OldID: old.id, User: user})
	}
	return cookie && st.sendCookie(w, x, opts), err
}

// rename runs save.lua for a new id. The index has to know the user that the session is
// bound to in Redis, which another request may have changed since this one loaded it.
func (st *Store) rename(ctx context.Context, tok token, x *state, args *saveArgs, user string) (saveReply, string, error) {
	for range maxMerges {
		if x.bind == nil {
			args.who = "=" + user
		}
		reply, err := st.runIndexed(ctx, "regenerate", tok, x.tok, x.tok.key, args, user)
		if !onMaster(err) || reply.status != replyOthers {
			return reply, user, err
		}
		user = reply.user
	}
	return saveReply{status: replyConflict}, user, nil
}

// divide gives a request whose session got a new id by another one a session of its own,
// with what this request holds: such as the second of two logins at once. It needs the
// other's session to be there still, so that nothing comes back that was ended, and to be
// bound to the same user, unless this request binds it.
func (st *Store) divide(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options, next string) (bool, error) {
	tok, err := st.newToken(x.name, x.tok.tag())
	if err != nil {
		return false, err
	}
	y := &state{home: x.home, name: x.name, tok: tok, was: x.was, bind: x.bind}
	if st.seals() {
		y.bond = y.newBond()
	}
	c, err := st.diff(y, s, tok.tag())
	if err != nil {
		return false, err
	}
	c.expect = nil
	if err := st.guard(y, tok, opts, true, &c); err != nil {
		return false, err
	}
	args := st.argsFor(modeDivide, x, opts, &c)
	if args.maxAge == keepMaxAge { // of what this request holds
		if args.maxAge = x.meta.maxAge; x.saved != stored {
			args.maxAge = st.ownMaxAge(opts)
		}
	}
	user := st.bindArgs(r, x, &args)
	if y.bond != nil {
		args.bond = st.bondField(y.bond, y.name, tok.id).held
		y.held = args.bond
	}
	if user == "" || x.bind == nil {
		args.who = "=" + x.user
		if user != "" {
			args.set = append(args.set, field{name: fieldUser, held: user})
		}
	}
	if user == "" || x.bind == nil { // else bindArgs has set it
		if label := st.label(r); label != "" {
			args.set = append(args.set, field{name: fieldLabel, held: label})
		}
	}
	var reply saveReply
	for range maxHops {
		reply, err = st.runIndexed(ctx, "regenerate", tok, token{}, st.keyOfID(x.tok.tag()+"."+next), &args, user)
		if !onMaster(err) {
			return false, err
		}
		if reply.status != replySuperseded {
			break
		}
		next = reply.next
	}
	if reply.status == replyOthers {
		reply.status = replySuperseded
	}
	if reply.status != replyDone {
		if user != "" {
			st.background(func() { st.leaveIndex(ctx, user, tok.id) })
		}
		return false, st.gone(reply.status)
	}
	*x = *y
	x.user, x.bind = user, nil
	opts = st.done(s, x, opts, &c, reply)
	s.IsNew = false
	st.n.created.Add(1)
	tell(st.cfg.Hooks.Created, ctx, Event{Name: x.name, ID: tok.id, User: user})
	return st.sendCookie(w, x, opts), err
}

// maxHops is how many new ids in a row are followed from a superseded one.
const maxHops = 32

// lasts reports whether a loaded session needs no prolonging yet, by the throttle
// that a load obeys too, and how much is left of it at which time.
func (st *Store) lasts(x *state, opts sessions.Options) (left time.Duration, at time.Time, ok bool) {
	if x.meta.idle <= 0 || x.ttl <= 0 || opts.MaxAge != x.was.MaxAge {
		return 0, at, false
	}
	at = st.now(x.tok.key)
	left = x.ttl - at.Sub(x.at)
	expired, due := st.standing(x.meta, left, at)
	return left, at, left > 0 && !expired && !due
}

func opName(kind saveKind) string {
	if kind == saveAnew {
		return "regenerate"
	}
	return "save"
}

// create stores a session that Redis does not have.
func (st *Store) create(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options) (bool, error) {
	was := *x
	x.base, x.other, x.lost, x.bytes, x.user, x.blob, x.bond, x.held = nil, nil, nil, 0, "", nil, nil, ""
	if st.seals() {
		x.bond = x.newBond()
	}
	wrote, err := st.createNew(ctx, w, r, s, x, opts)
	if !onMaster(err) {
		x.base, x.other, x.lost, x.bytes, x.user, x.blob, x.bond, x.held = was.base, was.other, was.lost, was.bytes, was.user, was.blob, was.bond, was.held
	}
	return wrote, err
}

func (st *Store) createNew(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options) (bool, error) {
	tok, err := st.tokenFor(x.name)
	if err != nil {
		return false, err
	}
	if compat := st.compat(); compat != nil && compat.sideBySide(now()) {
		return st.createBlob(ctx, w, s, x, opts, tok)
	}
	c, err := st.diff(x, s, tok.tag())
	if err != nil {
		return false, err
	}
	if err := st.guard(x, tok, opts, true, &c); err != nil {
		return false, err
	}
	c.expect = nil
	args := st.argsFor(modeCreate, x, opts, &c)
	if tok.foreign {
		args.mode = modeAdopt // an id that the app chose must not be in use
	}
	user := st.bindArgs(r, x, &args)
	if args.who = ""; x.bond != nil {
		args.bond = st.bondField(x.bond, x.name, tok.id).held
		x.held = args.bond
	}
	if user == "" { // else bindArgs has set it
		if label := st.label(r); label != "" {
			args.set = append(args.set, field{name: fieldLabel, held: label})
		}
	}
	reply, err := st.runIndexed(ctx, "create", tok, token{}, "", &args, user)
	if !onMaster(err) {
		return false, err
	}
	if reply.status != replyDone {
		return false, ErrConflict
	}
	x.tok, x.user, x.bind = tok, user, nil
	opts = st.done(s, x, opts, &c, reply)
	st.n.created.Add(1)
	tell(st.cfg.Hooks.Created, ctx, Event{Name: x.name, ID: tok.id, User: user})
	st.dropCarried(ctx, r, x)
	return st.sendCookie(w, x, opts), err
}

// tokenFor returns a token for a new session: the app's KeyGen's, if there is one.
func (st *Store) tokenFor(name string) (token, error) {
	if compat := st.compat(); compat != nil && compat.KeyGen != nil {
		id, err := compat.KeyGen()
		if err != nil {
			return token{}, fmt.Errorf("session: KeyGen: %w", err)
		}
		if len(id) < 16 || len(id) > maxForeignToken || !validCookieValue(id) {
			return token{}, fmt.Errorf("session: KeyGen returned %d bytes; an id needs 16 to %d that a cookie can hold", len(id), maxForeignToken)
		}
		return st.foreignToken(name, id), nil
	}
	return st.newToken(name, "")
}

// argsFor returns what save.lua needs to write c. A MaxAge that the app has not changed
// stays what is stored, which another request may have changed.
func (st *Store) argsFor(mode string, x *state, opts sessions.Options, c *changes) saveArgs {
	a := saveArgs{mode: mode, idle: st.defaultIdle(), absolute: st.cfg.AbsoluteTimeout, raise: st.cfg.raise, set: slices.Clip(c.set), expect: c.expect, del: c.del, reseal: c.reseal}
	if a.maxAge = st.ownMaxAge(opts); mode != modeCreate && mode != modeAdopt && opts.MaxAge == x.was.MaxAge {
		a.maxAge = keepMaxAge
		a.life = st.absoluteOf(x.meta.maxAge)
	}
	a.life = max(a.life, st.absoluteOf(a.maxAge))
	return a
}

// guard refuses what must not be written, before anything is.
func (st *Store) guard(x *state, tok token, opts sessions.Options, cookie bool, c *changes) error {
	if cookie {
		if err := checkCookie(x.name, tok.cookie, &opts); err != nil {
			return err
		}
	}
	if c.bytes > st.cfg.MaxBytes && c.bytes > x.bytes {
		return fmt.Errorf("%w: %d bytes, Config.MaxBytes is %d", ErrTooLarge, c.bytes, st.cfg.MaxBytes)
	}
	return nil
}

// done notes what Redis holds after a save, and returns opts with the MaxAge that the
// session has there.
func (st *Store) done(s *sessions.Session, x *state, opts sessions.Options, c *changes, reply saveReply) sessions.Options {
	x.apply(c)
	if opts.MaxAge == x.was.MaxAge && st.ownMaxAge(opts) != reply.maxAge {
		opts.MaxAge = st.maxAgeOf(reply.maxAge)
		if s.Options != nil {
			s.Options.MaxAge = opts.MaxAge
		}
	}
	x.saved, x.was = stored, opts
	if x.bond != nil {
		x.sealing = bonded
	}
	s.ID = x.tok.id
	st.took(x, reply)
	return opts
}

// took notes the times that save.lua answered with.
func (st *Store) took(x *state, reply saveReply) {
	if x.at = reply.at; x.at.IsZero() {
		x.at = st.now(x.tok.key)
	}
	x.meta.created, x.meta.absolute, x.meta.maxAge, x.ttl = reply.created, reply.absolute, reply.maxAge, reply.ttl
	if reply.at.IsZero() { // it was prolonged
		x.meta.seen = max(x.at.UnixMilli()-x.meta.created, 0)
		x.meta.idle = st.idleOf(reply.maxAge).Milliseconds()
	}
}

// sendCookie sends the cookie of a stored session. A persistent one lives no
// longer than the session can.
func (st *Store) sendCookie(w http.ResponseWriter, x *state, opts sessions.Options) bool {
	maxAge := opts.MaxAge
	if maxAge > 0 && x.blob == nil {
		// What is known of the server's clock may be a little behind: nobody lives longer
		// than from the beginning.
		left := min(x.meta.createdAt().UnixMilli()+x.meta.absolute-x.at.UnixMilli(), x.meta.absolute)
		maxAge = int(min(int64(maxAge), max((left+999)/1000, 1)))
	}
	x.resend = false
	return st.writeCookie(w, x.name, x.tok.cookie, &opts, maxAge)
}

// catchUp loads what could not be loaded before, and puts on top of it what the
// app has set since. Nothing that is stored gets lost: a MaxAge that the app has not
// changed is what is stored, too.
func (st *Store) catchUp(ctx context.Context, s *sessions.Session, x *state) error {
	under := sessions.NewSession(st, x.name)
	*under.Options = x.was
	y := &state{home: x.home, name: x.name}
	found, err := st.load(ctx, under, y, x.tok)
	if err != nil {
		return err
	}
	if !found {
		if y.saved == renewed {
			x.saved, x.next = renewed, y.next
		} else {
			x.saved, x.tok = absent, token{}
		}
		return nil
	}
	if s.Values == nil {
		s.Values = make(map[any]any)
	}
	for k, v := range under.Values {
		mine, ok := s.Values[k]
		if !ok {
			s.Values[k] = v
			continue
		}
		was, isList := v.([]any)
		added, both := mine.([]any)
		if isList && both {
			s.Values[k] = append(was[:len(was):len(was)], added...)
		}
	}
	s.ID, s.IsNew = under.ID, false
	if s.Options != nil && s.Options.MaxAge == x.was.MaxAge {
		s.Options.MaxAge = under.Options.MaxAge
	}
	y.bind, y.was = x.bind, *under.Options
	*x = *y
	return nil
}

// label returns the text that a listing shows for the session.
func (st *Store) label(r *http.Request) string {
	if st.cfg.Label == nil || r == nil {
		return ""
	}
	s := strings.ToValidUTF8(st.cfg.Label(r), "")
	for len(s) > maxLabel {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
