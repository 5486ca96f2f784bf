package main

import (
	"net/http"

	"github.com/redporch/redporch/middleware"
)

// index is the page. All its forms work without JavaScript.
func (a *app) index(w http.ResponseWriter, r *http.Request) {
	user, devices, err := a.listDevices(r)
	if err != nil {
		a.log.Warn("list devices", "err", err) // the page says so through /healthz's state
	}
	var flashes []any
	if user != "" {
		flashes = middleware.Session(r).Flashes()
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	a.page.ExecuteTemplate(w, "index.html", map[string]any{
		"Redis":    a.redis.description,
		"Embedded": a.redis.kind == "embedded",
		"User":     user,
		"Name":     users[user],
		"Flashes":  flashes,
		"Devices":  devices,
	})
}
