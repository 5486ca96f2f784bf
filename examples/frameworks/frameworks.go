// Package frameworks shows redporch's middlewares in five routers: net/http's own
// mux, chi, gorilla/mux, echo and gin. Each file mounts the same three things, and
// one test body checks them all:
//
//   - a chain around everything, which works with whatever is an http.Handler;
//   - Sessions on the routes that need one;
//   - a RateLimit on a single route.
//
// It is a module of its own, so that nobody who uses redporch downloads them all.
package frameworks

import (
	"fmt"
	"log/slog"
	"net/http"

	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// App is what the routers have in common.
type App struct {
	Store   *session.Store
	Limiter *ratelimit.Limiter
	Logger  *slog.Logger
}

// Around goes around a whole router.
func (a *App) Around() middleware.Middleware {
	return middleware.Chain(
		middleware.Recover(middleware.RecoverConfig{Logger: a.Logger}),
		middleware.RequestID(middleware.RequestIDConfig{}),
		middleware.ClientAddr(middleware.ClientAddrConfig{Logger: a.Logger}),
		middleware.AccessLog(middleware.AccessLogConfig{Logger: a.Logger}),
	)
}

// Sessions goes around the routes that have one.
func (a *App) Sessions() middleware.Middleware {
	return middleware.Sessions(a.Store, "sid", middleware.SessionsConfig{Logger: a.Logger})
}

// Limit goes around one route.
func (a *App) Limit() middleware.Middleware {
	return middleware.RateLimit(a.Limiter, middleware.ClientIP(), middleware.RateLimitConfig{Logger: a.Logger})
}

// count is the handler of GET /item/{id}: it counts visits in the session, and
// flushes before it writes, as a stream would.
func count(w http.ResponseWriter, r *http.Request, id string) {
	s := middleware.Session(r)
	n, _ := s.Values["n"].(int)
	s.Values["n"] = n + 1
	_ = http.NewResponseController(w).Flush()
	_, _ = fmt.Fprintf(w, "item %s, visit %d", id, n+1)
}

// limited is the handler of GET /limited.
func limited(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "admitted") }

// boom is the handler of GET /boom.
func boom(http.ResponseWriter, *http.Request) { panic("boom") }
