package session_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// meddler is a hook that calls a function around each exchange with Redis.
type meddler struct {
	before func(cmds []redis.Cmder) error // with an error they are not sent
	after  func(cmds []redis.Cmder) error // with an error their replies are lost
}

func (m *meddler) DialHook(next redis.DialHook) redis.DialHook { return next }

func (m *meddler) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return m.around([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

func (m *meddler) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return m.around(cmds, func() error { return next(ctx, cmds) })
	}
}

func (m *meddler) around(cmds []redis.Cmder, next func() error) error {
	lose := func(err error) error {
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
		return err
	}
	if m.before != nil {
		if err := m.before(cmds); err != nil {
			return lose(err)
		}
	}
	err := next()
	if m.after != nil {
		if lost := m.after(cmds); lost != nil {
			return lose(lost)
		}
	}
	return err
}

// refusal is what Redis answers when it can't carry out a command now.
type refusal string

func (r refusal) Error() string { return string(r) }
func (refusal) RedisError()     {}

// another returns a client of the same Redis.
func another(t testing.TB, rdb redis.UniversalClient) redis.UniversalClient {
	t.Helper()
	var c redis.UniversalClient
	switch rdb := rdb.(type) {
	case *redis.Client:
		opts := *rdb.Options()
		c = redis.NewClient(&opts)
	case *redis.ClusterClient:
		opts := *rdb.Options()
		c = redis.NewClusterClient(&opts)
	default:
		t.Fatalf("%T is no client that this test knows", rdb)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// indexOf returns the key of a user's index.
func indexOf(t testing.TB, rdb redis.UniversalClient) string {
	t.Helper()
	keys := rdb.Keys(t.Context(), session.DefaultPrefix+"user:*").Val()
	if len(keys) != 1 {
		t.Fatalf("%d indexes; want one", len(keys))
	}
	return keys[0]
}

// changes reports whether one of the commands changes an entry of an index.
func changes(cmds []redis.Cmder, index, id string) bool {
	for _, cmd := range cmds {
		var found [2]bool
		for _, arg := range cmd.Args() {
			if p, ok := arg.(*string); ok {
				arg = *p
			}
			found[0], found[1] = found[0] || arg == index, found[1] || arg == id
		}
		if found == [2]bool{true, true} && cmd.Name() != "zscore" {
			return true
		}
	}
	return false
}

// What takes a session out of a former user's index may come late, when the session is that
// user's again.
func TestLateRemovalSparesTheNewEntry(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, c := range []struct {
			other string
			looks bool // at the entry already late, and not only removes it
		}{{"eve", false}, {"", false}, {"eve", true}, {"", true}} {
			other := c.other
			st := open(t, rdb, session.Config{})
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { _ = st.Bind(s, "ada") })
			index := indexOf(t, rdb)

			late, slow := &meddler{}, another(t, rdb)
			slow.AddHook(late)
			mover := open(t, slow, session.Config{})
			move, back := b.visit(t, mover), b.visit(t, st)
			id := session.ID(move.s)
			begun, held := make(chan struct{}), make(chan struct{})
			var once sync.Once
			late.before = func(cmds []redis.Cmder) error {
				if changes(cmds, index, id) || c.looks && cmds[0].Name() == "zscore" {
					once.Do(func() { close(begun) })
					<-held
				}
				return nil
			}
			if err := errors.Join(mover.Bind(move.s, other), mover.Save(move.r, move.w, move.s)); err != nil {
				t.Fatal(err)
			}
			<-begun
			if err := errors.Join(st.Bind(back.s, "ada"), st.Save(back.r, back.w, back.s)); err != nil {
				t.Fatal(err)
			}
			close(held)
			mover.Close()
			if list, err := st.Sessions(t.Context(), "ada"); len(list) != 1 || err != nil {
				t.Errorf("moved to %q and back: Sessions = %+v, %v; want one", other, list, err)
			}
			if n, err := st.RevokeUser(t.Context(), "ada"); n != 1 || err != nil {
				t.Errorf("moved to %q and back: RevokeUser = %d, %v; want 1", other, n, err)
			}
			st.Clear(t.Context())
		}
	})
}

// A removal that meets the session between its entering and the write of its hash takes the
// entry with it, so it is entered again.
func TestEnteredAgainAfterTheHash(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { _ = st.Bind(s, "ada") })
		index := indexOf(t, rdb)
		away := b.visit(t, st)
		if err := errors.Join(st.Bind(away.s, "eve"), st.Save(away.r, away.w, away.s)); err != nil {
			t.Fatal(err)
		}
		st.Close()

		m, slow := &meddler{}, another(t, rdb)
		slow.AddHook(m)
		binder := open(t, slow, session.Config{})
		back := b.visit(t, binder)
		id := session.ID(back.s)
		first := true
		m.after = func(cmds []redis.Cmder) error {
			if first && changes(cmds, index, id) {
				first = false
				rdb.Del(t.Context(), index)
			}
			return nil
		}
		if err := errors.Join(binder.Bind(back.s, "ada"), binder.Save(back.r, back.w, back.s)); err != nil {
			t.Fatal(err)
		}
		if list, err := st.Sessions(t.Context(), "ada"); len(list) != 1 || err != nil || first {
			t.Errorf("Sessions = %+v, %v; want one", list, err)
		}
	})
}

// A save that fails takes back the entry that it made, and no other.
func TestFailedBindLeavesTheIndexAsItWas(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, policy := range []session.LimitPolicy{session.EndOldest, session.RefuseNew} {
			for _, owner := range []string{"ada", "eve", ""} {
				st := open(t, rdb, session.Config{DetectConflicts: true, AtLimit: policy, MaxPerUser: 1})
				b := newBrowser()
				b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; _ = st.Bind(s, owner) })
				late := b.visit(t, st)
				b.edit(t, st, set("x", 2))
				late.s.Values["x"] = 3
				if err := errors.Join(st.Bind(late.s, "ada"), st.Save(late.r, late.w, late.s)); !errors.Is(err, session.ErrConflict) {
					t.Fatalf("Save = %v; want ErrConflict", err)
				}
				st.Close()
				for _, user := range []string{"ada", "eve"} {
					want := 0
					if user == owner {
						want = 1
					}
					if list, err := st.Sessions(t.Context(), user); len(list) != want || err != nil {
						t.Errorf("a session of %q: Sessions(%s) = %+v, %v; want %d", owner, user, list, err, want)
					}
				}
				if owner != "ada" { // her place is free
					if err := newBrowser().try(st, func(s *sessions.Session) { _ = st.Bind(s, "ada") }); err != nil {
						t.Errorf("a session of %q: the next login = %v", owner, err)
					}
				}
				if _, err := st.Clear(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A session that is divided from one that RevokeUser is about to end does not escape.
func TestDividedDuringRevokeUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		m, slow := &meddler{}, another(t, rdb)
		slow.AddHook(m)
		st, revoker := open(t, rdb, session.Config{}), open(t, slow, session.Config{})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { _ = st.Bind(s, "ada") })
		early := b.visit(t, st)
		b.renew(t, st)
		divided := false
		m.after = func(cmds []redis.Cmder) error {
			if cmds[0].Name() == "zrange" && !divided {
				divided = true
				if err := st.Regenerate(early.w, early.r, early.s); err != nil {
					t.Errorf("Regenerate = %v", err)
				}
			}
			return nil
		}
		n, err := revoker.RevokeUser(t.Context(), "ada")
		if left, _ := st.Len(t.Context()); n != 2 || err != nil || left != 0 || !divided {
			t.Errorf("RevokeUser = %d, %v, and %d are left; want 2 and none", n, err, left)
		}
	})
}

// With RefuseNew a save that finds its session gone leaves no place taken, also if the first
// reply of Redis was lost.
func TestPlaceOfAFailedSaveIsFree(t *testing.T) {
	redistest.RunOn(t, redistest.OnMini|redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		for _, how := range []string{"superseded", "gone"} {
			for _, anew := range []bool{true, false} {
				m, lossy := &meddler{}, another(t, rdb)
				lossy.AddHook(m)
				cfg := session.Config{MaxPerUser: 1, AtLimit: session.RefuseNew}
				st, loser := open(t, rdb, cfg), open(t, lossy, cfg)
				b := newBrowser()
				b.edit(t, st, set("x", 1))
				late := b.visit(t, loser)
				if how == "gone" {
					v := b.visit(t, st)
					if err := st.Destroy(v.w, v.r, v.s); err != nil {
						t.Fatal(err)
					}
				} else {
					b.renew(t, st)
				}
				lost := false
				m.after = func([]redis.Cmder) error {
					if lost {
						return nil
					}
					lost = true
					return io.ErrUnexpectedEOF
				}
				save := func() error { return loser.Save(late.r, late.w, late.s) }
				if anew {
					save = func() error { return loser.Regenerate(late.w, late.r, late.s) }
				}
				err := errors.Join(loser.Bind(late.s, "ada"), save())
				if anew && how == "superseded" {
					if err != nil { // it has a session of its own
						t.Errorf("Regenerate = %v", err)
					}
				} else if !errors.Is(err, session.ErrSessionGone) {
					t.Errorf("%s: %v; want ErrSessionGone", how, err)
				} else if err := newBrowser().try(st, func(s *sessions.Session) { _ = st.Bind(s, "ada") }); err != nil {
					t.Errorf("%s: the next login = %v", how, err)
				}
				if _, err := st.Clear(t.Context()); err != nil || !lost {
					t.Fatal(err, lost)
				}
			}
		}
	})
}

// Reload keeps what the response still has to send: the cookie that an old key had signed.
func TestReloadKeepsTheCookieDue(t *testing.T) {
	redistest.RunOn(t, redistest.OnMini, func(t *testing.T, rdb redis.UniversalClient) {
		first, second := []byte(strings.Repeat("one key ", 4)+"!"), []byte(strings.Repeat("another ", 4)+"!")
		before := open(t, rdb, session.Config{Keys: [][]byte{first}})
		now := open(t, rdb, session.Config{Keys: [][]byte{second, first}})
		b := newBrowser()
		b.edit(t, before, set("x", 1))
		v := b.visit(t, now)
		if err := now.Reload(v.r, v.s); err != nil {
			t.Fatal(err)
		}
		if wrote, err := now.Commit(v.w, v.r, v.s); !wrote || err != nil {
			t.Errorf("Commit = %v, %v; want the cookie signed anew", wrote, err)
		}
		c := v.w.Result().Cookies()
		if len(c) != 1 || c[0].Value == b.jar["s"] {
			t.Errorf("cookies %v; want one that the new key signed", c)
		}
	})
}

// A session that leaves its user leaves the user's index, also if the first reply of Redis
// was lost: its place is free.
func TestPlaceOfASessionThatLeftIsFree(t *testing.T) {
	redistest.RunOn(t, redistest.OnMini|redistest.OnServer, func(t *testing.T, rdb redis.UniversalClient) {
		for _, other := range []string{"eve", ""} {
			for _, anew := range []bool{true, false} {
				m, lossy := &meddler{}, another(t, rdb)
				lossy.AddHook(m)
				cfg := session.Config{MaxPerUser: 1, AtLimit: session.RefuseNew}
				st, loser := open(t, rdb, cfg), open(t, lossy, cfg)
				b := newBrowser()
				b.edit(t, st, func(s *sessions.Session) { _ = st.Bind(s, "ada") })
				v := b.visit(t, loser)
				lost := false
				m.after = func(cmds []redis.Cmder) error {
					saves := cmds[0].Name() == "evalsha" || cmds[0].Name() == "eval"
					if lost || !saves {
						return nil
					}
					lost = true
					return io.ErrUnexpectedEOF
				}
				save := func() error { return loser.Save(v.r, v.w, v.s) }
				if anew {
					save = func() error { return loser.Regenerate(v.w, v.r, v.s) }
				}
				if err := errors.Join(loser.Bind(v.s, other), save()); err != nil || !lost {
					t.Fatalf("to %q: %v, reply lost: %v", other, err, lost)
				}
				if err := newBrowser().try(st, func(s *sessions.Session) { _ = st.Bind(s, "ada") }); err != nil {
					t.Errorf("to %q, new id %v: the next login = %v", other, anew, err)
				}
				if _, err := st.Clear(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// So does a session that another request has bound since this one loaded it.
func TestPlaceOfASessionThatOthersBoundIsFree(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, other := range []string{"eve", ""} {
			st := open(t, rdb, session.Config{MaxPerUser: 1, AtLimit: session.RefuseNew})
			b := newBrowser()
			b.edit(t, st, set("x", 1))
			binds, moves := b.visit(t, st), b.visit(t, st)
			if err := errors.Join(st.Bind(binds.s, "ada"), st.Save(binds.r, binds.w, binds.s),
				st.Bind(moves.s, other), st.Save(moves.r, moves.w, moves.s)); err != nil {
				t.Fatal(err)
			}
			if err := newBrowser().try(st, func(s *sessions.Session) { _ = st.Bind(s, "ada") }); err != nil {
				t.Errorf("moved to %q: the next login = %v", other, err)
			}
			if _, err := st.Clear(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
