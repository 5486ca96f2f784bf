package session_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// keyOf returns the key in Redis of the browser's session.
func keyOf(t testing.TB, b *browser, st *session.Store) string {
	t.Helper()
	tag, hash, _ := strings.Cut(session.ID(b.visit(t, st).s), ".")
	return session.DefaultPrefix + "{" + tag + "}:" + hash
}

// Who can write to Redis can't move what is encrypted to another session: not a value, not
// all of a session, not by an id that was regenerated since.
func TestEncryptedValuesStayInTheirSession(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, keys := range [][][]byte{nil, {key(9)}} {
			st := open(t, rdb, session.Config{Keys: keys, EncryptionKeys: [][]byte{key(1)}})
			ctx := t.Context()
			victim, own := newBrowser(), newBrowser()
			victim.edit(t, st, func(s *sessions.Session) {
				s.Values["user"], s.Values["roles"] = "admin", []any{"root"}
			})
			own.edit(t, st, set("user", "eve"))
			all := rdb.HGetAll(ctx, keyOf(t, victim, st)).Val()
			ownKey := keyOf(t, own, st)
			before := rdb.HGetAll(ctx, ownKey).Val()
			for what, fields := range map[string]map[string]string{
				"a value": {"suser": all["suser"]},
				"all":     all,
			} {
				rdb.HSet(ctx, ownKey, fields)
				if got := own.values(t, st); got["user"] == "admin" || got["roles"] != nil {
					t.Errorf("after %s of another session was copied: %v", what, got)
				}
				rdb.Del(ctx, ownKey)
				rdb.HSet(ctx, ownKey, before)
			}
			// An id that was planted, and its session as it was before the login.
			victim = own.clone()
			victim.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				s.Values["user"] = "admin"
				s.Values["x"] = 1
				if err := st.Regenerate(w, r, s); err != nil {
					t.Fatal(err)
				}
			})
			after := rdb.HGetAll(ctx, keyOf(t, victim, st)).Val()
			for _, withBond := range []bool{false, true} {
				stolen := maps.Clone(after)
				if !withBond {
					stolen["e"] = before["e"]
				}
				rdb.Del(ctx, ownKey)
				rdb.HSet(ctx, ownKey, stolen)
				if got := own.values(t, st); len(got) != 0 {
					t.Errorf("what a login has stored opens under the old id: %v", got)
				}
			}
		}
	})
}

// A new id keeps what concurrent requests save under the old one, encrypted or not, and
// writes no stale value over it.
func TestRegenerateEncryptedKeepsConcurrentChanges(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(1)}})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) {
			s.Values["a"], s.Values["b"], s.Values["c"] = 1, 1, 1
			s.Values[[2]string{"k", "l"}] = 1
			s.AddFlash("one")
			s.AddFlash("two")
		})
		for round := range 3 {
			v := b.visit(t, st)
			b.clone().edit(t, st, func(s *sessions.Session) {
				s.Values["b"], s.Values["new"] = 2+round, round
				delete(s.Values, "c")
				s.AddFlash(fmt.Sprint("late", round))
			})
			v.s.Values["a"] = 2 + round
			if err := st.Regenerate(v.w, v.r, v.s); err != nil {
				t.Fatal(err)
			}
			b.done(v)
			v.s.Values["after"] = round // the base is what is stored
			if err := st.Save(v.r, v.w, v.s); err != nil {
				t.Fatal(err)
			}
			got := b.values(t, st)
			if got["a"] != 2+round || got["b"] != 2+round || got["new"] != round || got["c"] != nil || got["after"] != round ||
				got[[2]string{"k", "l"}] != 1 || len(got["_flash"].([]any)) != 3+round {
				t.Errorf("round %d: %v; want all changes", round, got)
			}
		}
		if n := st.Stats().Undecodable; n != 0 {
			t.Errorf("%d values could not be decoded", n)
		}
	})
}

// What others store between the new ids of one request is read under each of them, also
// under more of them than a session keeps bonds.
func TestRegenerateEncryptedAgain(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(1)}})
		b := newBrowser()
		b.edit(t, st, set("first", 1))
		v := b.visit(t, st)
		b.clone().edit(t, st, set("other", 2))
		for range 40 {
			if err := st.Regenerate(v.w, v.r, v.s); err != nil {
				t.Fatal(err)
			}
		}
		b.done(v)
		if got := b.values(t, st); got["first"] != 1 || got["other"] != 2 || st.Stats().Undecodable != 0 {
			t.Errorf("%v, %d undecodable; want what both requests stored", got, st.Stats().Undecodable)
		}
	})
}

// The deploys that rotate a key, and those that begin to use one, sign nobody out and lose
// no value, in either direction.
func TestStagedKeys(t *testing.T) {
	k1, k2 := key(1), key(2)
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, stages := range map[string][]session.Config{
			"rotate signatures":  {{Keys: [][]byte{k1}}, {Keys: [][]byte{k1, k2}}, {Keys: [][]byte{k2, k1}}, {Keys: [][]byte{k2}}},
			"begin to sign":      {{}, {Keys: [][]byte{k1}, SendUnsigned: true}, {Keys: [][]byte{k1}, AcceptUnsigned: true}, {Keys: [][]byte{k1}}},
			"rotate encryption":  {{EncryptionKeys: [][]byte{k1}}, {EncryptionKeys: [][]byte{k1, k2}}, {EncryptionKeys: [][]byte{k2, k1}}, {EncryptionKeys: [][]byte{k2}}},
			"begin to encrypt":   {{}, {EncryptionKeys: [][]byte{k1}, StorePlaintext: true}, {EncryptionKeys: [][]byte{k1}, AcceptPlaintext: true}, {EncryptionKeys: [][]byte{k1}}},
			"both at the second": {{}, {Keys: [][]byte{k1}, SendUnsigned: true, EncryptionKeys: [][]byte{k2}, StorePlaintext: true}, {Keys: [][]byte{k1}, AcceptUnsigned: true, EncryptionKeys: [][]byte{k2}, AcceptPlaintext: true}, {Keys: [][]byte{k1}, EncryptionKeys: [][]byte{k2}}},
		} {
			for _, back := range []bool{false, true} {
				var stores []*session.Store
				for _, cfg := range stages {
					cfg.AbsoluteTimeout = session.DefaultAbsoluteTimeout
					stores = append(stores, open(t, rdb, cfg))
				}
				if back {
					for i, j := 0, len(stores)-1; i < j; i, j = i+1, j-1 {
						stores[i], stores[j] = stores[j], stores[i]
					}
				}
				b := newBrowser()
				n := 0
				b.edit(t, stores[0], func(s *sessions.Session) { s.Values["n"], s.Values["kept"] = n, "as it was" })
				for i := 1; i < len(stores); i++ { // both stages side by side
					for visit, st := range []*session.Store{stores[i-1], stores[i], stores[i-1], stores[i], stores[i]} {
						v := b.visit(t, st)
						if v.s.IsNew || v.s.Values["n"] != n || v.s.Values["kept"] != "as it was" {
							t.Fatalf("%s, back %v, stage %d, visit %d: new %v, %v; want n = %d", name, back, i, visit, v.s.IsNew, v.s.Values, n)
						}
						n++
						v.s.Values["n"] = n
						var err error
						if visit%2 == 1 {
							err = st.Regenerate(v.w, v.r, v.s)
						} else {
							_, err = st.Commit(v.w, v.r, v.s)
						}
						if err != nil {
							t.Fatal(err)
						}
						b.done(v)
					}
				}
			}
		}
	})
}

// Keys that repeat themselves are refused, and so are modes without a key.
func TestWeakKeys(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for _, weak := range [][]byte{make([]byte, 32), []byte("changeme-changeme"), []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("0123456789abcdef", 2))} {
		if _, err := session.New(rdb, session.Config{Keys: [][]byte{key(1), weak}}); err == nil || !strings.Contains(err.Error(), "Keys[1] repeats") {
			t.Errorf("Keys %q = %v; want it refused", weak, err)
		}
		if len(weak) == 32 {
			if _, err := session.New(rdb, session.Config{EncryptionKeys: [][]byte{weak}}); err == nil || !strings.Contains(err.Error(), "EncryptionKeys[0] repeats") {
				t.Errorf("EncryptionKeys %q = %v; want it refused", weak, err)
			}
		}
	}
	_, err := session.New(rdb, session.Config{SendUnsigned: true, StorePlaintext: true})
	if err == nil || !strings.Contains(err.Error(), "SendUnsigned") || !strings.Contains(err.Error(), "StorePlaintext") {
		t.Errorf("New = %v; want both refused without keys", err)
	}
}

// A session that begins to hold encrypted values while others have it loaded keeps what all
// of them store.
func TestFirstEncryptedValueBesideOthers(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, detect := range []bool{false, true} {
			plain := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(1), key(2)}, StorePlaintext: true, DetectConflicts: detect})
			seals := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(1), key(2)}, AcceptPlaintext: true, DetectConflicts: detect})
			rotated := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(2), key(1)}, AcceptPlaintext: true, DetectConflicts: detect})
			save := func(st *session.Store, v *visit) error { return st.Save(v.r, v.w, v.s) }
			renew := func(st *session.Store, v *visit) error { return st.Regenerate(v.w, v.r, v.s) }
			for name, c := range map[string]struct {
				begins, first, second *session.Store
				then                  func(*session.Store, *visit) error
			}{
				"then a new id":                       {plain, seals, seals, renew},
				"then a new id, stored plainly":       {plain, seals, plain, renew},
				"then another encrypted value":        {plain, seals, seals, save},
				"then a plain value":                  {plain, seals, plain, save},
				"then a new id under the next key":    {plain, seals, rotated, renew},
				"then a value under the next key":     {plain, seals, rotated, save},
				"under the next key, then a new id":   {seals, rotated, seals, renew},
				"under the next key, then the former": {seals, rotated, seals, save},
			} {
				b := newBrowser()
				b.edit(t, c.begins, func(s *sessions.Session) { s.Values["kept"] = "as it was" })
				one, two := b.visit(t, c.first), b.visit(t, c.second)
				one.s.Values["one"] = 1
				one.s.AddFlash("first")
				two.s.Values["two"] = 2
				if err := save(c.first, one); err != nil {
					t.Fatal(err)
				}
				if err := c.then(c.second, two); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				b.done(two)
				two.s.Values["three"] = 3
				if err := save(c.second, two); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, st := range []*session.Store{seals, rotated} {
					got := b.values(t, st)
					if got["kept"] != "as it was" || got["one"] != 1 || got["two"] != 2 || got["three"] != 3 || len(got) != 5 {
						t.Errorf("%s, DetectConflicts %v: %v; want all that was stored", name, detect, got)
					}
				}
			}
		}
	})
}
