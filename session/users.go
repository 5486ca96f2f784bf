package session

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Info describes a stored session. Its times are by this host's clock: those of Redis, by
// which sessions end, less the whole seconds that its clock is ahead.
type Info struct {
	ID       string    // public id, see ID
	User     string    // that it is bound to, or ""
	Label    string    // what Config.Label returned when it was created or bound
	Created  time.Time // or when the user signed in, see Regenerate
	LastSeen time.Time // as exact as Config.TouchEvery
	Expires  time.Time // if it is not used any more
}

// maxUser is how many bytes a user's name may have.
const maxUser = 512

// indexKey is the key of a user's index. The name is hashed so that it can have
// any bytes.
func (st *Store) indexKey(user string) string {
	sum := sha256.Sum256([]byte(user))
	return st.prefix() + "user:{" + b64.EncodeToString(sum[:]) + "}"
}

// Bind notes that s belongs to user, so that Sessions lists it and RevokeUser ends
// it; "" takes it away from its user. It takes effect with the next save, best
// with the Regenerate of a login:
//
//	store.Bind(s, "42")
//	err := store.Regenerate(w, r, s)
//
// The error is non-nil for a name over 512 bytes or of invalid UTF-8, and matches
// [ErrLayout] for a session that is kept in redisstore's layout.
func (st *Store) Bind(s *sessions.Session, user string) error {
	if len(user) > maxUser || strings.ToValidUTF8(user, "") != user {
		return fmt.Errorf("session: Bind: the user's name has %d bytes; use up to %d bytes of valid UTF-8", len(user), maxUser)
	}
	x := st.own(s)
	if compat := st.compat(); user != "" && (x.blob != nil || compat != nil && compat.sideBySide(now()) && x.saved != stored) {
		return ErrLayout
	}
	x.bind = &user
	return nil
}

// bindArgs adds a pending Bind to args and returns the user that the session has
// then, as far as this request knows.
func (st *Store) bindArgs(r *http.Request, x *state, args *saveArgs) (user string) {
	if x.bind == nil {
		return x.user
	}
	user = *x.bind
	args.who, args.was = ">"+user, x.user
	if user == "" {
		args.del = append(slices.Clip(args.del), fieldUser)
		return ""
	}
	args.set = append(slices.Clip(args.set), field{name: fieldUser, held: user})
	if label := st.label(r); label != "" {
		args.set = append(args.set, field{name: fieldLabel, held: label})
	}
	return user
}

// runIndexed runs save.lua, with the session entered into the index of user before, so
// that a bound session is never missing there. old is the session's token until now, zero
// if it has none; oldKey is the second key of save.lua.
//
// What leaves an index afterwards must not be what another request has entered meanwhile,
// although on a cluster no step sees the index and the hash at once. An id that has ended
// or was superseded never comes back, and a new one is known to nobody else: their entries
// go whatever they are. Where an id stays and the user changes, the entry for the former
// user is read, then the hash, and if that is not this user's the entry goes, unless its
// score has changed; and who has written a hash that had another user enters the session
// again. So a hash that is written before it is read keeps its entry, and one that is written
// afterwards is followed by an entry which the removal finds changed, or comes before.
func (st *Store) runIndexed(ctx context.Context, op string, tok, old token, oldKey string, args *saveArgs, user string) (saveReply, error) {
	stays := args.mode == modeUpdate && strings.HasPrefix(args.who, ">") // the id, but perhaps not the user
	if user == "" {
		reply, err := st.runSave(ctx, op, tok.key, oldKey, args, nil, nil)
		if onMaster(err) && reply.status == replyDone {
			st.leftUser(ctx, tok, old, user, reply.user, args.was)
		}
		return reply, err
	}
	limit, refuse := max(st.cfg.MaxPerUser, 0), st.cfg.AtLimit == RefuseNew
	more := args.mode == modeCreate || args.mode == modeDivide // one more of the user's sessions
	if !more && args.who == "="+user {
		limit = 0 // a new id is not
	}
	index := st.indexKey(user)
	room := 0
	if refuse {
		room = limit
	}
	life := args.life.Milliseconds() // args itself would escape, also from a save without a user
	var enter *roundtrip.ScriptCmd
	newEnter := func() *roundtrip.ScriptCmd {
		enter = indexScript.Cmd(ctx, []string{index}, tok.id, life, room, old.id)
		return enter
	}
	var count *redis.IntCmd
	if limit > 0 && !refuse {
		count = redis.NewIntCmd(ctx, "zcard", index)
	}
	var reply saveReply
	var err, entered error
	if room == 0 && !st.conn.IsCluster() {
		var after redis.Cmder
		if count != nil {
			after = count
		}
		if reply, err = st.runSave(ctx, op, tok.key, oldKey, args, newEnter(), after); !onMaster(err) {
			return reply, err
		}
	} else {
		// In an order that a pipeline to several servers would not keep.
		if entered = st.enter(ctx, user, newEnter, room); !onMaster(entered) {
			return saveReply{}, entered
		}
		if reply, err = st.runSave(ctx, op, tok.key, oldKey, args, nil, nil); !onMaster(err) {
			return reply, err
		}
		if count != nil && reply.status == replyDone {
			_ = st.conn.Do(ctx, "index", count) // else the next login counts
		}
	}
	if reply.status != replyDone {
		if args.mode == modeDivide && reply.status == replySuperseded {
			return reply, err // its caller goes on with this entry
		}
		_, added, mine := entries(enter)
		switch {
		case reply.status == replyGone || reply.status == replySuperseded || args.mode == modeRegenerate || args.mode == modeDivide:
			st.leave(func() { st.leaveIndex(ctx, user, tok.id) })
		case added:
			st.leave(func() { st.leaveEntry(ctx, user, tok.id, mine) })
		}
		return reply, err
	}
	if stays && (reply.user != user || args.was != user) {
		room = 0
		_ = st.write(ctx, "index", newEnter()) // else the first entry is all there is
	}
	st.leftUser(ctx, tok, old, user, reply.user, args.was)
	if n, _, _ := entries(enter); n >= healFrom && n&(n-1) == 0 {
		st.background(func() { _, _ = st.Sessions(ctx, user) }) // which drops what has ended
	}
	if count != nil && count.Val() > int64(limit) {
		entered = cmp.Or(entered, st.endOldest(ctx, user, tok.id))
	}
	return reply, cmp.Or(err, entered)
}

// entries reads the reply of index.lua.
func entries(cmd *roundtrip.ScriptCmd) (n int64, added bool, score string) {
	v, _ := cmd.Slice()
	if len(v) != 3 {
		return -1, false, ""
	}
	n, _ = v[0].(int64)
	score, _ = v[2].(string)
	return n, v[1] == int64(1), score
}

// healFrom is how many entries an index has at least when it is searched for those whose
// sessions have ended, and again each time it has doubled.
const healFrom = 64

// enter runs index.lua before the session is saved. If there is no room, what has ended
// since leaves the index first.
func (st *Store) enter(ctx context.Context, user string, cmd func() *roundtrip.ScriptCmd, room int) error {
	for again := false; ; again = true {
		c := cmd()
		err := st.write(ctx, "index", c)
		if !onMaster(err) {
			return err
		}
		if n, _, _ := entries(c); n >= 0 {
			return err
		}
		if again {
			return ErrTooManySessions
		}
		if list, err := st.Sessions(ctx, user); err != nil {
			return err
		} else if len(list) >= room {
			return ErrTooManySessions
		}
	}
}

// leftUser takes a session out of the index that it is not in under this id or user any
// more: that of former, the user whose it was by the hash, and of was, by what the request
// knew, since a save that is repeated finds its own user in the hash. A failure is left to
// the next listing.
func (st *Store) leftUser(ctx context.Context, tok, old token, user, former, was string) {
	if old.id == "" {
		return
	}
	if was == former {
		was = ""
	}
	for _, left := range [2]string{former, was} {
		switch {
		case left == "":
		case old.id != tok.id:
			st.leave(func() { st.leaveIndex(ctx, left, old.id) })
		case left != user:
			st.leave(func() { st.leaveMoved(ctx, left, tok) })
		}
	}
}

// leaveMoved removes a session from the index of a user that it was taken from under this
// id, unless it is back. See runIndexed for the order.
func (st *Store) leaveMoved(ctx context.Context, user string, tok token) {
	entry := redis.NewStringCmd(ctx, "zscore", st.indexKey(user), tok.id)
	holder := redis.NewStringCmd(ctx, "hget", tok.key, fieldUser)
	if st.conn.DoEach(ctx, "index", entry) != nil || entry.Err() != nil || st.conn.DoEach(ctx, "index", holder) != nil {
		return
	}
	if now, err := holder.Result(); err != nil && err != redis.Nil || now == user {
		return
	}
	st.leaveEntry(ctx, user, tok.id, entry.Val())
}

// leave runs f, which takes something out of an index: at once where a login may be
// refused for want of its place, else in the background.
func (st *Store) leave(f func()) {
	if st.cfg.MaxPerUser > 0 && st.cfg.AtLimit == RefuseNew {
		f()
		return
	}
	st.background(f)
}

// leaveEntry removes a session from a user's index if its entry has this score still. A
// failure is left to the next listing.
func (st *Store) leaveEntry(ctx context.Context, user, id, score string) {
	_ = st.conn.Do(ctx, "index", leaveScript.Cmd(ctx, []string{st.indexKey(user)}, id, score))
}

// endOldest ends the sessions of a user that are over the limit, those that were used
// the longest ago, but for the one with the public id own. It is called when that one is
// saved, so that a login that failed ends nobody, and each that is entered meanwhile
// counts again after its own save: so the last of them sees all.
func (st *Store) endOldest(ctx context.Context, user, own string) error {
	list, err := st.Sessions(ctx, user)
	if err != nil {
		return nil // the session is saved; the next login ends them
	}
	args := make([]any, 0, len(list)+2)
	args = append(args, st.cfg.MaxPerUser, own)
	for _, i := range list {
		if i.ID != own {
			args = append(args, i.ID)
		}
	}
	trim := trimScript.Cmd(ctx, []string{st.indexKey(user)}, args...)
	if err := st.conn.Do(ctx, "limit", trim); err != nil {
		return nil
	}
	over, _ := trim.StringSlice()
	if len(over) == 0 {
		return nil
	}
	_, _, err = st.revokeAll(ctx, user, over, map[string]bool{own: true})
	if !onMaster(err) {
		return nil
	}
	return err
}

// leaveIndex removes sessions from a user's index, by ids that lead to none any more. A
// failure is left to the next listing, which drops entries without a session.
func (st *Store) leaveIndex(ctx context.Context, user string, ids ...any) {
	args := append([]any{"zrem", st.indexKey(user)}, ids...)
	st.conn.Do(ctx, "index", redis.NewIntCmd(ctx, args...))
}

// chunk is how many sessions are asked for or ended in one round trip, and page how many
// entries of an index are read in one, so that each fits in Config.Timeout.
const (
	chunk = 250
	page  = 5000
)

// indexed returns public ids in a user's index from the given rank on, the longest there
// first, and how many entries it read: a page, or what there is.
func (st *Store) indexed(ctx context.Context, op, user string, from int) (ids []string, read int, err error) {
	cmd := redis.NewStringSliceCmd(ctx, "zrange", st.indexKey(user), from, from+page-1)
	if err := st.conn.Do(ctx, op, cmd); err != nil {
		return nil, 0, err
	}
	read = len(cmd.Val())
	return slices.DeleteFunc(cmd.Val(), func(id string) bool { return st.keyOfID(id) == "" }), read, nil
}

// Sessions lists the sessions that are bound to user, the last used first. It
// takes two round trips for up to 250 sessions, and one more for each further 250; see
// SessionsOf to look at them as they come. The error matches [ErrUnavailable].
func (st *Store) Sessions(ctx context.Context, user string) ([]Info, error) {
	var list []Info
	for info, err := range st.SessionsOf(ctx, user) {
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b Info) int { return b.LastSeen.Compare(a.LastSeen) })
	return list, nil
}

// SessionsOf returns the sessions that are bound to user, those that were bound the
// longest ago first. They are asked for 250 at a time, each with its own Config.Timeout.
// An error, which matches [ErrUnavailable], is the last thing it yields. A session that
// gets a new id meanwhile may be missing or come twice.
func (st *Store) SessionsOf(ctx context.Context, user string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if user == "" {
			return
		}
		seen := make(map[string]bool)
		var stale []string
		defer func() { st.heal(ctx, user, stale) }()
		for from := 0; ; from += page {
			ids, read, err := st.indexed(ctx, "list", user, from)
			if err != nil {
				yield(Info{}, err)
				return
			}
			for part := range slices.Chunk(ids, chunk) {
				infos, err := st.describe(ctx, part)
				if err != nil {
					yield(Info{}, err)
					return
				}
				for i, info := range infos {
					if info.ID == "" || info.User != user {
						stale = append(stale, part[i])
					} else if !seen[info.ID] {
						seen[info.ID] = true
						if !yield(info, nil) {
							return
						}
					}
				}
			}
			if read < page {
				return
			}
		}
	}
}

// heal drops entries of a user's index whose sessions were found to be gone.
func (st *Store) heal(ctx context.Context, user string, ids []string) {
	for part := range slices.Chunk(ids, page) {
		_ = st.conn.Do(context.WithoutCancel(ctx), "heal", healCmd(ctx, st.indexKey(user), part))
	}
}

func healCmd(ctx context.Context, index string, ids []string) *roundtrip.ScriptCmd {
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	return healScript.Cmd(ctx, []string{index}, args...)
}

// describe looks up sessions by their public ids, in one round trip. The Info of
// one that is gone has no ID.
func (st *Store) describe(ctx context.Context, ids []string) ([]Info, error) {
	cmds := make([]redis.Cmder, 0, 2*len(ids))
	for _, id := range ids {
		cmds = append(cmds, infoCmds(ctx, st.keyOfID(id))...)
	}
	if err := st.conn.Do(ctx, "list", cmds...); err != nil {
		return nil, err
	}
	infos := make([]Info, len(ids))
	for i, id := range ids {
		infos[i] = st.info(id, cmds[2*i:2*i+2])
	}
	return infos, nil
}

func infoCmds(ctx context.Context, key string) []redis.Cmder {
	return []redis.Cmder{
		redis.NewSliceCmd(ctx, "hmget", key, fieldMeta, fieldUser, fieldLabel),
		redis.NewIntCmd(ctx, "pttl", key),
	}
}

// info reads the replies to infoCmds.
func (st *Store) info(id string, cmds []redis.Cmder) Info {
	v, pttl := cmds[0].(*redis.SliceCmd).Val(), cmds[1].(*redis.IntCmd).Val()
	if len(v) != 3 || pttl <= 0 {
		return Info{}
	}
	raw, _ := v[0].(string)
	m, ok := parseMeta(raw)
	if !ok {
		return Info{}
	}
	user, _ := v[1].(string)
	label, _ := v[2].(string)
	host := now()
	ahead := st.now(st.keyOfID(id)).Sub(host).Round(time.Second)
	return Info{
		ID: id, User: user, Label: label,
		Created: m.createdAt().Add(-ahead), LastSeen: m.seenAt().Add(-ahead),
		Expires: host.Add(time.Duration(pttl) * time.Millisecond),
	}
}

// Revoke ends the session with a public id if it is bound to user, and reports
// whether it was there. An id that was superseded less than 30 seconds ago ends the
// session under its new id. It takes one round trip, and one more for each new id. The
// error matches [ErrUnavailable], or [ErrNotReplicated] beside true.
func (st *Store) Revoke(ctx context.Context, user, id string) (bool, error) {
	if st.keyOfID(id) == "" || user == "" {
		return false, nil
	}
	ctx = context.WithoutCancel(ctx)
	n, _, err := st.revokeAll(ctx, user, []string{id}, nil)
	return n == 1, err
}

func (st *Store) revoked(ctx context.Context, user, id string) {
	st.n.revoked.Add(1)
	tell(st.cfg.Hooks.Revoked, ctx, Event{ID: id, User: user})
}

// RevokeUser ends all sessions that are bound to user, except those with the
// public ids in except, and returns how many it ended: those that were bound the longest
// ago first. A session that gets a new id meanwhile does not escape, and one in except
// stays excepted. What signs in meanwhile is ended too if it is met, and does not keep
// RevokeUser from coming to its end. It takes three round
// trips for up to 250 sessions and one more for each further 250, each with its own
// Config.Timeout, and more if it met sessions that were gone. After an error, which
// matches [ErrUnavailable], some may be left, and the last 250 may have ended without
// being counted; calling again is safe and goes on. [ErrNotReplicated] leaves none.
func (st *Store) RevokeUser(ctx context.Context, user string, except ...string) (int, error) {
	if user == "" {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	n := 0
	var short error
	seen, spared := make(map[string]bool), make(map[string]bool)
	for range maxHops {
		// Whether there may be entries that were not seen: of a session that was missing, the
		// new id, and of one that ended, a session that was divided from it until then.
		more := false
		for from := 0; ; {
			ids, read, err := st.indexed(ctx, "revoke", user, from)
			if err == nil {
				err = st.follow(ctx, except, spared)
			}
			if err != nil {
				return n, err
			}
			ids = slices.DeleteFunc(ids, func(id string) bool { return seen[id] || spared[id] })
			gone := 0
			for part := range slices.Chunk(ids, chunk) {
				ended, again, err := st.revokeAll(ctx, user, part, spared)
				n += ended
				if !onMaster(err) {
					return n, err
				}
				short, more, gone = cmp.Or(short, err), more || again || ended > 0, gone+ended
				for _, id := range part {
					seen[id] = true
				}
			}
			if read < page {
				break
			}
			from, more = from+read-gone, true // what ended has left the index
		}
		if !more {
			break
		}
	}
	return n, short
}

// follow adds the public ids to seen, and those that superseded them.
func (st *Store) follow(ctx context.Context, ids []string, seen map[string]bool) error {
	for range maxHops {
		var cmds []redis.Cmder
		var asked []string
		for _, id := range ids {
			seen[id] = true
			if key := st.keyOfID(id); key != "" {
				asked = append(asked, id)
				cmds = append(cmds, redis.NewStringCmd(ctx, "hget", key, fieldNext))
			}
		}
		if len(cmds) == 0 {
			return nil
		}
		if err := st.conn.DoEach(ctx, "revoke", cmds...); err != nil {
			return err
		}
		ids = nil
		for i, cmd := range cmds {
			if next, err := cmd.(*redis.StringCmd).Result(); err == nil && len(next) == hashLen {
				ids = append(ids, asked[i][:tagLen+1]+next)
			} else if err != nil && err != redis.Nil {
				if err := st.conn.Classify("revoke", err); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// ending is a session that is to be ended: where it is looked for, and what came of it.
type ending struct {
	id    string // public id; in the end that of the session which was there
	user  string // it has to be bound to; "" for anybody's
	index string // key of the index that it leaves in the same step; "" for none

	ended bool
	bound string // the user that it was bound to
	other bool   // it is somebody else's
}

// end ends sessions, in one round trip unless one of them has another id by now: then it
// is looked for under that, unless that is one of spare. Superseded ids are known for longer than this takes.
func (st *Store) end(ctx context.Context, op string, all []*ending, spare map[string]bool, before ...redis.Cmder) error {
	var short error
	for range maxHops {
		cmds := before
		for _, e := range all {
			keys := []string{st.keyOfID(e.id)}
			if e.index != "" && !st.conn.IsCluster() {
				keys = append(keys, e.index)
			}
			cmds = append(cmds, endScript.Cmd(ctx, keys, e.user, e.id))
		}
		err := st.write(ctx, op, cmds...)
		if !onMaster(err) {
			return err
		}
		short = cmp.Or(short, err)
		var moved []*ending
		for i, e := range all {
			v, err := cmds[len(before)+i].(*roundtrip.ScriptCmd).Slice()
			if err != nil || len(v) == 0 {
				return errReply
			}
			code, _ := v[0].(int64)
			text, _ := v[len(v)-1].(string)
			switch {
			case code == 1:
				e.ended, e.bound = true, text
			case code == 2 && len(text) == hashLen:
				if e.id = e.id[:tagLen+1] + text; spare[e.id] {
					e.other = true
				} else {
					moved = append(moved, e)
				}
			case code < 0:
				e.other = true
			}
		}
		if len(moved) == 0 {
			break
		}
		all, before = moved, nil
	}
	return short
}

// revokeAll ends the sessions with the given ids. again reports that one of them
// was missing: it may have got a new id, which is in the index by then.
func (st *Store) revokeAll(ctx context.Context, user string, ids []string, spare map[string]bool) (n int, again bool, err error) {
	all := make([]*ending, len(ids))
	for i, id := range ids {
		all[i] = &ending{id: id, user: user, index: st.indexKey(user)}
	}
	err = st.end(ctx, "revoke", all, spare)
	var ended []any // entries that the scripts have not removed
	for i, e := range all {
		switch {
		case e.ended:
			n++
			st.revoked(ctx, user, e.id)
			if st.conn.IsCluster() {
				ended = append(ended, e.id)
			}
			if e.id != ids[i] {
				ended = append(ended, ids[i])
			}
		case !e.other:
			again = true
		}
	}
	if len(ended) > 0 {
		st.leaveIndex(ctx, user, ended...)
	}
	return n, again, err
}
