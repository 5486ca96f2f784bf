package frameworks

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/redporch/redporch/middleware"
)

// Chi takes every middleware as it is.
func Chi(a *App) http.Handler {
	r := chi.NewRouter()
	r.Use(a.Around(), middleware.Routed)
	r.Group(func(r chi.Router) {
		r.Use(a.Sessions())
		r.Get("/item/{id}", func(w http.ResponseWriter, r *http.Request) { count(w, r, chi.URLParam(r, "id")) })
	})
	r.With(a.Limit()).Get("/limited", limited)
	r.Get("/boom", boom)
	return r
}
