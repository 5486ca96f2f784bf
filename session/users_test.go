package session_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// login binds the browser's session to user under a new id.
func login(t testing.TB, b *browser, st *session.Store, user string) (id string, err error) {
	t.Helper()
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		if err = st.Bind(s, user); err != nil {
			return
		}
		err = st.Regenerate(w, r, s)
		id = session.ID(s)
	})
	return id, err
}

func TestSessionsOfAUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		n := 0
		st := open(t, rdb, session.Config{Label: func(*http.Request) string {
			n++
			return fmt.Sprint("device ", n, strings.Repeat("ä", 200))
		}})
		ada := []*browser{newBrowser(), newBrowser(), newBrowser()}
		eve := newBrowser()
		var ids []string
		for _, b := range ada {
			id, err := login(t, b, st, "ada")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		login(t, eve, st, "eve")
		list, err := st.Sessions(t.Context(), "ada")
		if err != nil || len(list) != 3 {
			t.Fatalf("Sessions = %+v, %v; want three", list, err)
		}
		for _, i := range list {
			if i.User != "ada" || !strings.HasPrefix(i.Label, "device ") || len(i.Label) > 200 || time.Until(i.Expires) < 29*time.Minute {
				t.Errorf("info %+v", i)
			}
		}
		// Another user's name opens nothing; nonsense is no error.
		for _, id := range []string{ids[0], "", "nonsense", strings.Repeat("x", 47)} {
			if ok, err := st.Revoke(t.Context(), "eve", id); ok || err != nil {
				t.Errorf("Revoke(eve, %q) = %v, %v; want false", id, ok, err)
			}
		}
		// Sign out everywhere else.
		if n, err := st.RevokeUser(t.Context(), "ada", ids[0]); n != 2 || err != nil {
			t.Errorf("RevokeUser = %d, %v; want 2", n, err)
		}
		if len(ada[0].values(t, st)) != 0 || ada[0].jar["s"] == "" {
			t.Errorf("values appeared")
		}
		list, _ = st.Sessions(t.Context(), "ada")
		if len(list) != 1 || list[0].ID != ids[0] {
			t.Errorf("Sessions = %+v; want the one that was spared", list)
		}
		// A new id stays with its user; unbinding ends that.
		before := ids[0]
		ada[0].do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := st.Regenerate(w, r, s); err != nil {
				t.Fatal(err)
			}
		})
		list, _ = st.Sessions(t.Context(), "ada")
		if len(list) != 1 || list[0].ID == before {
			t.Errorf("Sessions after Regenerate = %+v; want the new id", list)
		}
		ada[0].edit(t, st, func(s *sessions.Session) { st.Bind(s, "") })
		if list, _ = st.Sessions(t.Context(), "ada"); len(list) != 0 {
			t.Errorf("Sessions after unbinding = %+v; want none", list)
		}
		if n, _ := st.RevokeUser(t.Context(), "ada"); n != 0 {
			t.Errorf("RevokeUser ended %d sessions that are bound to nobody", n)
		}
		if list, _ = st.Sessions(t.Context(), "eve"); len(list) != 1 {
			t.Errorf("Sessions(eve) = %+v; want hers", list)
		}
		if err := st.Bind(sessions.NewSession(st, "s"), strings.Repeat("x", 513)); err == nil {
			t.Error("Bind of a long name = nil; want an error")
		}
	})
}

// Sessions that ended without telling the index leave it by and by.
func TestIndexHealsItself(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		var ids []string
		for range 3 {
			id, err := login(t, newBrowser(), st, "ada")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		index := rdb.Keys(t.Context(), session.DefaultPrefix+"user:*").Val()[0]
		for _, k := range rdb.Keys(t.Context(), session.DefaultPrefix+"{*").Val() {
			if !strings.HasSuffix(k, ids[2][4:]) {
				rdb.Del(t.Context(), k) // as if it had expired
			}
		}
		st.Sessions(t.Context(), "ada")
		if n := rdb.ZCard(t.Context(), index).Val(); n != 3 {
			t.Errorf("%d entries; young ones may belong to sessions about to be bound, want 3", n)
		}
		for _, id := range ids {
			rdb.ZAdd(t.Context(), index, redis.Z{Score: float64(redisNow(t, rdb).Add(-2 * time.Minute).UnixMilli()), Member: id})
		}
		if list, err := st.Sessions(t.Context(), "ada"); len(list) != 1 || err != nil {
			t.Errorf("Sessions = %+v, %v; want the living one", list, err)
		}
		if n := rdb.ZCard(t.Context(), index).Val(); n != 1 {
			t.Errorf("%d entries; want the living one", n)
		}
	})
}

// An index outlives its sessions: a server with shorter lifetimes takes nothing from it,
// and entries leave when their sessions have ended.
func TestIndexOutlivesItsSessions(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		long := open(t, rdb, session.Config{IdleTimeout: 24 * time.Hour, AbsoluteTimeout: 30 * 24 * time.Hour})
		short := open(t, rdb, session.Config{IdleTimeout: time.Minute, AbsoluteTimeout: time.Minute})
		b := newBrowser()
		old, err := login(t, b, long, "ada")
		if err != nil {
			t.Fatal(err)
		}
		index := rdb.Keys(t.Context(), session.DefaultPrefix+"user:*").Val()[0]
		rdb.ZAdd(t.Context(), index, redis.Z{Score: float64(redisNow(t, rdb).Add(-20 * 24 * time.Hour).UnixMilli()), Member: old})
		if _, err := login(t, newBrowser(), short, "ada"); err != nil {
			t.Fatal(err)
		}
		if d := rdb.TTL(t.Context(), index).Val(); d < 30*24*time.Hour {
			t.Errorf("the index lives for %v; want 30 days and some", d)
		}
		if n, err := short.RevokeUser(t.Context(), "ada"); n != 2 || err != nil || len(b.values(t, long)) != 0 {
			t.Errorf("RevokeUser = %d, %v; want both sessions ended", n, err)
		}
		// A MaxAge that raises the absolute lifetime of a bound session raises the index' too.
		raised := open(t, rdb, session.Config{})
		login(t, b, raised, "eve")
		index = rdb.Keys(t.Context(), session.DefaultPrefix+"user:*").Val()[0]
		b.edit(t, raised, func(s *sessions.Session) { s.Options.MaxAge = 90 * 86400 })
		if d := rdb.TTL(t.Context(), index).Val(); d < 90*24*time.Hour {
			t.Errorf("the index lives for %v; want 90 days and some", d)
		}
		// Entries without sessions are dropped as the index grows, not by age.
		unbounded := open(t, rdb, session.Config{MaxPerUser: -1})
		for n := rdb.ZCard(t.Context(), index).Val(); n < 127; n++ {
			rdb.ZAdd(t.Context(), index, redis.Z{Score: 3, Member: fmt.Sprintf("AAB.%043d", n)})
		}
		login(t, newBrowser(), unbounded, "eve")
		unbounded.Close()
		if n := rdb.ZCard(t.Context(), index).Val(); n > 4 {
			t.Errorf("%d entries at the 128th login; want those of living sessions", n)
		}
	})
}

func TestMaxPerUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var revoked []session.Event
		hooks := session.Hooks{Revoked: func(_ context.Context, e session.Event) { revoked = append(revoked, e) }}
		st := open(t, rdb, session.Config{MaxPerUser: 2, Hooks: hooks})
		browsers := []*browser{newBrowser(), newBrowser(), newBrowser()}
		var first string
		for i, b := range browsers {
			b.edit(t, st, set("i", i))
			id, err := login(t, b, st, "ada")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = id
			}
			for at := rdb.Time(t.Context()).Val(); !rdb.Time(t.Context()).Val().After(at.Add(time.Millisecond)); {
				runtime.Gosched() // last seen is in milliseconds
			}
		}
		if len(browsers[0].values(t, st)) != 0 || len(browsers[1].values(t, st)) != 1 || len(browsers[2].values(t, st)) != 1 {
			t.Error("the third login did not end the oldest session alone")
		}
		if len(revoked) != 1 || revoked[0].ID != first || revoked[0].User != "ada" {
			t.Errorf("revoked %+v; want the first", revoked)
		}
		if _, err := login(t, browsers[2], st, "ada"); err != nil || len(browsers[1].values(t, st)) != 1 {
			t.Errorf("the same session again = %v; want no other to end", err)
		}
		strict := open(t, rdb, session.Config{MaxPerUser: 2, AtLimit: session.RefuseNew})
		b := newBrowser()
		b.edit(t, strict, set("x", 1))
		if _, err := login(t, b, strict, "ada"); !errors.Is(err, session.ErrTooManySessions) {
			t.Errorf("a third session = %v; want ErrTooManySessions", err)
		}
		if got := b.values(t, strict); len(got) != 1 {
			t.Errorf("the refused session holds %v; want it as it was", got)
		}
	})
}

func TestCountedCommands(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		_, cluster := rdb.(*redis.ClusterClient)
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		for range 2 { // the first time scripts and topology are learnt
			login(t, b, st, "ada")
			login(t, newBrowser(), st, "ada")
			b.edit(t, st, set("x", 1))
			st.RevokeUser(t.Context(), "ada")
			b.jar = map[string]string{}
		}
		trips := func(what string, want int, f func(w http.ResponseWriter, r *http.Request, s *sessions.Session)) {
			t.Helper()
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, err := st.Get(r, "s")
				if err != nil {
					t.Fatal(err)
				}
				if n := redistest.Count(t, rdb, func() { f(w, r, s) }); n.RoundTrips != want {
					t.Errorf("%s: %+v; want %d round trips", what, n, want)
				}
			})
		}
		trips("create", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) {
			s.Values["x"] = 1
			st.Commit(w, r, s)
		})
		trips("load", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) { st.New(r, "s") })
		trips("unchanged", 0, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) { st.Commit(w, r, s) })
		trips("changed", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) {
			s.Values["x"] = 2
			st.Commit(w, r, s)
		})
		trips("regenerate with a change", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) {
			s.Values["x"] = 3
			if err := st.Regenerate(w, r, s); err != nil {
				t.Fatal(err)
			}
		})
		trips("destroy", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) { st.Destroy(w, r, s) })
		if !cluster {
			trips("login: index and new id", 1, func(w http.ResponseWriter, r *http.Request, s *sessions.Session) {
				st.Bind(s, "ada")
				st.Regenerate(w, r, s)
			})
			for range 9 {
				login(t, newBrowser(), st, "ada")
			}
			trips("list ten", 2, func(http.ResponseWriter, *http.Request, *sessions.Session) {
				if list, err := st.Sessions(t.Context(), "ada"); len(list) != 10 || err != nil {
					t.Errorf("Sessions = %d, %v; want 10", len(list), err)
				}
			})
			trips("revoke all ten", 3, func(http.ResponseWriter, *http.Request, *sessions.Session) {
				if n, err := st.RevokeUser(t.Context(), "ada"); n != 10 || err != nil {
					t.Errorf("RevokeUser = %d, %v; want 10", n, err)
				}
			})
		}
	})
}

// Clear takes this store's sessions and nothing else; a prefix with the marks of
// patterns is a prefix like any other.
func TestClear(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		mine := open(t, rdb, session.Config{Prefix: "my[*]?:"})
		other := open(t, rdb, session.Config{Prefix: "my*xx:"})
		for range 5 {
			newBrowser().edit(t, mine, set("x", 1))
		}
		login(t, newBrowser(), mine, "ada")
		b := newBrowser()
		b.edit(t, other, set("x", 1))
		rdb.Set(t.Context(), "my[*]?:something", 1, 0)
		if n, err := mine.Len(t.Context()); n != 6 || err != nil {
			t.Errorf("Len = %d, %v; want 6", n, err)
		}
		for range mine.All(t.Context()) {
			break // an iterator that is not finished leaves nothing behind
		}
		if n, err := mine.Clear(t.Context()); n != 6 || err != nil {
			t.Errorf("Clear = %d, %v; want 6", n, err)
		}
		if n := len(rdb.Keys(t.Context(), "*").Val()); n != 2 || len(b.values(t, other)) != 1 {
			t.Errorf("%d keys left; want the other store's session and the foreign key", n)
		}
	})
}

func TestAllOnEveryMaster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb := c.Client()
	st := open(t, rdb, session.Config{Timeout: 5 * time.Second})
	const n = 60
	for i := range n {
		b := newBrowser()
		b.edit(t, st, set("i", i))
		if _, err := login(t, b, st, fmt.Sprint("user", i%3)); err != nil {
			t.Fatal(err)
		}
	}
	users := map[string]int{}
	for info, err := range st.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		users[info.User]++
	}
	if len(users) != 3 || users["user0"] != n/3 {
		t.Errorf("All found %v; want %d sessions of three users", users, n)
	}
	if got, err := st.RevokeUser(t.Context(), "user1"); got != n/3 || err != nil {
		t.Errorf("RevokeUser = %d, %v; want %d", got, err, n/3)
	}
	if got, err := st.Len(t.Context()); got != n*2/3 || err != nil {
		t.Errorf("Len = %d, %v; want %d", got, err, n*2/3)
	}
	if got, err := st.Clear(t.Context()); got != n*2/3 || err != nil {
		t.Errorf("Clear = %d, %v; want %d", got, err, n*2/3)
	}
}

// A value that both changed is refused if the store is told to detect that.
func TestDetectConflicts(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, cfg := range []session.Config{{DetectConflicts: true}, {DetectConflicts: true, EncryptionKeys: [][]byte{key(1)}}} {
			st := open(t, rdb, cfg)
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["a"], s.Values["b"] = 1, 1 })
			for name, row := range map[string]struct {
				mine, theirs func(*sessions.Session)
				want         error
			}{
				"different values": {set("a", 2), set("b", 2), nil},
				"the same value":   {set("a", 3), set("a", 4), session.ErrConflict},
				"a new value":      {set("n", 1), set("n", 2), session.ErrConflict},
				"a deleted value":  {func(s *sessions.Session) { delete(s.Values, "b") }, set("b", 9), session.ErrConflict},
			} {
				b.do(func(w http.ResponseWriter, r *http.Request) {
					s, _ := st.Get(r, "s")
					b.clone().edit(t, st, row.theirs)
					row.mine(s)
					if err := s.Save(r, w); !errors.Is(err, row.want) {
						t.Errorf("%s: Save = %v; want %v", name, err, row.want)
					}
				})
				b.edit(t, st, func(s *sessions.Session) { s.Values["b"] = 1; delete(s.Values, "n") })
			}
		}
	})
}

func TestHooksAndStats(t *testing.T) {
	_, rdb := redistest.Mini(t)
	var log []string
	note := func(what string) func(context.Context, session.Event) {
		return func(_ context.Context, e session.Event) {
			log = append(log, what)
			if e.ID == "" || e.Name != "s" {
				t.Errorf("%s: %+v; want name and id", what, e)
			}
			panic("a hook's panic harms nobody")
		}
	}
	calls := map[string]int{}
	st := open(t, rdb, session.Config{Hooks: session.Hooks{
		Created: note("created"), Destroyed: note("destroyed"), Regenerated: note("regenerated"),
		Call: func(c session.Call) { calls[c.Op]++ },
	}})
	b := newBrowser()
	b.edit(t, st, set("x", 1))
	login(t, b, st, "ada")
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		st.Destroy(w, r, s)
		st.Destroy(w, r, s)
	})
	if fmt.Sprint(log) != "[created regenerated destroyed]" {
		t.Errorf("hooks: %v", log)
	}
	if calls["load"] != 2 || calls["create"] != 1 || calls["regenerate"] != 1 || calls["destroy"] != 1 {
		t.Errorf("calls: %v", calls)
	}
	if n := st.Stats(); n.Loads != 2 || n.Hits != 2 || n.Created != 1 || n.Regenerated != 1 || n.Destroyed != 1 {
		t.Errorf("Stats = %+v", n)
	}
}
