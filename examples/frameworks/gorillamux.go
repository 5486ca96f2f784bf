package frameworks

import (
	"net/http"

	"github.com/gorilla/mux"

	"github.com/redporch/redporch/middleware"
)

// GorillaMux takes every middleware as it is. It does not set Request.Pattern, so
// one more tells AccessLog the route.
func GorillaMux(a *App) http.Handler {
	r := mux.NewRouter()
	r.Use(GorillaRoute)
	items := r.NewRoute().Subrouter()
	items.Use(a.Sessions())
	items.HandleFunc("/item/{id}", func(w http.ResponseWriter, r *http.Request) { count(w, r, mux.Vars(r)["id"]) })
	r.Handle("/limited", a.Limit()(http.HandlerFunc(limited)))
	r.HandleFunc("/boom", boom)
	// Around the router and not by Use, which runs for matched routes only.
	return a.Around()(r)
}

// GorillaRoute tells the middlewares outside the route.
func GorillaRoute(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pattern, err := mux.CurrentRoute(r).GetPathTemplate(); err == nil {
			middleware.SetRoute(r, pattern)
		}
		next.ServeHTTP(w, r)
	})
}
