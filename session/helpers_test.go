package session_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/session"
)

// browser keeps cookies between requests, as a browser does.
type browser struct{ jar map[string]string }

func newBrowser() *browser { return &browser{jar: map[string]string{}} }

func (b *browser) clone() *browser {
	c := newBrowser()
	for k, v := range b.jar {
		c.jar[k] = v
	}
	return c
}

// do runs a handler as one request and takes over its cookies.
func (b *browser) do(f func(w http.ResponseWriter, r *http.Request)) http.Header {
	r := httptest.NewRequest("GET", "https://example.com/", nil)
	for name, value := range b.jar {
		r.Header.Add("Cookie", name+"="+value)
	}
	w := httptest.NewRecorder()
	f(w, r)
	for _, c := range w.Result().Cookies() {
		if c.MaxAge < 0 || c.Value == "" {
			delete(b.jar, c.Name)
		} else {
			b.jar[c.Name] = c.Value
		}
	}
	return w.Header()
}

// edit gets the session "s", changes it and saves it.
func (b *browser) edit(t testing.TB, st sessions.Store, change func(s *sessions.Session)) {
	t.Helper()
	if err := b.try(st, change); err != nil {
		t.Fatalf("Save = %v; want no error", err)
	}
}

func (b *browser) try(st sessions.Store, change func(s *sessions.Session)) (err error) {
	b.do(func(w http.ResponseWriter, r *http.Request) {
		var s *sessions.Session
		if s, err = st.Get(r, "s"); err != nil {
			return
		}
		if change != nil {
			change(s)
		}
		err = s.Save(r, w)
	})
	return err
}

// values returns what the session "s" holds.
func (b *browser) values(t testing.TB, st sessions.Store) map[any]any {
	t.Helper()
	var got map[any]any
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, err := st.Get(r, "s")
		if err != nil {
			t.Fatalf("Get = %v; want no error", err)
		}
		got = s.Values
	})
	return got
}

func open(t testing.TB, rdb redis.UniversalClient, cfg session.Config) *session.Store {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second // a busy machine is not what is tested
	}
	st, err := session.New(rdb, cfg)
	if err != nil {
		t.Fatalf("New = %v; want no error", err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func set(key, value any) func(*sessions.Session) {
	return func(s *sessions.Session) { s.Values[key] = value }
}

// untilUp calls f until Redis answers again, which the breaker has to find out. Its
// error is then that of f.
func untilUp(f func() error) (err error) {
	for range 1000 {
		if err = f(); !errors.Is(err, session.ErrUnavailable) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// sessionKeys returns the keys of the sessions in Redis, not those of ids that were
// superseded.
func sessionKeys(t testing.TB, rdb redis.UniversalClient, prefix string) (keys []string) {
	t.Helper()
	for _, k := range rdb.Keys(t.Context(), prefix+"{*").Val() {
		if rdb.HExists(t.Context(), k, "m").Val() {
			keys = append(keys, k)
		}
	}
	return keys
}

// redisNow is the time by the clock of the server, which may not be this host's.
func redisNow(t *testing.T, rdb redis.UniversalClient) time.Time {
	t.Helper()
	now, err := rdb.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now
}
