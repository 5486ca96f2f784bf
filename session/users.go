package session

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Info describes a stored session.
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

// indexLife is how long an entry of a user's index may be needed.
func (st *Store) indexLife() time.Duration { return st.cfg.AbsoluteTimeout }

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
// then.
func (st *Store) bindArgs(r *http.Request, x *state, args *saveArgs) (user string, err error) {
	if x.bind == nil {
		return x.user, nil
	}
	user = *x.bind
	if user == "" {
		args.del = append(slices.Clip(args.del), fieldUser)
		return "", nil
	}
	args.set = append(slices.Clip(args.set), field{name: fieldUser, held: user})
	if label := st.label(r); label != "" {
		args.set = append(args.set, field{name: fieldLabel, held: label})
	}
	return user, nil
}

// leaveIndex removes a session from a user's index. A failure is left to the next
// listing, which drops entries without a session.
func (st *Store) leaveIndex(ctx context.Context, user string, ids ...any) {
	args := append([]any{"zrem", st.indexKey(user)}, ids...)
	st.conn.Do(ctx, "index", redis.NewIntCmd(ctx, args...))
}

// indexed returns the public ids in a user's index, the longest there first.
func (st *Store) indexed(ctx context.Context, op, user string) ([]string, error) {
	ids := redis.NewStringSliceCmd(ctx, "zrange", st.indexKey(user), 0, -1)
	if err := st.conn.Do(ctx, op, ids); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ids.Val(), func(id string) bool { return st.keyOfID(id) == "" }), nil
}

// Sessions lists the sessions that are bound to user, the last used first. It
// takes two round trips. The error matches [ErrUnavailable].
func (st *Store) Sessions(ctx context.Context, user string) ([]Info, error) {
	if user == "" {
		return nil, nil
	}
	ids, err := st.indexed(ctx, "list", user)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	infos, err := st.describe(ctx, ids)
	if err != nil {
		return nil, err
	}
	var list []Info
	var stale []string
	for i, info := range infos {
		if info.ID == "" || info.User != user {
			stale = append(stale, ids[i])
			continue
		}
		list = append(list, info)
	}
	if len(stale) > 0 {
		st.conn.Do(context.WithoutCancel(ctx), "heal", healCmd(ctx, st.indexKey(user), stale))
	}
	slices.SortStableFunc(list, func(a, b Info) int { return b.LastSeen.Compare(a.LastSeen) })
	return list, nil
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
	return Info{
		ID: id, User: user, Label: label,
		Created: m.createdAt(), LastSeen: m.seenAt(),
		Expires: now().Add(time.Duration(pttl) * time.Millisecond),
	}
}

// Revoke ends the session with a public id if it is bound to user, and reports
// whether it was there. It takes one round trip. The error matches [ErrUnavailable],
// or [ErrNotReplicated] beside true.
func (st *Store) Revoke(ctx context.Context, user, id string) (bool, error) {
	if st.keyOfID(id) == "" || user == "" {
		return false, nil
	}
	ctx = context.WithoutCancel(ctx)
	n, _, err := st.revokeAll(ctx, user, []string{id})
	return n == 1, err
}

func (st *Store) revoked(ctx context.Context, user, id string) {
	st.n.revoked.Add(1)
	tell(st.cfg.Hooks.Revoked, ctx, Event{ID: id, User: user})
}

// RevokeUser ends all sessions that are bound to user, except those with the
// public ids in except, and returns how many there were. A session that gets a
// new id meanwhile does not escape. It takes two round trips, and more if it met
// sessions that were gone. After an error, which matches [ErrUnavailable], some may
// be left; calling again is safe. [ErrNotReplicated] leaves none.
func (st *Store) RevokeUser(ctx context.Context, user string, except ...string) (int, error) {
	if user == "" {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	n := 0
	var short error
	seen := make(map[string]bool)
	for _, id := range except {
		seen[id] = true
	}
	for {
		ids, err := st.indexed(ctx, "revoke", user)
		if err != nil {
			return n, err
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return seen[id] })
		if len(ids) == 0 {
			return n, short
		}
		ended, again, err := st.revokeAll(ctx, user, ids)
		n += ended
		if !onMaster(err) {
			return n, err
		}
		if short = cmp.Or(short, err); !again {
			return n, short
		}
		for _, id := range ids {
			seen[id] = true
		}
	}
}

// revokeAll ends the sessions with the given ids. again reports that one of them
// was missing: it may have got a new id, which is in the index by then.
func (st *Store) revokeAll(ctx context.Context, user string, ids []string) (n int, again bool, err error) {
	cmds := make([]redis.Cmder, len(ids))
	for i, id := range ids {
		cmds[i] = st.revokeCmd(ctx, user, id)
	}
	err = st.write(ctx, "revoke", cmds...)
	if !onMaster(err) {
		return 0, false, err
	}
	var ended []any
	for i, id := range ids {
		switch code, _ := cmds[i].(*roundtrip.ScriptCmd).Int64(); code {
		case 1:
			ended = append(ended, id)
			st.revoked(ctx, user, id)
		case 0:
			again = true
		}
	}
	if len(ended) > 0 && st.conn.IsCluster() {
		st.leaveIndex(ctx, user, ended...)
	}
	return len(ended), again, err
}

// revokeCmd ends one session. Its entry in the index goes with it where both can
// be in one script, and only then: the entry of a missing session may be that of
// one that is about to be bound.
func (st *Store) revokeCmd(ctx context.Context, user, id string) *roundtrip.ScriptCmd {
	keys := []string{st.keyOfID(id)}
	if !st.conn.IsCluster() {
		keys = append(keys, st.indexKey(user))
	}
	return revokeScript.Cmd(ctx, keys, user, id)
}

// makeRoom keeps to Config.MaxPerUser for a session that was just entered in the
// index. oldKey is the session's key until now, if it had one.
func (st *Store) makeRoom(ctx context.Context, user, id, oldKey string) error {
	if st.cfg.MaxPerUser == 0 {
		return nil
	}
	ids, err := st.indexed(ctx, "limit", user)
	if err != nil || len(ids) <= st.cfg.MaxPerUser {
		return err
	}
	list, err := st.Sessions(ctx, user)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(i Info) bool { return i.ID == id || st.keyOfID(i.ID) == oldKey })
	over := len(list) + 1 - st.cfg.MaxPerUser
	if over <= 0 {
		return nil
	}
	if st.cfg.AtLimit == RefuseNew {
		st.leaveIndex(ctx, user, id)
		return ErrTooManySessions
	}
	var short error
	for _, old := range list[len(list)-over:] {
		if _, err := st.Revoke(ctx, user, old.ID); !onMaster(err) {
			return err
		} else if err != nil {
			short = err
		}
	}
	return short
}
