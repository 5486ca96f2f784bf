package session_test

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// Requests that each set another value of one session at the same time lose
// none.
func TestConcurrentWritersLoseNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Timeout: 20 * time.Second, MaxBytes: 1 << 20})
		b := newBrowser()
		b.edit(t, st, set("first", true))
		const writers, batch = 300, 100
		for at := 0; at < writers; at += batch {
			loaded := make([]*sessions.Session, batch)
			requests := make([]*http.Request, batch)
			for i := range batch { // all load before any saves
				b.clone().do(func(w http.ResponseWriter, r *http.Request) {
					s, err := st.Get(r, "s")
					if err != nil {
						t.Fatal(err)
					}
					loaded[i], requests[i] = s, r
				})
			}
			var wg sync.WaitGroup
			for i, s := range loaded {
				wg.Go(func() {
					s.Values["key"+strconv.Itoa(at+i)] = at + i
					if err := s.Save(requests[i], nil); err != nil {
						t.Errorf("Save = %v", err)
					}
				})
			}
			wg.Wait()
		}
		got := b.values(t, st)
		for i := range writers {
			if got["key"+strconv.Itoa(i)] != i {
				t.Fatalf("value %d is %v; want %d (%d values in all)", i, got["key"+strconv.Itoa(i)], i, len(got))
			}
		}
		if got["first"] != true {
			t.Error("the value from before is gone")
		}
	})
}

// A logout among savers is final: none of them brings the session back.
func TestLogoutAmongSaversIsFinal(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Timeout: 20 * time.Second})
		const rounds, savers = 25, 25
		for round := range rounds {
			b := newBrowser()
			b.edit(t, st, set("user", round))
			var wg sync.WaitGroup
			start := make(chan struct{})
			for i := range savers {
				c := b.clone()
				wg.Go(func() {
					c.do(func(w http.ResponseWriter, r *http.Request) {
						s, err := st.Get(r, "s")
						if err != nil {
							t.Error(err)
						}
						if s.IsNew {
							return // logged out before this one began
						}
						<-start
						s.Values[fmt.Sprint("k", i)] = i
						switch i % 4 {
						case 0:
							err = st.Regenerate(w, r, s)
							if err == nil {
								// A new id is another session: end it as its user would.
								err = st.Destroy(w, r, s)
							}
						case 1:
							_, err = st.Commit(w, r, s)
						default:
							err = s.Save(r, w)
						}
						if err != nil && !errors.Is(err, session.ErrSessionGone) {
							t.Errorf("save = %v; want nil or ErrSessionGone", err)
						}
					})
				})
			}
			c := b.clone()
			wg.Go(func() {
				c.do(func(w http.ResponseWriter, r *http.Request) {
					s, err := st.Get(r, "s")
					if err != nil {
						t.Error(err)
					}
					close(start)
					if err := st.Destroy(w, r, s); err != nil {
						t.Errorf("Destroy = %v", err)
					}
				})
			})
			wg.Wait()
			if got := b.values(t, st); len(got) != 0 {
				t.Fatalf("round %d: the session is back with %v", round, got)
			}
		}
		if n, err := st.Len(t.Context()); n != 0 || err != nil {
			t.Errorf("Len = %d, %v; want 0", n, err)
		}
	})
}

// Two requests that add a flash each, loaded from the same state, both leave it;
// one that reads removes what it has seen and nothing else.
func TestConcurrentFlashesBothSurvive(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		overlap := func(outer, inner func(s *sessions.Session)) {
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				b.clone().edit(t, st, inner)
				outer(s)
				if err := s.Save(r, w); err != nil {
					t.Fatal(err)
				}
			})
		}
		flash := func(v any, key ...string) func(s *sessions.Session) {
			return func(s *sessions.Session) { s.AddFlash(v, key...) }
		}
		overlap(flash("one"), flash("two"))
		overlap(flash(map[string]any{"a": 1}, "errors"), flash("oops", "errors"))
		if got := b.values(t, st); fmt.Sprint(got["_flash"]) != "[two one]" && fmt.Sprint(got["_flash"]) != "[one two]" || len(got["errors"].([]any)) != 2 {
			t.Fatalf("Values = %v; want both flashes under both keys", got)
		}
		overlap(func(s *sessions.Session) {
			if got := s.Flashes(); len(got) != 2 {
				t.Errorf("Flashes = %v; want two", got)
			}
		}, flash("three"))
		if got := b.values(t, st); fmt.Sprint(got["_flash"]) != "[three]" || len(got["errors"].([]any)) != 2 {
			t.Errorf("Values = %v; want only the flash that was not read, and the errors", got)
		}
		b.edit(t, st, func(s *sessions.Session) { s.Flashes(); s.Flashes("errors") })
		if got := b.values(t, st); len(got) != 1 {
			t.Errorf("Values = %v; want no flashes", got)
		}
		// A list that is changed otherwise stays in its order.
		b.edit(t, st, set("list", []any{"a", "b"}))
		b.edit(t, st, set("list", []any{"c", "b", "d"}))
		if got := b.values(t, st); fmt.Sprint(got["list"]) != "[c b d]" {
			t.Errorf("list = %v; want [c b d]", got["list"])
		}
		b.edit(t, st, set("list", []any{}))
		if got := b.values(t, st)["list"].([]any); got == nil || len(got) != 0 {
			t.Errorf("list = %#v; want an empty one", got)
		}
	})
}

// A session that is revoked by user while it gets new ids does not escape.
func TestRegenerateDoesNotEscapeRevokeUser(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Timeout: 20 * time.Second})
		for range 10 {
			b := newBrowser()
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				if err := errors.Join(st.Bind(s, "u"), st.Regenerate(w, r, s)); err != nil {
					t.Fatal(err)
				}
			})
			var wg sync.WaitGroup
			begun := make(chan struct{})
			wg.Go(func() {
				for i := range 50 {
					var err error
					b.do(func(w http.ResponseWriter, r *http.Request) {
						var s *sessions.Session
						if s, err = st.Get(r, "s"); err == nil && s.IsNew {
							err = session.ErrSessionGone
						}
						if err == nil {
							err = st.Regenerate(w, r, s)
						}
					})
					if i == 0 {
						close(begun)
					}
					if errors.Is(err, session.ErrSessionGone) {
						return
					} else if err != nil {
						t.Errorf("Regenerate = %v", err)
						return
					}
				}
			})
			<-begun
			if _, err := st.RevokeUser(t.Context(), "u"); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if n, _ := st.Len(t.Context()); n != 0 {
				t.Fatalf("%d sessions are left after RevokeUser", n)
			}
		}
	})
}
