package session_test

import (
	"errors"
	"fmt"
	"log"
	"net/http"

	"github.com/redporch/redporch/session"
)

// A logout that a failover can't undo: the replica has it before the user is told.
// Here there is no replica, which the error says.
func ExampleConfig_replicas() {
	rdb, stop := redisForExamples()
	defer stop()

	store, err := session.New(rdb, session.Config{Replicas: 1})
	if err != nil {
		log.Fatal(err)
	}
	logout := func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, session.HostName("sid"))
		s.Values["user"] = 42
		err := store.Save(r, w, s)
		fmt.Println("saved, but on the master alone:", errors.Is(err, session.ErrNotReplicated))

		switch err := store.Destroy(w, r, s); {
		case err == nil:
			fmt.Println("signed out")
		case errors.Is(err, session.ErrNotReplicated):
			fmt.Println("signed out, unless Redis fails within the next moments")
		default:
			fmt.Println("not signed out:", err)
		}
	}
	(&visitor{}).visit(logout)
	// Output:
	// saved, but on the master alone: true
	// signed out, unless Redis fails within the next moments
}
