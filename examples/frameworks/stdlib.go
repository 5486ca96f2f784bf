package frameworks

import "net/http"

// Stdlib uses net/http alone.
func Stdlib(a *App) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /item/{id}", a.Sessions()(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count(w, r, r.PathValue("id"))
	})))
	mux.Handle("GET /limited", a.Limit()(http.HandlerFunc(limited)))
	mux.HandleFunc("GET /boom", boom)
	return a.Around()(mux)
}
