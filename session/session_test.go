package session_test

import (
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

func TestRoundTrip(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Keys: [][]byte{[]byte("0123456789abcdef")}})
		b := newBrowser()
		when := time.Now()
		b.edit(t, st, func(s *sessions.Session) {
			if !s.IsNew || s.ID != "" {
				t.Errorf("new session: IsNew %v, ID %q; want true and none", s.IsNew, s.ID)
			}
			s.Values["user"] = int64(42)
			s.Values[7] = "seven"
			s.Values["when"] = when
			s.Values["tags"] = []string{"a", "b"}
		})
		got := b.values(t, st)
		if len(got) != 4 || got["user"] != int64(42) || got[7] != "seven" || !reflect.DeepEqual(got["tags"], []string{"a", "b"}) ||
			!got["when"].(time.Time).Equal(when) {
			t.Errorf("Values = %#v", got)
		}
	})
}

func TestCommitWritesOnlyWhatChanged(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		commit := func(change func(*sessions.Session)) (wrote bool, n redistest.Commands) {
			n = redistest.Count(t, rdb, func() {
				b.do(func(w http.ResponseWriter, r *http.Request) {
					s, err := st.Get(r, "s")
					if err != nil {
						t.Fatal(err)
					}
					if change != nil {
						change(s)
					}
					if wrote, err = st.Commit(w, r, s); err != nil {
						t.Fatalf("Commit = %v", err)
					}
				})
			})
			return wrote, n
		}
		if wrote, n := commit(nil); wrote || n.Total != 0 {
			t.Errorf("empty new session: cookie %v, %+v; want neither", wrote, n)
		}
		if wrote, _ := commit(set("a", 1)); !wrote {
			t.Error("new session: no cookie")
		}
		commit(set("a", 1.5)) // so that the server knows the script
		commit(set("a", 1))
		if wrote, n := commit(nil); wrote || n.RoundTrips != 1 || n.By["evalsha"]+n.By["eval"] != 0 {
			t.Errorf("unchanged session: cookie %v, %+v; want one round trip, no write", wrote, n)
		}
		if wrote, n := commit(set("b", 2)); wrote || n.RoundTrips != 2 {
			t.Errorf("changed session: cookie %v, %+v; want a load and a save", wrote, n)
		}
		if got := b.values(t, st); got["a"] != 1 || got["b"] != 2 {
			t.Errorf("Values = %v", got)
		}
	})
}

func TestRegenerateDestroyRevoke(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Label: func(*http.Request) string { return "a browser" }})
		b := newBrowser()
		b.edit(t, st, set("cart", "tea"))
		before := b.clone()
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := st.Bind(s, "42"); err != nil {
				t.Fatal(err)
			}
			s.Values["user"] = 42
			if err := st.Regenerate(w, r, s); err != nil {
				t.Fatalf("Regenerate = %v", err)
			}
		})
		if got := before.values(t, st); len(got) != 0 {
			t.Errorf("old cookie still opens %v", got)
		}
		if got := b.values(t, st); got["cart"] != "tea" || got["user"] != 42 {
			t.Errorf("Values after Regenerate = %v", got)
		}
		list, err := st.Sessions(t.Context(), "42")
		if err != nil || len(list) != 1 || list[0].User != "42" || list[0].Label != "a browser" || time.Since(list[0].Created) > time.Minute {
			t.Fatalf("Sessions = %+v, %v", list, err)
		}
		if ok, err := st.Revoke(t.Context(), "43", list[0].ID); ok || err != nil {
			t.Errorf("Revoke by another user = %v, %v; want false", ok, err)
		}
		if n, err := st.RevokeUser(t.Context(), "42", list[0].ID); n != 0 || err != nil {
			t.Errorf("RevokeUser except it = %d, %v; want 0", n, err)
		}
		if ok, err := st.Revoke(t.Context(), "42", list[0].ID); !ok || err != nil {
			t.Errorf("Revoke = %v, %v; want true", ok, err)
		}
		if got := b.values(t, st); len(got) != 0 {
			t.Errorf("revoked session still opens %v", got)
		}
		b.edit(t, st, set("x", 1))
		c := b.clone()
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := st.Destroy(w, r, s); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
				t.Errorf("Destroy sent %q", w.Header()["Set-Cookie"])
			}
		})
		if got := c.values(t, st); len(got) != 0 {
			t.Errorf("destroyed session still opens %v", got)
		}
	})
}

func TestGoneSessionStaysGone(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		b.do(func(w http.ResponseWriter, r *http.Request) {
			slow, _ := st.Get(r, "s")
			b.clone().do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				if err := st.Destroy(w, r, s); err != nil {
					t.Fatal(err)
				}
			})
			slow.Values["y"] = 2
			if err := slow.Save(r, w); !errors.Is(err, session.ErrSessionGone) || w.Header().Get("Set-Cookie") != "" {
				t.Errorf("Save = %v with cookie %q; want ErrSessionGone and none", err, w.Header().Get("Set-Cookie"))
			}
		})
		if n, err := st.Len(t.Context()); n != 0 || err != nil {
			t.Errorf("Len = %d, %v; want 0", n, err)
		}
	})
}
