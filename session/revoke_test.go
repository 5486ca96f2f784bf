package session_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// RevokeUser that fails has ended sessions, those that were bound the longest ago first,
// and says how many: calls that are repeated come to an end.
func TestRevokeUserConverges(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		const sessions = 600
		var told atomic.Int64
		var down atomic.Bool
		m, failing := &meddler{}, another(t, rdb)
		failing.AddHook(m)
		st := open(t, rdb, session.Config{MaxPerUser: -1})
		revoker := open(t, failing, session.Config{MaxPerUser: -1, Hooks: session.Hooks{
			Revoked: func(context.Context, session.Event) { down.Store(told.Add(1)%250 == 0) }, // after a chunk
		}})
		var ids []string
		for range sessions {
			id, err := login(t, newBrowser(), st, "ada")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		m.before = func(cmds []redis.Cmder) error {
			if down.Load() {
				return refusal("MISCONF the test says that Redis is down")
			}
			return nil
		}
		total, calls := 0, 0
		for {
			down.Store(false)
			n, err := revoker.RevokeUser(t.Context(), "ada")
			total += n
			if calls++; err == nil {
				break
			}
			if n == 0 || calls > 10 {
				t.Fatalf("RevokeUser = %d, %v at call %d; want some ended each time", n, err, calls)
			}
			list, err := st.Sessions(t.Context(), "ada")
			if err != nil || len(list) != sessions-total {
				t.Fatalf("%d sessions are left of %d after %d were ended, %v", len(list), sessions, total, err)
			}
			left := make(map[string]bool)
			for _, i := range list {
				left[i.ID] = true
			}
			for i, id := range ids {
				if left[id] != (i >= total) {
					t.Fatalf("session %d in the order of their logins is left: %v, after %d were ended", i, left[id], total)
				}
			}
		}
		if n, err := st.Len(t.Context()); total != sessions || told.Load() != sessions || n != 0 || err != nil || calls < 2 {
			t.Errorf("%d ended in %d calls, hooks told of %d, %d left, %v; want all %d", total, calls, told.Load(), n, err, sessions)
		}
	})
}

// Somebody who signs in again and again does not keep RevokeUser from ending what was
// there, nor from coming to an end.
func TestRevokeUserAmongLogins(t *testing.T) {
	redistest.RunOn(t, redistest.OnServer|redistest.OnCluster, func(t *testing.T, rdb redis.UniversalClient) {
		const older = 300
		m, meddled := &meddler{}, another(t, rdb)
		meddled.AddHook(m)
		st, revoker := open(t, rdb, session.Config{MaxPerUser: -1}), open(t, meddled, session.Config{MaxPerUser: -1})
		var ids []string
		for range older {
			id, err := login(t, newBrowser(), st, "ada")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		exchanges := 0
		m.after = func([]redis.Cmder) error {
			if exchanges++; exchanges < 1000 {
				_, err := login(t, newBrowser(), st, "ada")
				return err
			}
			return nil
		}
		n, err := revoker.RevokeUser(t.Context(), "ada")
		if n < older || err != nil || exchanges >= 1000 {
			t.Errorf("RevokeUser = %d, %v after %d exchanges; want %d or more", n, err, exchanges, older)
		}
		list, err := st.Sessions(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			for _, id := range ids {
				if i.ID == id {
					t.Errorf("a session is left that was there before")
				}
			}
		}
	})
}
