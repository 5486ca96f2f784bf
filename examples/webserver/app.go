package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

//go:embed page
var pageFiles embed.FS

// users may sign in. A real application checks a password here, behind a limit
// of its own.
var users = map[string]string{"ada": "Ada Lovelace", "grace": "Grace Hopper"}

type app struct {
	cfg      config
	redis    *backend
	log      *slog.Logger
	sessions *session.Store
	limiter  *ratelimit.Limiter
	source   *profileStore
	profiles *cacheaside.Cache[int, profile]
	page     *template.Template
	name     string // of the cookie
}

func newApp(cfg config, rds *backend, log *slog.Logger) (*app, error) {
	a := &app{cfg: cfg, redis: rds, log: log, source: &profileStore{rdb: rds.rdb}, name: "sid"}
	if cfg.behindTLS {
		a.name = "__Host-sid"
	}
	var errs [4]error
	a.sessions, errs[0] = session.New(rds.rdb, session.Config{
		Keys:            cfg.keys,
		IdleTimeout:     30 * time.Minute,
		AbsoluteTimeout: 24 * time.Hour,
		// Browsers, and curl, do not all send Secure cookies over plain HTTP,
		// not even to localhost.
		Cookie: session.Cookie{InsecureHTTP: !cfg.behindTLS},
		Label:  describeDevice,
	})
	a.limiter, errs[1] = ratelimit.New(rds.rdb, ratelimit.Config{},
		ratelimit.SlidingLog("demo", 20, 10*time.Second))
	a.profiles, errs[2] = cacheaside.New(rds.rdb, "profile", a.source.load, cacheaside.Config{TTL: time.Minute})
	a.page, errs[3] = template.ParseFS(pageFiles, "page/*.html")
	return a, errors.Join(errs[:]...)
}

func (a *app) close() {
	a.profiles.Close()
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.Handle("GET /page/", http.FileServerFS(pageFiles))
	mux.HandleFunc("GET /healthz", a.health)
	mux.HandleFunc("POST /login", a.login)
	mux.HandleFunc("POST /logout", a.logout)
	mux.HandleFunc("GET /api/me", a.me)
	mux.Handle("GET /api/limited", middleware.RateLimit(a.limiter, middleware.ClientIP(), middleware.RateLimitConfig{})(
		http.HandlerFunc(a.limited)))
	mux.HandleFunc("GET /api/profile", a.profile)
	mux.HandleFunc("POST /api/profile", a.updateProfile)
	mux.HandleFunc("GET /api/devices", a.devices)
	mux.HandleFunc("POST /api/devices/revoke", a.revoke)
	mux.HandleFunc("POST /api/devices/revoke-others", a.revokeOthers)

	return middleware.Chain(
		middleware.Recover(middleware.RecoverConfig{Logger: a.log}),
		secureHeaders,
		middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: a.cfg.trustedProxies, Logger: a.log}),
		middleware.Sessions(a.sessions, a.name, middleware.SessionsConfig{Logger: a.log}),
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

func (a *app) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 500*time.Millisecond)
	defer cancel()
	state, status := "ok", http.StatusOK
	if err := a.redis.rdb.Ping(ctx).Err(); err != nil {
		state, status = "down", http.StatusServiceUnavailable
	}
	writeJSON(w, status, map[string]any{"redis": map[string]string{"kind": a.redis.kind, "state": state}})
}

// account is what /api/me tells.
type account struct {
	User          string `json:"user"`
	Session       string `json:"session"`
	Visits        int    `json:"visits"`
	IdleTTLMs     int64  `json:"idle_ttl_ms"`
	AbsoluteTTLMs int64  `json:"absolute_ttl_ms"`
}

var (
	userKey   = session.Key[string]("user")
	visitsKey = session.Key[int]("visits")
)

func (a *app) account(r *http.Request) account {
	s := middleware.Session(r)
	user, _ := userKey.Get(s)
	visits, _ := visitsKey.Get(s)
	idle, absolute := a.sessions.TTL(s)
	return account{
		User: user, Session: session.ID(s), Visits: visits,
		IdleTTLMs: idle.Milliseconds(), AbsoluteTTLMs: absolute.Milliseconds(),
	}
}

func (a *app) me(w http.ResponseWriter, r *http.Request) {
	s := middleware.Session(r)
	visits, _ := visitsKey.Get(s)
	visitsKey.Set(s, visits+1)
	// Saved here rather than by the middleware, so that the answer can name the
	// session and its lifetimes.
	if _, err := a.sessions.Commit(w, r, s); err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, a.account(r))
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	user := strings.ToLower(strings.TrimSpace(r.PostFormValue("user")))
	if _, ok := users[user]; !ok {
		http.Error(w, "There is no such user; try ada or grace.", http.StatusUnauthorized)
		return
	}
	s := middleware.Session(r)
	userKey.Set(s, user)
	s.AddFlash("Signed in as " + users[user] + ".")
	err := a.sessions.Bind(s, user)
	if err == nil {
		// A new secret at sign-in, so that a cookie planted before is worth nothing.
		err = a.sessions.Regenerate(w, r, s)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.done(w, r)
}

func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	if err := a.sessions.Destroy(w, r, middleware.Session(r)); err != nil {
		a.fail(w, r, err)
		return
	}
	if wantsJSON(r) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) limited(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"answer": "allowed"})
}

func (a *app) profile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.FormValue("id"))
	if err != nil {
		http.Error(w, "id must be a number, such as 1.", http.StatusBadRequest)
		return
	}
	start := time.Now()
	e, err := a.profiles.GetEntry(r.Context(), id)
	switch {
	case errors.Is(err, cacheaside.ErrNotFound):
		http.Error(w, "There is no such profile; try 1 or 2.", http.StatusNotFound)
	case err != nil:
		a.fail(w, r, err)
	default:
		writeJSON(w, http.StatusOK, map[string]any{
			"profile":    e.Value,
			"source":     e.Source.String(),
			"elapsed_us": time.Since(start).Microseconds(),
			"ttl_ms":     e.TTL.Milliseconds(),
		})
	}
}

func (a *app) updateProfile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PostFormValue("id"))
	city := strings.TrimSpace(r.PostFormValue("city"))
	if err != nil || city == "" || len(city) > 80 {
		http.Error(w, "id must be a number, and city a name of at most 80 bytes.", http.StatusBadRequest)
		return
	}
	err = a.profiles.Update(r.Context(), func(ctx context.Context) error {
		return a.source.setCity(ctx, id, city)
	}, id)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.done(w, r)
}

type device struct {
	ID       string    `json:"id"`
	Label    string    `json:"label"`
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"last_seen"`
	Current  bool      `json:"current"`
}

func (a *app) listDevices(r *http.Request) (user string, list []device, err error) {
	s := middleware.Session(r)
	if user, _ = userKey.Get(s); user == "" {
		return "", nil, nil
	}
	infos, err := a.sessions.Sessions(r.Context(), user)
	for _, in := range infos {
		list = append(list, device{in.ID, in.Label, in.Created, in.LastSeen, in.ID == session.ID(s)})
	}
	return user, list, err
}

func (a *app) devices(w http.ResponseWriter, r *http.Request) {
	user, list, err := a.listDevices(r)
	switch {
	case err != nil:
		a.fail(w, r, err)
	case user == "":
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
	default:
		writeJSON(w, http.StatusOK, map[string]any{"user": user, "devices": list})
	}
}

func (a *app) revoke(w http.ResponseWriter, r *http.Request) {
	user, _ := userKey.Get(middleware.Session(r))
	if user == "" {
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
		return
	}
	found, err := a.sessions.Revoke(r.Context(), user, r.PostFormValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if !found {
		http.Error(w, "You have no such device; it may have signed out already.", http.StatusNotFound)
		return
	}
	a.done(w, r)
}

func (a *app) revokeOthers(w http.ResponseWriter, r *http.Request) {
	s := middleware.Session(r)
	user, _ := userKey.Get(s)
	if user == "" {
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
		return
	}
	n, err := a.sessions.RevokeUser(r.Context(), user, session.ID(s))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	s.AddFlash(fmt.Sprintf("Signed out %d other devices.", n))
	a.done(w, r)
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

// describeDevice is the label of a session in the list of devices.
func describeDevice(r *http.Request) string {
	agent := r.UserAgent()
	name := "Unknown browser"
	for _, known := range []struct{ mark, name string }{
		{"Firefox/", "Firefox"}, {"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"}, {"curl/", "curl"},
	} {
		if strings.Contains(agent, known.mark) {
			name = known.name
			break
		}
	}
	return name + " at " + middleware.ClientAddrOf(r).String()
}
