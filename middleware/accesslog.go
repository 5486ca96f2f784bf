package middleware

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/redporch/redporch/session"
)

// AccessLogConfig tells AccessLog what to log. The zero value logs to
// slog.Default() at level Info, without path and query.
type AccessLogConfig struct {
	// Logger gets one record for each request. Nil means slog.Default().
	Logger *slog.Logger

	// Level is the level of answers below 500. Those from 500 on are logged at
	// level Error, or at Level if that is higher.
	Level slog.Level

	// Path adds the request's path. Leave it off where paths hold secrets, such
	// as the token of a password reset; the route is logged in any case. The
	// query is never logged.
	Path bool

	// NoClient leaves the client's address out.
	NoClient bool

	// Attrs, when set, returns further attributes. It must be safe for concurrent
	// use.
	Attrs func(r *http.Request) []slog.Attr

	// Skip, when set, keeps requests out of the log for which it returns true.
	Skip func(r *http.Request) bool
}

// AccessLog logs each request when it has been answered:
//
//	method, route, status, bytes, request_id, client,
//	duration_ms  a number, in milliseconds
//	session   the public id of the session, if the handler used one
//	path      if AccessLogConfig.Path is set
//	limit     "allowed", "denied", "shadow", "banned" or "error", with limit_policy
//	          and, unless Redis decided, limit_source
//	cache     where a cached value came from
//	panic     true, when the handler panicked
//
// Attributes without a value are left out. Nothing secret is among them: a
// session's public id is not what its cookie holds.
func AccessLog(cfg AccessLogConfig) Middleware {
	return func(next http.Handler) http.Handler {
		routes := new(routeWatch)
		return newLayer(kindAccessLog, next, cfg.Logger, func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if cfg.Skip != nil && cfg.Skip(r) {
				next.ServeHTTP(w, r)
				return
			}
			t := v.track(w)
			start := time.Now()
			finished := false
			defer func() { cfg.log(v, t, r, routes, time.Since(start), !finished) }()
			next.ServeHTTP(t.out, r)
			finished = true
		})
	}
}

func (cfg *AccessLogConfig) log(v *visit, t *writer, r *http.Request, routes *routeWatch, took time.Duration, panicked bool) {
	status, level := t.code(), cfg.Level
	if panicked && !t.sent {
		status = http.StatusInternalServerError
	}
	if status >= 500 {
		level = max(level, slog.LevelError)
	}
	route := v.routeOf(r)
	routes.see(cfg.Logger, route, status)
	logger := loggerOr(cfg.Logger)
	if !logger.Enabled(r.Context(), level) {
		return
	}
	var buf [16]slog.Attr
	attrs := append(buf[:0],
		slog.String("method", r.Method),
		slog.String("route", route),
		slog.Int("status", status),
		slog.Int64("bytes", t.bytes),
		milliseconds(took))
	if cfg.Path {
		attrs = append(attrs, slog.String("path", r.URL.Path))
	}
	if !cfg.NoClient {
		if addr := ClientAddrOf(r); addr.IsValid() {
			attrs = append(attrs, slog.String("client", addr.String()))
		}
	}
	v.mu.Lock()
	id, cache, holders := v.requestID, v.cache, v.holders
	decision, limited := tightest(v.decisions)
	v.mu.Unlock()
	if id != "" {
		attrs = append(attrs, slog.String("request_id", id))
	}
	for _, h := range holders {
		if public := h.publicID(); public != "" {
			attrs = append(attrs, slog.String("session", public))
		}
	}
	if limited {
		attrs = append(attrs, slog.String("limit", decision.outcome()))
		if decision.Result.Policy != "" {
			attrs = append(attrs, slog.String("limit_policy", decision.Result.Policy))
		}
		if src := decision.source(); src != "" {
			attrs = append(attrs, slog.String("limit_source", src))
		}
	}
	if cache != "" {
		attrs = append(attrs, slog.String("cache", cache))
	}
	if panicked {
		attrs = append(attrs, slog.Bool("panic", true))
	}
	if cfg.Attrs != nil {
		attrs = append(attrs, cfg.Attrs(r)...)
	}
	logger.LogAttrs(r.Context(), level, "request", attrs...)
}

// milliseconds says in its name what it counts: as a slog.Duration it would be a number of
// nanoseconds in JSON, and text with a unit elsewhere.
func milliseconds(d time.Duration) slog.Attr {
	return slog.Float64("duration_ms", float64(d.Microseconds())/1000)
}

// publicID returns the id of the session the handler used, or "".
func (h *holder) publicID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.s == nil || !h.touched || h.abandoned {
		return ""
	}
	return session.ID(h.s)
}
