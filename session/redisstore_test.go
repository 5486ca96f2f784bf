package session_test

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/rbcervilla/redisstore/v9"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// account and role are what an app may register.
type account struct {
	Name  string
	Roles []string
}
type role string

func init() {
	gob.Register(&account{})
	gob.Register(role(""))
	gob.Register([2]string{})
}

// jsonSerializer is an app's own, with a sign of what it was given.
type jsonSerializer struct{}

func (jsonSerializer) Serialize(s *sessions.Session) ([]byte, error) {
	m := map[string]any{}
	for k, v := range s.Values {
		m[fmt.Sprint(k)] = v
	}
	return json.Marshal(m)
}

func (jsonSerializer) Deserialize(b []byte, s *sessions.Session) error {
	m := map[string]any{}
	err := json.Unmarshal(b, &m)
	for k, v := range m {
		s.Values[k] = v
	}
	return err
}

func oldStore(t testing.TB, rdb redis.UniversalClient) *redisstore.RedisStore {
	t.Helper()
	st, err := redisstore.NewRedisStore(t.Context(), rdb)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func dropIn(t testing.TB, rdb redis.UniversalClient) *session.RedisStore {
	t.Helper()
	st, err := session.NewRedisStore(t.Context(), rdb)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Servers with the old and the new library work on the same sessions: either logs
// in, updates and logs out what the other wrote.
func TestSideBySideWithRedisstore(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, serializer := range []redisstore.SessionSerializer{redisstore.GobSerializer{}, jsonSerializer{}} {
			before, after := oldStore(t, rdb), dropIn(t, rdb)
			before.Serializer(serializer)
			after.Serializer(serializer)
			before.KeyPrefix("app:")
			after.KeyPrefix("app:")
			stores := []sessions.Store{before, after}
			for login := range 2 {
				for logout := range 2 {
					b := newBrowser()
					b.edit(t, stores[login], set("user", "ada"))
					for i := range 6 {
						st := stores[i%2]
						b.edit(t, st, func(s *sessions.Session) {
							if s.IsNew || s.Values["user"] != "ada" {
								t.Fatalf("%T, login by %d, step %d: IsNew %v, Values %v", serializer, login, i, s.IsNew, s.Values)
							}
							if i > 0 && s.Values[fmt.Sprint("step", i-1)] == nil {
								t.Errorf("%T, login by %d, step %d: the other's change is missing: %v", serializer, login, i, s.Values)
							}
							s.Values[fmt.Sprint("step", i)] = "done"
						})
					}
					stolen := b.clone()
					b.edit(t, stores[logout], func(s *sessions.Session) { s.Options.MaxAge = -1 })
					for i, st := range stores {
						if got := stolen.values(t, st); len(got) != 0 {
							t.Errorf("%T, logout by %d: store %d still opens %v", serializer, logout, i, got)
						}
					}
				}
			}
			if keys, _ := rdb.Keys(t.Context(), "*").Result(); len(keys) != 0 {
				t.Errorf("keys left: %q", keys)
			}
		}
	})
}

// Once the old servers are gone a session moves to a hash with its next save,
// under the same cookie, with all its Go types.
func TestAdoption(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var adopted []session.Event
		before := oldStore(t, rdb)
		st := open(t, rdb, session.Config{
			Redisstore: &session.RedisstoreConfig{Until: time.Now().Add(-time.Hour)},
			Hooks:      session.Hooks{Adopted: func(_ context.Context, e session.Event) { adopted = append(adopted, e) }},
		})
		b := newBrowser()
		b.edit(t, before, func(s *sessions.Session) {
			s.Values["acc"] = &account{"ada", []string{"admin"}}
			s.Values[role("r")] = 7
			s.Values[3] = "three"
			s.AddFlash("hello")
		})
		cookie := b.jar["s"]
		check := func(got map[any]any) {
			t.Helper()
			if a, _ := got["acc"].(*account); a == nil || a.Name != "ada" || got[role("r")] != 7 || got[3] != "three" || fmt.Sprint(got["_flash"]) != "[hello]" {
				t.Errorf("Values = %#v", got)
			}
		}
		check(b.values(t, st))
		if n, _ := st.Len(t.Context()); n != 0 {
			t.Errorf("a mere load moved the session")
		}
		b.edit(t, st, set("new", true))
		check(b.values(t, st))
		if b.jar["s"] != cookie || len(adopted) != 1 || st.Stats().Adopted != 1 {
			t.Errorf("cookie changed: %v; adopted %v; want the same cookie and one", b.jar["s"] != cookie, adopted)
		}
		if n, _ := rdb.Exists(t.Context(), "session:"+cookie).Result(); n != 0 {
			t.Error("the old copy is still there")
		}
		if n, _ := st.Len(t.Context()); n != 1 {
			t.Errorf("Len = %d; want 1", n)
		}
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := errors.Join(st.Bind(s, "ada"), st.Regenerate(w, r, s)); err != nil {
				t.Fatal(err)
			}
		})
		check(b.values(t, st))
		if b.jar["s"] == cookie {
			t.Error("Regenerate kept the cookie")
		}
		b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		if n, _ := st.Len(t.Context()); n != 0 {
			t.Errorf("Len after the logout = %d; want 0", n)
		}
	})
}

// Requests that adopt the same session at once lose nothing, and a logout by an
// old server among them is final.
func TestConcurrentAdoption(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, logout := range []bool{false, true} {
			for range 5 {
				before := oldStore(t, rdb)
				st := open(t, rdb, session.Config{
					Timeout:    20 * time.Second,
					Redisstore: &session.RedisstoreConfig{Until: time.Now().Add(-time.Hour)},
				})
				b := newBrowser()
				b.edit(t, before, set("user", "ada"))
				var wg sync.WaitGroup
				const n = 20
				for i := range n {
					c := b.clone()
					wg.Go(func() {
						c.do(func(w http.ResponseWriter, r *http.Request) {
							s, err := st.Get(r, "s")
							if err != nil {
								t.Error(err)
							}
							if s.IsNew {
								return
							}
							s.Values[fmt.Sprint("k", i)] = i
							if err = s.Save(r, w); err != nil && !(logout && errors.Is(err, session.ErrSessionGone)) {
								t.Errorf("Save = %v", err)
							}
						})
					})
				}
				if logout {
					c := b.clone()
					wg.Go(func() {
						c.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
					})
				}
				wg.Wait()
				got := b.values(t, st)
				if logout && len(got) != 0 {
					t.Fatalf("back after the logout: %v", got)
				}
				if !logout && len(got) != n+1 {
					t.Fatalf("%d values; want %d", len(got), n+1)
				}
			}
		}
	})
}

// The drop-in shares one string with old servers and still loses nothing.
func TestDropInMerges(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := dropIn(t, rdb)
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["a"], s.Values["gone"] = 1, 1; s.AddFlash("one") })
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			b.clone().edit(t, st, func(s *sessions.Session) { s.Values["b"] = 2; s.AddFlash("two") })
			s.Values["c"] = 3
			delete(s.Values, "gone")
			s.Flashes()
			s.AddFlash("three")
			if err := s.Save(r, w); err != nil {
				t.Fatal(err)
			}
		})
		got := b.values(t, st)
		if len(got) != 4 || got["a"] != 1 || got["b"] != 2 || got["c"] != 3 || fmt.Sprint(got["_flash"]) != "[two three]" {
			t.Errorf("Values = %v; want both requests' changes", got)
		}
		old := b.clone()
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if err := st.Bind(s, "u"); !errors.Is(err, session.ErrLayout) {
				t.Errorf("Bind = %v; want ErrLayout", err)
			}
			if err := st.Regenerate(w, r, s); err != nil {
				t.Fatal(err)
			}
			if wrote, err := st.Commit(w, r, s); wrote || err != nil {
				t.Errorf("Commit of an unchanged session = %v, %v; want false", wrote, err)
			}
		})
		if len(old.values(t, st)) != 0 || len(b.values(t, st)) != 4 {
			t.Errorf("Regenerate: old cookie opens %v, new one %v", old.values(t, st), b.values(t, st))
		}
		if len(b.values(t, oldStore(t, rdb))) != 4 {
			t.Error("an old server can't read the regenerated session")
		}
	})
}

// The options, and that an id which is in use is never given out twice.
func TestDropInSetters(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := dropIn(t, rdb)
		st.Options(sessions.Options{Path: "/app", MaxAge: 3600, HttpOnly: true})
		st.KeyPrefix("app:session:")
		st.KeyGen(func() (string, error) { return "always-the-same-id", nil })
		b := newBrowser()
		h := b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.New(r, "s")
			s.Values["x"] = 1
			if err := s.Save(r, w); err != nil {
				t.Fatal(err)
			}
		})
		if c := h.Get("Set-Cookie"); !strings.HasPrefix(c, "s=always-the-same-id; Path=/app; Expires=") || !strings.Contains(c, "Max-Age=3600") {
			t.Errorf("Set-Cookie = %q", c)
		}
		if d, err := rdb.TTL(t.Context(), "app:session:always-the-same-id").Result(); err != nil || !about(d, time.Hour) {
			t.Errorf("TTL = %v, %v; want 1h", d, err)
		}
		if err := newBrowser().try(st, set("x", 2)); !errors.Is(err, session.ErrConflict) {
			t.Errorf("Save of another session under the same id = %v; want ErrConflict", err)
		}
		if got := b.values(t, st); got["x"] != 1 {
			t.Errorf("Values = %v; want the first user's", got)
		}
		if err := st.Close(); err != nil || rdb.Ping(t.Context()).Err() != nil {
			t.Error("Close closed the client, which is the caller's")
		}
	})
}
