package session_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// The contract of gorilla/sessions, as its apps use it.
func TestGorillaContract(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		newReq := func() *http.Request { return httptest.NewRequest("GET", "/", nil) }

		t.Run("Get caches, New does not", func(t *testing.T) {
			r := newReq()
			a, _ := st.Get(r, "a")
			again, _ := st.Get(r, "a")
			other, _ := st.Get(r, "b")
			fresh, _ := st.New(r, "a")
			if a != again || a == other || a == fresh || a.Name() != "a" || a.Store() != sessions.Store(st) {
				t.Error("Get does not return the registry's session")
			}
		})
		t.Run("several sessions in one request", func(t *testing.T) {
			b := newBrowser()
			b.do(func(w http.ResponseWriter, r *http.Request) {
				for _, name := range []string{"a", "b", "c"} {
					s, _ := st.Get(r, name)
					s.Values["name"] = name
				}
				if err := sessions.Save(r, w); err != nil {
					t.Fatal(err)
				}
			})
			b.do(func(w http.ResponseWriter, r *http.Request) {
				for _, name := range []string{"a", "b", "c"} {
					if s, err := st.Get(r, name); err != nil || s.IsNew || s.Values["name"] != name {
						t.Errorf("session %q: %v, %v", name, s.Values, err)
					}
				}
			})
		})
		t.Run("a name that no cookie can have", func(t *testing.T) {
			r, w := newReq(), httptest.NewRecorder()
			s, err := st.New(r, "my session")
			if s == nil || err != nil {
				t.Fatalf("New = %v, %v", s, err)
			}
			s.Values["x"] = 1
			if err := s.Save(r, w); err != nil {
				t.Errorf("Save = %v; want nil", err)
			}
		})
		t.Run("options are the session's own", func(t *testing.T) {
			r, w := newReq(), httptest.NewRecorder()
			s, _ := st.New(r, "s")
			s.Options.Path = "/mutated"
			s.Options = &sessions.Options{Domain: "example.com", MaxAge: 60}
			s.Save(r, w)
			c := w.Header().Get("Set-Cookie")
			if strings.Contains(c, "Path=") || !strings.Contains(c, "; Domain=example.com;") || !strings.Contains(c, "Max-Age=60") || strings.Contains(c, "Secure") {
				t.Errorf("Set-Cookie = %q; want the replaced options and nothing filled in", c)
			}
			if again, _ := st.New(r, "s"); again.Options.Path != "/" || !again.Options.Secure {
				t.Errorf("options of the next session = %+v", again.Options)
			}
			s.Options = nil
			s.Values["y"] = 1
			if err := s.Save(r, w); err != nil {
				t.Errorf("Save without Options = %v", err)
			}
		})
		t.Run("explicit Save always sends the cookie", func(t *testing.T) {
			b := newBrowser()
			b.edit(t, st, set("x", 1))
			for range 2 {
				h := b.do(func(w http.ResponseWriter, r *http.Request) {
					s, _ := st.Get(r, "s")
					s.Save(r, w)
					s.Save(r, w)
				})
				if len(h["Set-Cookie"]) != 1 {
					t.Errorf("Set-Cookie = %q; want one", h["Set-Cookie"])
				}
			}
		})
		t.Run("Values replaced, and saved through another request", func(t *testing.T) {
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["a"], s.Values["b"] = 1, 2 })
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				s.Values = map[any]any{"c": 3}
				clone := r.WithContext(context.WithValue(context.Background(), role("k"), 1))
				if err := s.Save(clone, w); err != nil {
					t.Fatal(err)
				}
			})
			if got := b.values(t, st); !reflect.DeepEqual(got, map[any]any{"c": 3}) {
				t.Errorf("Values = %v; want only c", got)
			}
		})
		t.Run("New and Save without Get, as goth does", func(t *testing.T) {
			b := newBrowser()
			for i := range 2 {
				b.do(func(w http.ResponseWriter, r *http.Request) {
					s, _ := st.New(r, "s")
					if s.IsNew != (i == 0) {
						t.Errorf("round %d: IsNew %v", i, s.IsNew)
					}
					s.Values["x"] = i
					if err := s.Save(r, w); err != nil {
						t.Fatal(err)
					}
				})
			}
		})
		t.Run("a session the app made itself", func(t *testing.T) {
			b := newBrowser()
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s := sessions.NewSession(st, "s")
				s.Values["x"] = 1
				if err := s.Save(r, w); err != nil || s.ID == "" {
					t.Fatalf("Save = %v, ID %q", err, s.ID)
				}
			})
			stolen := b.clone()
			if len(b.values(t, st)) != 1 {
				t.Error("it was not stored")
			}
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s := sessions.NewSession(st, "s")
				s.Options.MaxAge = -1
				if err := s.Save(r, w); err != nil {
					t.Fatal(err)
				}
			})
			if len(stolen.values(t, st)) != 0 {
				t.Error("a logout by a session the app made left the real one")
			}
		})
		t.Run("without a response", func(t *testing.T) {
			r := newReq()
			s, _ := st.Get(r, "s")
			s.Values["x"] = 1
			if err := s.Save(r, nil); err != nil || s.ID == "" {
				t.Errorf("Save(r, nil) = %v", err)
			}
		})
		t.Run("another store object", func(t *testing.T) {
			b := newBrowser()
			for i := range 3 {
				b.edit(t, open(t, rdb, session.Config{}), set(i, i))
			}
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := open(t, rdb, session.Config{}).Get(r, "s")
				s.Values["last"] = true
				if err := open(t, rdb, session.Config{}).Save(r, w, s); err != nil {
					t.Fatal(err)
				}
				if wrote, err := st.Commit(w, r, s); wrote || err != nil {
					t.Errorf("Commit after Save = %v, %v; want nothing to do", wrote, err)
				}
			})
			if got := b.values(t, st); len(got) != 4 {
				t.Errorf("Values = %v; want four", got)
			}
			// One of another prefix takes it for a new one of its own.
			elsewhere := open(t, rdb, session.Config{Prefix: "elsewhere:"})
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				if err := elsewhere.Save(r, w, s); err != nil {
					t.Fatal(err)
				}
			})
			if got := b.values(t, elsewhere); len(got) != 4 {
				t.Errorf("Values elsewhere = %v; want four", got)
			}
		})
		t.Run("typed keys and nested values", func(t *testing.T) {
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) {
				s.Values[role("admin")] = true
				s.Values[1] = "int"
				s.Values[int64(1)] = "int64"
				s.Values["1"] = "string"
				s.Values[[2]string{"a", "b"}] = "array"
			})
			b.edit(t, st, func(s *sessions.Session) {
				if len(s.Values) != 5 {
					t.Errorf("Values = %v; want five", s.Values)
				}
				delete(s.Values, [2]string{"a", "b"})
				s.Values[[2]string{"c", "d"}] = []string{"x"}
				s.Values[role("admin")] = false
			})
			b.edit(t, st, func(s *sessions.Session) {
				if v := s.Values[[2]string{"c", "d"}]; !reflect.DeepEqual(v, []string{"x"}) || s.Values[role("admin")] != false || len(s.Values) != 5 {
					t.Errorf("Values = %v", s.Values)
				}
				n := redistest.Count(t, rdb, func() {
					if _, err := st.Commit(httptest.NewRecorder(), newReq(), s); err != nil {
						t.Fatal(err)
					}
				})
				if n.By["evalsha"] > 1 {
					t.Errorf("%+v", n)
				}
				s.Values[[2]string{"c", "d"}].([]string)[0] = "changed in place"
			})
			if v := b.values(t, st)[[2]string{"c", "d"}]; !reflect.DeepEqual(v, []string{"changed in place"}) {
				t.Errorf("value under an array = %v", v)
			}
		})
	})
}

// States do not outlive their sessions.
func TestNothingLeaks(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{})
	b := newBrowser()
	b.edit(t, st, set("x", strings.Repeat("x", 1000)))
	measure := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, goroutines := measure(), runtime.NumGoroutine()
	for range 2000 {
		perRequest, err := session.New(rdb, session.Config{Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		b.values(t, perRequest)
	}
	after := measure()
	for end := time.Now().Add(10 * time.Second); after > before+1<<20 && time.Now().Before(end); after = measure() {
		time.Sleep(20 * time.Millisecond) // cleanups run in the background
	}
	if after > before+1<<20 {
		t.Errorf("2,000 sessions left %d bytes", after-before)
	}
	if n := runtime.NumGoroutine(); n > goroutines+5 {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
}

func TestKeyTyped(t *testing.T) {
	const cart = session.Key[[]string]("cart")
	s := &sessions.Session{}
	if _, ok := cart.Get(s); ok {
		t.Error("Get of an empty session = true")
	}
	cart.Set(s, []string{"tea"})
	if v, ok := cart.Get(s); !ok || len(v) != 1 || len(s.Values["cart"].([]string)) != 1 {
		t.Errorf("Get = %v, %v", v, ok)
	}
	if v := session.Key[int]("cart").Or(s, 7); v != 7 {
		t.Errorf("Or with a value of another type = %v; want the fallback", v)
	}
	cart.Delete(s)
	if _, ok := cart.Get(s); ok {
		t.Error("Get after Delete = true")
	}
}

// Redis dies and comes back between load and save.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t, redistest.AOF("always"))
	rdb := srv.Client()
	st := open(t, rdb, session.Config{Timeout: 250 * time.Millisecond})
	up := open(t, rdb, session.Config{}) // for what happens while Redis is there
	b, stale := newBrowser(), newBrowser()
	b.edit(t, up, func(s *sessions.Session) { s.Values["a"], s.Values["b"] = 1, 2 })
	stale.edit(t, up, set("x", 1))
	stolen := stale.clone()
	stale.edit(t, up, func(s *sessions.Session) { s.Options.MaxAge = -1 })
	stale = stolen

	srv.Kill()
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, err := st.Get(r, "s")
		if !errors.Is(err, session.ErrUnavailable) || s == nil || session.Loaded(s) || !s.IsNew || len(s.Values) != 0 {
			t.Fatalf("Get = %v, %+v; want ErrUnavailable and an empty session that is not loaded", err, s)
		}
		if wrote, err := st.Commit(w, r, s); wrote || err != nil {
			t.Errorf("Commit of an untouched session = %v, %v; want nothing", wrote, err)
		}
		s.Values["b"] = 3
		if err := s.Save(r, w); !errors.Is(err, session.ErrUnavailable) || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("Save = %v, cookie %q; want ErrUnavailable and none", err, w.Header().Get("Set-Cookie"))
		}
		if err := st.Destroy(httptest.NewRecorder(), r, s); !errors.Is(err, session.ErrUnavailable) {
			t.Errorf("Destroy = %v; want ErrUnavailable", err)
		}
		s.Values["b"], s.Values["c"] = 3, 4
		srv.Restart()
		saved := untilUp(func() error { return s.Save(r, w) })
		if saved != nil || !session.Loaded(s) || s.Values["a"] != 1 || s.Values["b"] != 3 {
			t.Errorf("Save = %v, Values %v; want the stored values with the app's on top", saved, s.Values)
		}
	})
	if got := b.values(t, up); len(got) != 3 || got["a"] != 1 || got["b"] != 3 || got["c"] != 4 {
		t.Errorf("Values = %v; want a=1 b=3 c=4", got)
	}

	// A session that did not exist is created anew, not brought back.
	srv.Kill()
	stale.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		s.Values["y"] = 1
		srv.Restart()
		if err := untilUp(func() error { return s.Save(r, w) }); err != nil {
			t.Fatal(err)
		}
	})
	if got := stale.values(t, up); len(got) != 1 || got["y"] != 1 {
		t.Errorf("Values = %v; want only y", got)
	}
}

// Legacy sessions of any store are carried over once.
func TestLegacyStore(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		old := sessions.NewFilesystemStore(t.TempDir(), key(1))
		var adopted int
		st := open(t, rdb, session.Config{Legacy: old, Hooks: session.Hooks{Adopted: func(context.Context, session.Event) { adopted++ }}})
		b := newBrowser()
		b.edit(t, old, func(s *sessions.Session) { s.Values["user"] = 42; s.AddFlash("hi") })
		before := b.clone()
		var wrote bool
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, err := st.Get(r, "s")
			if err != nil || s.Values["user"] != 42 {
				t.Fatalf("Get = %v, %v; want the old session's values", s.Values, err)
			}
			wrote, err = st.Commit(w, r, s)
			if err != nil {
				t.Fatal(err)
			}
		})
		if got := b.values(t, st); !wrote || adopted != 1 || got["user"] != 42 || len(got) != 2 || b.jar["s"] == before.jar["s"] {
			t.Errorf("cookie %v, adopted %d, Values %v", wrote, adopted, got)
		}
		if got := before.values(t, st); len(got) != 0 {
			t.Errorf("the old session was not deleted: %v", got)
		}
	})
}
