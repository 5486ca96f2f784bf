package session_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/session"
)

// redisForExamples stands for your Redis.
func redisForExamples() (redis.UniversalClient, func()) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	return rdb, func() { rdb.Close(); m.Close() }
}

// visitor is a browser with its cookies.
type visitor struct{ cookies []*http.Cookie }

func (v *visitor) visit(h http.HandlerFunc) {
	r := httptest.NewRequest("GET", "https://example.com/", nil)
	for _, c := range v.cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	h(w, r)
	if sent := w.Result().Cookies(); len(sent) > 0 {
		v.cookies = sent
	}
	fmt.Print(w.Body)
}

func Example() {
	rdb, stop := redisForExamples()
	defer stop()

	store, err := session.New(rdb, session.Config{
		Keys:        [][]byte{[]byte("32 random bytes, from your secrets")},
		IdleTimeout: 20 * time.Minute,
	})
	if err != nil {
		log.Fatal(err)
	}
	counter := func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, session.HostName("sid"))
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		n, _ := s.Values["visits"].(int)
		s.Values["visits"] = n + 1
		if err := s.Save(r, w); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "visit", n+1)
	}
	var v visitor
	v.visit(counter)
	v.visit(counter)
	// Output:
	// visit 1
	// visit 2
}

// An app of redisstore changes its import and nothing else. Servers with the old
// and the new library may run side by side.
func ExampleNewRedisStore() {
	rdb, stop := redisForExamples()
	defer stop()

	store, err := session.NewRedisStore(context.Background(), rdb) // was: redisstore.NewRedisStore
	if err != nil {
		log.Fatal(err)
	}
	store.KeyPrefix("app:session:")
	store.Options(sessions.Options{Path: "/", MaxAge: 86400 * 60, HttpOnly: true})

	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "session-key")
		s.Values["name"] = "Ada"
		s.Save(r, w)
	})
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "session-key")
		fmt.Fprintln(w, "hello", s.Values["name"])
	})
	// Output: hello Ada
}

// A login gives the session a new id, so that one that was planted before the
// login is worthless.
func ExampleStore_Regenerate() {
	rdb, stop := redisForExamples()
	defer stop()
	store, err := session.New(rdb, session.Config{})
	if err != nil {
		log.Fatal(err)
	}

	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) { // before the login
		s, _ := store.Get(r, "sid")
		s.Values["cart"] = []string{"tea"}
		s.Save(r, w)
	})
	planted := v
	v.visit(func(w http.ResponseWriter, r *http.Request) { // the password was right
		s, _ := store.Get(r, "sid")
		s.Values["user"] = "ada"
		store.Bind(s, "ada")
		if err := store.Regenerate(w, r, s); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
		}
	})
	show := func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		fmt.Fprintln(w, s.Values["user"], s.Values["cart"])
	}
	v.visit(show)
	planted.visit(show)
	// Output:
	// ada [tea]
	// <nil> <nil>
}

// Sign out everywhere else, and a list of devices.
func ExampleStore_RevokeUser() {
	rdb, stop := redisForExamples()
	defer stop()
	store, err := session.New(rdb, session.Config{
		Label: func(r *http.Request) string { return r.UserAgent() },
	})
	if err != nil {
		log.Fatal(err)
	}
	login := func(device string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("User-Agent", device)
			s, _ := store.Get(r, "sid")
			store.Bind(s, "ada")
			store.Regenerate(w, r, s)
		}
	}
	var phone, laptop visitor
	phone.visit(login("phone"))
	laptop.visit(login("laptop"))

	laptop.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		devices, _ := store.Sessions(r.Context(), "ada")
		fmt.Fprintln(w, "devices:", len(devices))
		n, _ := store.RevokeUser(r.Context(), "ada", session.ID(s))
		fmt.Fprintln(w, "signed out:", n)
		devices, _ = store.Sessions(r.Context(), "ada")
		fmt.Fprintln(w, "left:", devices[0].Label)
	})
	phone.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		fmt.Fprintln(w, "the phone's session is new:", s.IsNew)
	})
	// Output:
	// devices: 2
	// signed out: 1
	// left: laptop
	// the phone's session is new: true
}

// Flashes are gorilla's. Each has a field of its own in Redis, so two requests
// that add one at the same time keep both.
func Example_flash() {
	rdb, stop := redisForExamples()
	defer stop()
	store, err := session.New(rdb, session.Config{})
	if err != nil {
		log.Fatal(err)
	}
	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		s.AddFlash("Your order is on its way.")
		s.Save(r, w)
	})
	show := func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		fmt.Fprintln(w, s.Flashes())
		s.Save(r, w)
	}
	v.visit(show)
	v.visit(show)
	// Output:
	// [Your order is on its way.]
	// []
}

func ExampleKey() {
	const (
		userID = session.Key[int64]("uid")
		cart   = session.Key[[]string]("cart")
	)
	s := &sessions.Session{Values: map[any]any{}} // as store.Get returns it

	userID.Set(s, 42)
	cart.Set(s, append(cart.Or(s, nil), "tea"))

	id, ok := userID.Get(s)
	fmt.Println(id, ok, cart.Or(s, nil), s.Values["uid"])
	// Output: 42 true [tea] 42
}

// A key is rotated in two deploys, so that each server knows the cookies of all others
// while they are restarted one by one: the new key goes last, and then first. The old one is
// dropped once no session from its time is left.
func ExampleConfig_keyRotation() {
	rdb, stop := redisForExamples()
	defer stop()
	last, this := []byte("32 random bytes of last summer.."), []byte("32 random bytes of this summer..")

	before, _ := session.New(rdb, session.Config{Keys: [][]byte{last}})
	first, _ := session.New(rdb, session.Config{Keys: [][]byte{last, this}})
	second, _ := session.New(rdb, session.Config{Keys: [][]byte{this, last}})
	after, _ := session.New(rdb, session.Config{Keys: [][]byte{this}})

	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := before.Get(r, "sid")
		s.Values["x"] = 1
		s.Save(r, w)
	})
	// Servers of two configurations side by side, in turn.
	for _, store := range []*session.Store{before, first, first, second, first, second, second, after} {
		v.visit(func(w http.ResponseWriter, r *http.Request) {
			s, _ := store.Get(r, "sid")
			if s.IsNew {
				fmt.Fprintln(w, "signed out")
			}
			s.Save(r, w)
		})
	}
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := after.Get(r, "sid")
		fmt.Fprintln(w, "new session:", s.IsNew)
	})
	// Output:
	// new session: false
}

func ExampleConfig_encryption() {
	rdb, stop := redisForExamples()
	defer stop()
	store, err := session.New(rdb, session.Config{
		EncryptionKeys: [][]byte{[]byte("exactly 32 random bytes are used")},
	})
	if err != nil {
		log.Fatal(err)
	}
	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		s.Values["diagnosis"] = "a cold"
		s.Save(r, w)
	})
	ctx := context.Background()
	key := rdb.Keys(ctx, session.DefaultPrefix+"*").Val()[0]
	fmt.Println("readable in Redis:", strings.Contains(fmt.Sprint(rdb.HGetAll(ctx, key).Val()), "a cold"))
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		fmt.Fprintln(w, "in the session:", s.Values["diagnosis"])
	})
	// Output:
	// readable in Redis: false
	// in the session: a cold
}
