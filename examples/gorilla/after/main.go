// An ordinary app on gorilla/mux and gorilla/sessions, with its sessions in
// Redis. The directories before and after differ in one import and one
// constructor.
//
//	REDIS_URL=redis://localhost:6379 ADDR=:8080 go run ./after
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/mux"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/session"
)

func main() {
	opts, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://localhost:6379"))
	if err != nil { // it quotes the URL, which may hold a password
		log.Fatal("REDIS_URL: want it such as redis://user:password@localhost:6379/0")
	}
	store, err := session.NewRedisStore(context.Background(), redis.NewClient(opts))
	if err != nil {
		log.Fatal(err)
	}
	store.KeyPrefix("shop:")
	store.Options(sessions.Options{Path: "/", MaxAge: 86400, HttpOnly: true, SameSite: http.SameSiteLaxMode})

	ln, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), ":8080"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", ln.Addr())
	srv := &http.Server{Handler: routes(store), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	log.Fatal(srv.Serve(ln))
}

func routes(store sessions.Store) http.Handler {
	r := mux.NewRouter()
	r.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, "shop")
		if err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		user, _ := s.Values["user"].(string)
		visits, _ := s.Values["visits"].(int)
		s.Values["visits"] = visits + 1
		flashes := s.Flashes()
		if err := s.Save(r, w); err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "user=%s visits=%d flashes=%v\n", user, visits+1, flashes)
	}).Methods("GET")

	r.HandleFunc("/login/{user}", func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "shop")
		s.Values["user"] = mux.Vars(r)["user"]
		s.AddFlash("welcome")
		if err := s.Save(r, w); err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}).Methods("POST")

	r.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "shop")
		s.Options.MaxAge = -1
		if err := s.Save(r, w); err != nil {
			log.Print(err)
			http.Error(w, "try again later", http.StatusInternalServerError)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}).Methods("POST")
	return r
}
