package session_test

import (
	"fmt"
	"log"
	"net/http"

	"github.com/redporch/redporch/session"
)

// A handler that has something else to wait for first lets the session come meanwhile.
// [middleware.SessionsConfig.Eager] does this for a whole chain.
//
// [middleware.SessionsConfig.Eager]: https://pkg.go.dev/github.com/redporch/redporch/middleware#SessionsConfig
func ExampleStore_Preload() {
	rdb, stop := redisForExamples()
	defer stop()
	store, err := session.New(rdb, session.Config{})
	if err != nil {
		log.Fatal(err)
	}
	askTheSearchEngine := func(*http.Request) int { return 3 }

	var v visitor
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "sid")
		s.Values["name"] = "Ada"
		s.Save(r, w)
	})
	v.visit(func(w http.ResponseWriter, r *http.Request) {
		loading := store.Preload(r, "sid")
		if loading == nil {
			fmt.Fprintln(w, "who are you?") // there is no session to be had
			return
		}
		defer loading.Drop()
		hits := askTheSearchEngine(r)
		if hits == 0 {
			return // and nobody waits for the session
		}
		s, err := loading.Session()
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "%d hits for %v\n", hits, s.Values["name"])
	})
	// Output: 3 hits for Ada
}
