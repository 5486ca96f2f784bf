package session

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// blob is a session in redisstore's layout as it was loaded or saved: one string.
type blob struct {
	raw string
	key string
}

// maxMerges is how often a save in redisstore's layout starts again because
// somebody else was quicker.
const maxMerges = 64

var errDecode = errors.New("the serializer could not read the session")

// loadEither looks for a session in both layouts, in one round trip. The hash
// wins: it is there only once the session has moved.
func (st *Store) loadEither(ctx context.Context, s *sessions.Session, x *state, tok token, compat *RedisstoreConfig) (bool, error) {
	hash := redis.NewMapStringStringCmd(ctx, "hgetall", tok.key)
	pttl := redis.NewIntCmd(ctx, "pttl", tok.key)
	key := compat.KeyPrefix + tok.cookie
	get := redis.NewStringCmd(ctx, "get", key)
	life := redis.NewIntCmd(ctx, "pttl", key)
	// A session that is being adopted has its hash before its old copy goes. So who
	// looks for the old copy first misses neither.
	if err := st.conn.DoEach(ctx, "load", get, life, hash, pttl); err != nil {
		return false, err
	}
	for _, cmd := range []redis.Cmder{hash, pttl, life} {
		if err := st.conn.Classify("load", cmd.Err()); err != nil {
			return false, err
		}
	}
	if st.fill(ctx, s, x, tok, hash.Val(), pttl.Val()) {
		return true, nil
	}
	if err := get.Err(); err == redis.Nil || redis.HasErrorPrefix(err, "WRONGTYPE") {
		// No session, or a key that is none. On a cluster the two were looked for at
		// the same time.
		if st.conn.IsCluster() {
			return st.loadHash(ctx, s, x, tok)
		}
		return false, nil
	} else if err != nil {
		return false, st.conn.Classify("load", err)
	}
	values, err := compat.decode(tok, x.name, get.Val())
	if err != nil {
		st.undecodable(ctx, Event{Name: x.name, ID: tok.id}, err)
		return false, nil
	}
	s.Values = values
	x.blob = &blob{raw: get.Val(), key: key}
	x.at, x.ttl = st.now(tok.key), time.Duration(max(life.Val(), 0))*time.Millisecond
	return true, nil
}

// decode reads a session with the app's serializer. That gets a session of its
// own, with the id that redisstore would have given it.
func (c *RedisstoreConfig) decode(tok token, name, raw string) (values map[any]any, err error) {
	defer func() {
		if recover() != nil {
			values, err = nil, errDecode
		}
	}()
	s := sessions.NewSession(nil, name)
	s.ID = tok.cookie
	if err := c.Serializer.Deserialize([]byte(raw), s); err != nil {
		return nil, errDecode
	}
	if s.Values == nil {
		s.Values = make(map[any]any)
	}
	return s.Values, nil
}

func (c *RedisstoreConfig) encode(tok token, name string, s *sessions.Session) (string, error) {
	out := sessions.NewSession(nil, name)
	out.ID, out.Values = tok.cookie, s.Values
	if s.Options != nil {
		*out.Options = *s.Options
	}
	b, err := c.Serializer.Serialize(out)
	if err != nil {
		return "", errors.Join(ErrUnsupported, err)
	}
	return string(b), nil
}

// saveBlob saves a session that was loaded from redisstore's layout: there, or in
// a hash of its own if that layout has ended.
func (st *Store) saveBlob(ctx context.Context, w http.ResponseWriter, r *http.Request, s *sessions.Session, x *state, opts sessions.Options, kind saveKind) (bool, error) {
	compat := st.compat()
	if compat == nil {
		return false, ErrLayout
	}
	base, err := compat.decode(x.tok, x.name, x.blob.raw)
	if err != nil {
		return false, err
	}
	changed := !reflect.DeepEqual(base, s.Values)
	if kind == saveChanges && !changed && opts == x.was && x.bind == nil {
		st.n.unchanged.Add(1)
		return false, nil
	}
	if !compat.sideBySide(now()) {
		if err := st.adopt(ctx, s, x, opts, base, compat); err != nil {
			return false, err
		}
		c, err := st.diff(x, s, x.tok.tag())
		if err != nil {
			return false, err
		}
		if kind == saveChanges && x.bind == nil && c.none() {
			return opts != x.was && st.sendCookie(w, x, opts), nil
		}
		return st.update(ctx, w, r, s, x, opts, kind, c)
	}

	cookie := kind != saveChanges || opts != x.was
	tok, key := x.tok, x.blob.key
	if kind == saveAnew {
		if tok, err = st.tokenFor(x.name); err != nil {
			return false, err
		}
		key = compat.KeyPrefix + tok.cookie
	}
	if cookie {
		if err := checkCookie(x.name, tok.cookie, &opts); err != nil {
			return false, err
		}
	}
	old := x.tok
	if err := st.swap(ctx, s, x, opts, base, compat, tok, key, changed || kind == saveAnew); err != nil {
		return false, err
	}
	x.was, x.saved, s.ID = opts, stored, tok.id
	st.n.saved.Add(1)
	if kind == saveAnew {
		st.n.regenerated.Add(1)
		tell(st.cfg.Hooks.Regenerated, ctx, Event{Name: x.name, ID: tok.id, OldID: old.id})
	}
	return cookie && st.sendCookie(w, x, opts), nil
}

// swap writes s over what was loaded, under key. If somebody else changed the
// session in between, what s changed is put on top of that, and it tries again.
func (st *Store) swap(ctx context.Context, s *sessions.Session, x *state, opts sessions.Options, base map[any]any, compat *RedisstoreConfig, tok token, key string, changed bool) error {
	idle := st.idleOf(st.ownMaxAge(opts))
	move := key != x.blob.key
	for range maxMerges {
		raw := x.blob.raw
		if changed {
			var err error
			if raw, err = compat.encode(tok, x.name, s); err != nil {
				return err
			}
			if len(raw) > st.cfg.MaxBytes && len(raw) > len(x.blob.raw) {
				return ErrTooLarge
			}
		}
		next := raw
		if move {
			// The new key first: until the old one is gone nobody knows its id.
			set := redis.NewStatusCmd(ctx, "set", key, raw, "px", idle.Milliseconds())
			if err := st.conn.Do(ctx, "regenerate", set); err != nil {
				return err
			}
			next = ""
		}
		status, current, err := st.runSwap(ctx, x.blob, next, idle)
		switch {
		case err != nil:
			return err
		case status == swapDone:
			x.blob = &blob{raw: raw, key: key}
			x.tok = tok
			x.at, x.ttl = st.now(x.tok.key), idle
			return nil
		case status == swapGone:
			if move {
				st.conn.Do(ctx, "regenerate", redis.NewIntCmd(ctx, "unlink", key))
			}
			st.n.gone.Add(1)
			return ErrSessionGone
		}
		if st.cfg.DetectConflicts {
			return ErrConflict
		}
		theirs, err := compat.decode(x.tok, x.name, current)
		if err != nil {
			return err
		}
		again, err := compat.decode(x.tok, x.name, current)
		if err != nil {
			return err
		}
		s.Values = merge(base, s.Values, theirs)
		base, x.blob, changed = again, &blob{raw: current, key: x.blob.key}, true
	}
	return ErrConflict
}

// Statuses that swap.lua answers with.
const (
	swapGone int64 = iota
	swapDone
	swapOther
)

func (st *Store) runSwap(ctx context.Context, b *blob, next string, life time.Duration) (status int64, current string, err error) {
	cmd := swapScript.Cmd(ctx, []string{b.key}, b.raw, next, max(life.Milliseconds(), 1))
	if next == "" {
		cmd.Once() // repeated, it would find nothing and call it gone
	}
	if err := st.conn.Do(ctx, "save", cmd); err != nil {
		return 0, "", err
	}
	reply, _ := cmd.Slice()
	if len(reply) == 0 {
		return 0, "", errReply
	}
	status, _ = reply[0].(int64)
	if len(reply) > 1 {
		current, _ = reply[1].(string)
	}
	return status, current, nil
}

// merge puts what changed from base to mine on top of theirs. Lists that both
// appended to keep what both added.
func merge(base, mine, theirs map[any]any) map[any]any {
	for k := range base {
		if _, ok := mine[k]; !ok {
			if list, ok := theirs[k].([]any); ok { // flashes were read: those seen go
				if list = mergeLists(base[k], []any(nil), list); len(list) > 0 {
					theirs[k] = list
					continue
				}
			}
			delete(theirs, k)
		}
	}
	for k, v := range mine {
		was, had := base[k]
		if had && reflect.DeepEqual(was, v) {
			continue
		}
		if list, ok := v.([]any); ok {
			if other, ok := theirs[k].([]any); ok {
				theirs[k] = mergeLists(was, list, other)
				continue
			}
		}
		theirs[k] = v
	}
	return theirs
}

// mergeLists removes from theirs what mine no longer has of base, and appends
// what mine has added.
func mergeLists(base any, mine, theirs []any) []any {
	was, _ := base.([]any)
	kept, gone := 0, []any(nil)
	for _, e := range was {
		if kept < len(mine) && reflect.DeepEqual(e, mine[kept]) {
			kept++
		} else {
			gone = append(gone, e)
		}
	}
	var out []any
next:
	for _, e := range theirs {
		for i := range gone {
			if reflect.DeepEqual(gone[i], e) {
				gone = append(gone[:i:i], gone[i+1:]...)
				continue next
			}
		}
		out = append(out, e)
	}
	return append(out, mine[kept:]...)
}

// createBlob stores a new session in redisstore's layout.
func (st *Store) createBlob(ctx context.Context, w http.ResponseWriter, s *sessions.Session, x *state, opts sessions.Options, tok token) (bool, error) {
	compat := st.compat()
	if x.bind != nil && *x.bind != "" {
		return false, ErrLayout
	}
	if err := checkCookie(x.name, tok.cookie, &opts); err != nil {
		return false, err
	}
	raw, err := compat.encode(tok, x.name, s)
	if err != nil {
		return false, err
	}
	if len(raw) > st.cfg.MaxBytes {
		return false, ErrTooLarge
	}
	idle := st.idleOf(st.ownMaxAge(opts))
	key := compat.KeyPrefix + tok.cookie
	set := redis.NewStatusCmd(ctx, "set", key, raw, "px", idle.Milliseconds(), "nx")
	if err := st.conn.Do(ctx, "create", set); err != nil {
		return false, err
	}
	if set.Err() == redis.Nil && tok.foreign {
		return false, ErrConflict
	}
	x.tok, x.saved, x.was = tok, stored, opts
	x.blob = &blob{raw: raw, key: key}
	x.at, x.ttl = st.now(x.tok.key), idle
	s.ID = tok.id
	st.n.created.Add(1)
	tell(st.cfg.Hooks.Created, ctx, Event{Name: x.name, ID: tok.id})
	return st.sendCookie(w, x, opts), nil
}

func (st *Store) touchBlob(ctx context.Context, s *sessions.Session, x *state) error {
	idle := st.idleOf(st.ownMaxAge(x.options(s)))
	set := redis.NewIntCmd(ctx, "pexpire", x.blob.key, idle.Milliseconds())
	if err := st.conn.Do(ctx, "touch", set); err != nil {
		return err
	}
	if set.Val() == 0 {
		st.n.gone.Add(1)
		return ErrSessionGone
	}
	x.at, x.ttl = st.now(x.tok.key), idle
	st.n.touched.Add(1)
	return nil
}

// adopt moves a session from redisstore's layout to a hash under the same cookie.
//
// The two keys can be on different servers, so this takes two steps: create the
// hash unless it is there, then delete the old copy if it is still what was
// loaded. Deleting a session takes the old copy first. So if the old copy is gone
// although this call created the hash, the session was logged out in between, and
// the hash goes as well.
func (st *Store) adopt(ctx context.Context, s *sessions.Session, x *state, opts sessions.Options, base map[any]any, compat *RedisstoreConfig) error {
	old := x.blob
	moved := *x
	moved.blob, moved.base, moved.other, moved.bytes = nil, nil, nil, 0
	if st.seals() {
		moved.bond = moved.newBond()
	}
	args := saveArgs{mode: modeAdopt}
	for range maxMerges {
		c, err := st.diff(&moved, s, x.tok.tag())
		if err != nil {
			return err
		}
		c.expect = nil
		args = st.argsFor(args.mode, x, opts, &c)
		if args.mode == modeAdopt && moved.bond != nil {
			args.bond = st.bondField(moved.bond, x.name, x.tok.id).held
			moved.held = args.bond
		}
		if args.mode == modeAdopt || !c.none() {
			reply, err := st.runSave(ctx, "adopt", x.tok.key, "", &args, nil, nil)
			if err != nil {
				return err
			}
			switch reply.status {
			case replyThere:
				return st.joinAdopted(ctx, s, x, base)
			case replyGone, replySuperseded:
				return st.gone(reply.status)
			}
			st.done(s, &moved, opts, &c, reply)
		}
		status, current, err := st.runSwap(ctx, old, "", time.Second)
		if err != nil {
			return err
		}
		switch status {
		case swapDone:
			moved.was = x.was
			*x = moved
			st.n.adopted.Add(1)
			tell(st.cfg.Hooks.Adopted, ctx, Event{Name: x.name, ID: x.tok.id})
			return nil
		case swapGone:
			if err := st.conn.Do(ctx, "adopt", redis.NewIntCmd(ctx, "unlink", x.tok.key)); err != nil {
				return err
			}
			st.n.gone.Add(1)
			return ErrSessionGone
		}
		// An old server saved it in between: its changes go on top of ours.
		theirs, err := compat.decode(x.tok, x.name, current)
		if err != nil {
			return err
		}
		again, err := compat.decode(x.tok, x.name, current)
		if err != nil {
			return err
		}
		s.Values = merge(base, theirs, s.Values)
		base, old, args.mode = again, &blob{raw: current, key: old.key}, modeUpdate
	}
	return ErrConflict
}

// joinAdopted loads the hash that somebody else has made of the session, and puts
// on top of it what this request changed.
func (st *Store) joinAdopted(ctx context.Context, s *sessions.Session, x *state, base map[any]any) error {
	under := sessions.NewSession(st, x.name)
	y := &state{home: x.home, name: x.name}
	found, err := st.loadHash(ctx, under, y, x.tok)
	if err != nil {
		return err
	}
	if !found {
		return st.goneAs(y)
	}
	s.Values = merge(base, s.Values, under.Values)
	y.tok, y.saved, y.bind, y.was = x.tok, stored, x.bind, x.was
	*x = *y
	return nil
}
