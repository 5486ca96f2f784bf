package session_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/session"
)

// user is a value of sessions, with its type.
const user = session.Key[string]("user")

// site signs users in and shows them where they are signed in.
type site struct{ store *session.Store }

func (s site) login(w http.ResponseWriter, r *http.Request) {
	ss, err := s.store.Get(r, "sid")
	if err != nil {
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	name := r.FormValue("user") // and a password, in earnest
	user.Set(ss, name)
	if err = s.store.Bind(ss, name); err == nil {
		err = s.store.Regenerate(w, r, ss)
	}
	if err != nil {
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	}
}

func (s site) devices(w http.ResponseWriter, r *http.Request) {
	ss, _ := s.store.Get(r, "sid")
	list, err := s.store.Sessions(r.Context(), user.Or(ss, ""))
	if err != nil {
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	for _, d := range list {
		here := ""
		if d.ID == session.ID(ss) {
			here = " (this one)"
		}
		fmt.Fprintf(w, "%s%s\n", d.Label, here)
	}
}

// A user signs in with two browsers, sees both, and signs out everywhere else.
func Example_devices() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	server.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	store, err := session.New(rdb, session.Config{
		Label: func(r *http.Request) string { return r.UserAgent() },
	})
	if err != nil {
		panic(err)
	}
	s := site{store}

	// ask sends a request with a browser's cookie and returns what it has then.
	ask := func(h http.HandlerFunc, browser, path, cookie string) (string, string) {
		r := httptest.NewRequest("POST", path, nil)
		r.Header.Set("User-Agent", browser)
		r.Header.Set("Cookie", cookie)
		w := httptest.NewRecorder()
		h(w, r)
		for _, c := range w.Result().Cookies() {
			cookie = c.Name + "=" + c.Value
		}
		return w.Body.String(), cookie
	}
	_, laptop := ask(s.login, "laptop", "/login?user=ada", "")
	_, phone := ask(s.login, "phone", "/login?user=ada", "")

	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", phone)
	here, _ := store.Get(r, "sid")
	n, err := store.RevokeUser(context.Background(), "ada", session.ID(here))
	fmt.Println(n, "ended", err)

	list, _ := ask(s.devices, "phone", "/devices", phone)
	fmt.Print(list)
	list, _ = ask(s.devices, "laptop", "/devices", laptop)
	fmt.Printf("%q\n", list)
	// Output:
	// 1 ended <nil>
	// phone (this one)
	// ""
}
