package gorilla

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	rbcervilla "github.com/rbcervilla/redisstore/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// visits is a handler as gorilla apps have it: it counts, and saves by itself.
func visits(store sessions.Store) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "sid")
		if err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		n, _ := s.Values["visits"].(int)
		s.Values["visits"] = n + 1
		if err := s.Save(r, w); err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, n+1)
	})
}

// asked is the same handler with the middleware.
func asked(store *session.Store) http.Handler {
	return middleware.Sessions(store, "sid", middleware.SessionsConfig{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := middleware.Session(r)
		n, _ := s.Values["visits"].(int)
		s.Values["visits"] = n + 1
		fmt.Fprint(w, n+1)
	}))
}

// site serves what a deployment has put behind one address.
type site struct {
	*httptest.Server
	now http.Handler
}

func newSite(t *testing.T) (*site, *http.Client) {
	s := new(site)
	// HTTPS, since by default redporch's cookies want it.
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.now.ServeHTTP(w, r) }))
	t.Cleanup(s.Close)
	client := s.Client()
	client.Jar, _ = cookiejar.New(nil)
	return s, client
}

// visit asks once with each of the deployments, and wants the count to go on.
func (s *site) visit(t *testing.T, client *http.Client, what string, h http.Handler, want ...int) {
	t.Helper()
	s.now = h
	for _, n := range want {
		res, err := client.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != fmt.Sprint(n) {
			t.Errorf("%s: visit %s; want %d", what, body, n)
		}
	}
}

// TestStepsFromRedisstore follows docs/migrating-from-redisstore.md with a visitor
// who comes by at every step, and one who signs in at the last but one.
func TestStepsFromRedisstore(t *testing.T) {
	for _, prefix := range []string{"", "app_"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			_, rdb := redistest.Mini(t)
			s, client := newSite(t)
			old, err := rbcervilla.NewRedisStore(context.Background(), rdb)
			if err != nil {
				t.Fatal(err)
			}
			// redisstore's own default is a cookie for HTTP.
			same, err := session.NewRedisStore(context.Background(), rdb)
			if err != nil {
				t.Fatal(err)
			}
			cfg := session.Config{
				Keys:           [][]byte{[]byte("0123456789abcdefFEDCBA9876543210")},
				AcceptUnsigned: true,
				Redisstore:     &session.RedisstoreConfig{Until: time.Now(), Names: []string{"sid"}},
			}
			if prefix != "" {
				old.KeyPrefix(prefix)
				same.KeyPrefix(prefix)
				cfg.Prefix, cfg.Redisstore.KeyPrefix = "redporch:"+prefix, prefix
			}
			s.visit(t, client, "before", visits(old), 1, 2)
			s.visit(t, client, "the import changed", visits(same), 3)
			s.visit(t, client, "back again", visits(old), 4)
			s.visit(t, client, "and forth", visits(same), 5)
			same.KeepLayoutUntil(time.Now())
			s.visit(t, client, "own layout", visits(same), 6, 7)
			store, err := session.New(rdb, cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.visit(t, client, "session.New", asked(store), 8, 9)

			_, stranger := newSite(t)
			s.visit(t, stranger, "somebody new", asked(store), 1)
			cfg.Redisstore, cfg.AcceptUnsigned = nil, false
			last, err := session.New(rdb, cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.visit(t, stranger, "somebody new, at the end", asked(last), 2)
			s.visit(t, client, "an old cookie, at the end", asked(last), 1)
		})
	}
}

// TestStepsFromCookieStore follows docs/migrating-from-gorilla-cookiestore.md: with
// handlers as they were, and with the middleware.
func TestStepsFromCookieStore(t *testing.T) {
	for name, after := range map[string]func(*session.Store) http.Handler{
		"as it was":      func(store *session.Store) http.Handler { return visits(store) },
		"the middleware": asked,
		"both": func(store *session.Store) http.Handler {
			return middleware.Sessions(store, "sid", middleware.SessionsConfig{})(visits(store))
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, rdb := redistest.Mini(t)
			s, client := newSite(t)
			old := sessions.NewCookieStore([]byte("an old key of thirty-two bytes.."))
			store, err := session.New(rdb, session.Config{
				Keys:        [][]byte{[]byte("0123456789abcdefFEDCBA9876543210")},
				IdleTimeout: time.Hour,
				Legacy:      old,
			})
			if err != nil {
				t.Fatal(err)
			}
			s.visit(t, client, "before", visits(old), 1, 2)
			s.visit(t, client, "after", after(store), 3, 4)
			if n, err := store.Len(context.Background()); n != 1 || err != nil {
				t.Errorf("Len() = %d, %v; want the one session, moved to Redis", n, err)
			}
		})
	}
}
