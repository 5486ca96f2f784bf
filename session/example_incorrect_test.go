package session_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/session"
)

// This login is wrong: it keeps the id that the session had before. Somebody who
// has put the cookie of a session of his own into ada's browser is signed in as ada
// when she signs in (session fixation). Calling Regenerate in the place of Save
// mends it: then the planted cookie opens nothing.
func ExampleStore_Regenerate_incorrect() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	server.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	store, err := session.New(rdb, session.Config{})
	if err != nil {
		panic(err)
	}
	request := func(cookie string) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", cookie)
		return r
	}

	for _, regenerate := range []bool{false, true} {
		// The attacker gets a session, and plants its cookie.
		w := httptest.NewRecorder()
		r := request("")
		s, _ := store.Get(r, "sid")
		s.Values["cart"] = "tea"
		if err := store.Save(r, w, s); err != nil {
			panic(err)
		}
		planted := "sid=" + w.Result().Cookies()[0].Value

		// ada signs in with it.
		r = request(planted)
		s, _ = store.Get(r, "sid")
		s.Values["user"] = "ada"
		if regenerate {
			err = store.Regenerate(httptest.NewRecorder(), r, s)
		} else {
			err = store.Save(r, httptest.NewRecorder(), s) // wrong
		}
		if err != nil {
			panic(err)
		}

		// The attacker comes back.
		s, _ = store.Get(request(planted), "sid")
		fmt.Println("regenerated:", regenerate, "- the planted cookie opens the session of", s.Values["user"])
	}
	// Output:
	// regenerated: false - the planted cookie opens the session of ada
	// regenerated: true - the planted cookie opens the session of <nil>
}
