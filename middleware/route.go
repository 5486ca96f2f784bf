package middleware

import (
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
)

// A route is the pattern that a request was matched by, a name that the program
// chose. A mux writes it into Request.Pattern of the request that it got. Whoever
// copies the request on the way there, as otelhttp, http.TimeoutHandler,
// http.StripPrefix and http.CrossOriginProtection do, keeps it from those outside;
// the visit, which is in the context of all copies, carries it past them.

// Routed goes right around a router, and tells the middlewares outside which route
// has served a request, also where something in between copies the request:
//
//	middleware.Chain(around, http.NewCrossOriginProtection().Handler, middleware.Routed)(mux)
//
// In chi it is the last of the Use. It is not needed where only middlewares of this
// package stand between AccessLog or Observe and a mux of net/http. Routers that
// don't set Request.Pattern, such as gorilla/mux, echo and gin, call [SetRoute] instead.
//
// The patterns of a mux mounted by http.StripPrefix get that of the mount in front.
func Routed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := visitOf(r)
		if v == nil {
			next.ServeHTTP(w, r)
			return
		}
		if router, ok := next.(Router); ok && r.Context().Done() != v.Done() {
			// Something inside can end the request apart, and be reported before the
			// handler returns.
			_, pattern := router.Handler(r)
			v.mu.Lock()
			v.routeAhead = chosenPattern(r, pattern)
			v.mu.Unlock()
		}
		defer func() { v.noteRoute(r, r.Pattern) }()
		next.ServeHTTP(w, r)
	})
}

// SetRoute tells the middlewares outside which route serves r, for routers that
// don't set r.Pattern themselves, such as gorilla/mux, echo and gin. AccessLog and
// Observe report it. It must be called while the request is being served, with names
// that the program chose: never with the request's path, of which clients can make
// as many as they like.
func SetRoute(r *http.Request, pattern string) {
	r.Pattern = pattern
	if v := visitOf(r); v != nil {
		v.mu.Lock()
		v.route, v.routeSet = pattern, pattern != ""
		v.mu.Unlock()
	}
}

// noteRoute keeps the pattern by which r was matched, and returns the route that is
// known by now. It is called by those who end, so by the innermost first, who knows
// best.
func (v *visit) noteRoute(r *http.Request, pattern string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if route := v.routeLocked(r, pattern); route != v.route {
		v.route, v.routePath = route, r.URL.Path
	}
	return v.route
}

// routeOf returns the route as it is known while r is being served.
func (v *visit) routeOf(r *http.Request) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.routeLocked(r, r.Pattern)
}

func (v *visit) routeLocked(r *http.Request, pattern string) string {
	pattern = chosenPattern(r, pattern)
	switch {
	case v.route == "" && pattern == "":
		return v.routeAhead
	case v.route == "":
		return pattern
	case v.routeSet || pattern == "" || pattern == v.route:
		return v.route
	case r.URL.Path != v.routePath && strings.HasSuffix(r.URL.Path, v.routePath): // http.StripPrefix
		return joinPatterns(pattern, v.route)
	}
	return v.route
}

// chosenPattern returns the pattern that a mux has found for r, or "" if it is none
// that the program chose: for CONNECT, ServeMux calls the path that it redirects to
// the pattern.
func chosenPattern(r *http.Request, pattern string) string {
	if r.Method == http.MethodConnect && r.URL != nil && !strings.HasSuffix(r.URL.Path, "/") &&
		pattern == path.Clean("/"+r.URL.Path)+"/" {
		return ""
	}
	return pattern
}

// joinPatterns returns the pattern of a mux that is mounted at a pattern: of "/api/"
// and "GET /item/{id}" it is "GET /api/item/{id}".
func joinPatterns(mount, inner string) string {
	method, host, prefix := splitPattern(mount)
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 && strings.HasSuffix(prefix, "...}") {
		prefix = prefix[:i+1]
	}
	if !strings.HasSuffix(prefix, "/") {
		return inner // not the mount
	}
	innerMethod, innerHost, rest := splitPattern(inner)
	if innerMethod != "" {
		method = innerMethod
	}
	if host == "" {
		host = innerHost
	}
	if method != "" {
		method += " "
	}
	return method + host + strings.TrimSuffix(prefix, "/") + rest
}

// splitPattern takes a pattern of ServeMux apart.
func splitPattern(pattern string) (method, host, p string) {
	if m, rest, ok := strings.Cut(pattern, " "); ok {
		method, pattern = m, strings.TrimLeft(rest, " \t")
	}
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return method, pattern[:i], pattern[i:]
	}
	return method, "", pattern
}

// routeWatch notices that the route of no request is known.
type routeWatch struct {
	judged atomic.Bool
	empty  atomic.Int32
}

// routeless is how many answers without a route make it certain that something keeps
// it back.
const routeless = 20

func (rw *routeWatch) see(logger *slog.Logger, route string, status int) {
	if rw.judged.Load() || status >= 300 && route == "" {
		return
	}
	if route != "" {
		rw.judged.Store(true)
		return
	}
	if rw.empty.Add(1) == routeless {
		rw.judged.Store(true)
		warn(logger, WarnRouteUnknown, "",
			"no request has a route, so logs and metrics can't tell them apart: something between here and the router copies "+
				"the request, or the router does not set Request.Pattern; put Routed right around the router, or call SetRoute")
	}
}
