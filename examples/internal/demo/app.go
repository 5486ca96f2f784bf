package demo

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

//go:embed page
var pageFiles embed.FS

//go:embed templates
var templateFiles embed.FS

type app struct {
	cfg       config
	redis     *backend
	log       *slog.Logger
	sessions  *session.Store
	limiter   *ratelimit.Limiter
	limits    *limits
	source    *profileStore
	profiles  *cacheaside.Cache[int, profile]
	live      *live
	pages     hub
	health    health
	telemetry allTelemetry
	tmpl      *template.Template
	cookie    string

	ending chan struct{} // closed when the server shuts down
	end    sync.Once
	ended  sync.WaitGroup
}

func newApp(cfg config, rds *backend, log *slog.Logger, telemetry allTelemetry) (*app, error) {
	a := &app{
		cfg: cfg, redis: rds, log: log, source: &profileStore{rdb: rds.database}, live: new(live),
		telemetry: telemetry, cookie: "sid", ending: make(chan struct{}),
	}
	if cfg.behindTLS {
		a.cookie = session.HostName("sid")
	}
	rds.rdb.AddHook(latencyHook{a.live})
	if err := telemetry.redis(rds.rdb); err != nil { // before anything is made with it
		return nil, err
	}
	counted := ratelimit.Hooks{OnDecision: func(d ratelimit.Decision) {
		a.live.now(func(s *second) {
			if d.Allowed {
				s.allowed++
			} else {
				s.denied++
			}
		})
	}}
	var errs [5]error
	a.sessions, errs[0] = session.New(rds.rdb, session.Config{
		Keys:            cfg.keys,
		IdleTimeout:     30 * time.Minute,
		AbsoluteTimeout: 24 * time.Hour,
		// Browsers, and curl, do not all send Secure cookies over plain HTTP,
		// not even to localhost.
		Cookie:  session.Cookie{InsecureHTTP: !cfg.behindTLS},
		Label:   describeDevice,
		Timeout: cfg.redisTimeout,
		Hooks:   telemetry.sessions(),
	})
	a.limiter, errs[1] = ratelimit.New(rds.rdb, ratelimit.Config{Timeout: cfg.redisTimeout, Hooks: telemetry.rateLimit("demo", counted)},
		ratelimit.SlidingLog("demo", 20, 10*time.Second))
	a.limits, errs[2] = newLimits(rds.rdb, cfg.redisTimeout, telemetry.rateLimit("try", counted))
	a.profiles, errs[3] = cacheaside.New(rds.rdb, "profile", telemetry.load("profile", a.source.load), cacheaside.Config{
		TTL: time.Minute, Timeout: cfg.redisTimeout, OnInvalidate: a.tellInvalidation, Hooks: telemetry.cache("profile"),
	})
	a.tmpl, errs[4] = template.ParseFS(templateFiles, "templates/*.html")
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if err := telemetry.add("demo", a.sessions, "profile", a.profiles); err != nil {
		return nil, err
	}
	a.ended.Go(a.watch)
	return a, nil
}

// stop ends what would otherwise go on for as long as pages are open.
func (a *app) stop() { a.end.Do(func() { close(a.ending) }) }

func (a *app) close() {
	a.stop()
	a.ended.Wait()
	a.profiles.Close()
	a.sessions.Close()
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.Handle("GET /page/", http.FileServerFS(pageFiles))
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /events", a.events)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /logout", a.logout)
	mux.HandleFunc("GET /api/me", a.me)
	mux.HandleFunc("GET /api/devices", a.devices)
	mux.HandleFunc("POST /api/devices/revoke", a.revoke)
	mux.HandleFunc("POST /api/devices/revoke-others", a.revokeOthers)
	mux.Handle("GET /api/limited", middleware.RateLimit(a.limiter, middleware.ClientIP(), middleware.RateLimitConfig{})(
		http.HandlerFunc(a.limited)))
	mux.Handle("GET /api/try", a.limits.try())
	mux.Handle("POST /try", a.limits.try())
	mux.HandleFunc("GET /api/profile", a.profile)
	mux.HandleFunc("POST /api/profile", a.updateProfile)
	mux.HandleFunc("POST /api/profile/invalidate", a.invalidateProfile)
	mux.HandleFunc("POST /api/profile/stampede", a.stampedeProfile)
	mux.HandleFunc("POST /redis", a.breakRedis)

	return middleware.Chain( // first is outermost
		middleware.Recover(middleware.RecoverConfig{Logger: a.log}),
		secureHeaders,
		middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: a.cfg.trustedProxies, Logger: a.log}),
		a.telemetry.middleware(),
		middleware.Sessions(a.sessions, a.cookie, middleware.SessionsConfig{Logger: a.log}),
		http.NewCrossOriginProtection().Handler,
	)(mux)
}

func secureHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "+
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

func (a *app) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 500*time.Millisecond)
	defer cancel()
	state, status := "ok", http.StatusOK
	if err := a.redis.rdb.Ping(ctx).Err(); err != nil {
		state, status = "down", http.StatusServiceUnavailable
	}
	writeJSON(w, status, map[string]any{"redis": map[string]string{"kind": a.redis.kind, "state": state}})
}

func (a *app) limited(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"answer": "allowed"})
}

// done ends a successful POST: scripts get the account, browsers go back to the
// page.
func (a *app) done(w http.ResponseWriter, r *http.Request) {
	if wantsJSON(r) {
		writeJSON(w, http.StatusOK, a.account(r))
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func wantsJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json")
}

func (a *app) fail(w http.ResponseWriter, r *http.Request, err error) {
	a.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	if errors.Is(err, session.ErrUnavailable) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Redis can't be reached right now; try again in a moment.", http.StatusServiceUnavailable)
		return
	}
	http.Error(w, "Something went wrong.", http.StatusInternalServerError)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
