package middleware

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/session"
)

// SessionsConfig tells Sessions when to load, and what to do when saving fails.
// The zero value loads when a handler asks, and answers with an error rather
// than pretend that something was saved.
type SessionsConfig struct {
	// Eager starts loading when a request with a session cookie comes in, so that
	// it overlaps what happens before the handler asks: also what the RateLimits
	// right in front of Sessions ask of Redis, so that both take the time of one round
	// trip. Set it where nearly every request asks for its session. It costs a load
	// for requests that never do, and for those that Redis finds over the limit; a
	// denial that is known in this process costs none.
	Eager bool

	// ServeUnsaved sends the handler's response although its session changes could
	// not be saved, and logs it. Otherwise the response is replaced by 503 if
	// Redis is unavailable, session.Config.Replicas were missing or another request gave
	// the session a new id meanwhile (session.ErrSuperseded; a repetition finds it), and
	// by 500 for anything else, as long as nothing of it was sent. A session that has
	// ended meanwhile is no error: nothing is saved, and it is logged.
	ServeUnsaved bool

	// Error, when set, writes that response. Its headers hold what the handler had
	// set, without what describes its body.
	Error func(w http.ResponseWriter, r *http.Request, err error)

	// Logger gets warnings and errors. Nil means slog.Default().
	Logger *slog.Logger
}

// Sessions gives each request a session that is loaded when a handler first asks
// for it with [Session], and saved by itself before the response's headers go out:
// before the first final WriteHeader, Write, WriteString, ReadFrom, Flush or Hijack,
// or when the handler returns. Responses of status 1xx don't count, except 101.
//
// A session that was not changed is not written and sends no cookie; one that
// was not asked for leaves the response alone altogether. Otherwise the response
// gets Vary: Cookie and Cache-Control: private, or no-store with a cookie.
//
// What a handler changes after the headers have gone is saved when it returns, if
// the session exists already. A new session needs a cookie, for which it is too
// late: nothing is stored, and session.ErrHeadersSent is logged. The same holds
// for Hijack, after which the handler writes its own headers.
//
// Nothing is saved when the handler panics, or when it is given up by
// http.TimeoutHandler while it still runs. Explicit calls ([Regenerate],
// [Destroy], sessions.Session.Save) take effect at once and stay; the cookies of
// Regenerate and Destroy go with the 500 of [Recover], or with whatever replaces the
// response.
//
// session.Config.Label and Legacy are called while the session is locked, so they
// must not ask for it.
//
// name is the cookie's name. Several Sessions with different names may be
// nested. Sessions panics if store is nil or name is no valid cookie name.
func Sessions(store *session.Store, name string, cfg SessionsConfig) Middleware {
	if store == nil {
		panic("middleware: Sessions without a store; make one with session.New")
	}
	if tokenLen(name) != len(name) || name == "" {
		panic("middleware: Sessions: " + name + " is no valid cookie name")
	}
	sm := &sessionManager{store: store, name: name, cfg: cfg}
	return func(next http.Handler) http.Handler {
		l := newLayer(kindSessions, next, cfg.Logger, sm.serve)
		if cfg.Eager {
			l.begin = sm.begin
		}
		return l
	}
}

type sessionManager struct {
	store *session.Store
	name  string
	cfg   SessionsConfig
}

func (sm *sessionManager) serve(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
	if v.holder(sm.name) != nil {
		warn(sm.cfg.Logger, WarnSessionsTwice, sm.name,
			"Sessions stands twice in one chain for the same cookie; the inner one does nothing", slog.String("cookie", sm.name))
		next.ServeHTTP(w, r)
		return
	}
	t := v.track(w)
	h := &holder{sm: sm, visit: v, writer: t, outer: r}
	v.mu.Lock()
	if v.holders == nil {
		v.holders = v.room.holders[:0]
	}
	v.holders = append(v.holders, h)
	v.mu.Unlock()
	t.onBegin(h)
	if sm.cfg.Eager {
		if h.loading = v.takeLoading(sm); h.loading == nil {
			h.preload(r)
		}
	}
	finished := false
	defer func() {
		if finished {
			return
		}
		h.abort()
		if v.wasReplaced() {
			// The answer is written, and complete; a panic would have net/http drop it.
			if p := recover(); p != nil {
				sm.afterReplaced(v, r, p)
			}
		}
	}()
	next.ServeHTTP(t.out, r)
	finished = true
	h.finish()
}

// afterReplaced deals with the panic of a handler whose response was replaced: many
// panic because their write failed, as httputil.ReverseProxy does. What is more than
// that is for Recover, if there is one.
func (sm *sessionManager) afterReplaced(v *visit, r *http.Request, p any) {
	if p == http.ErrAbortHandler {
		return
	}
	if v.hasPassed(kindRecover) {
		panic(p)
	}
	cfg := RecoverConfig{Logger: sm.cfg.Logger}
	cfg.report(v, r, p)
}

// holder has one session of one request. Its lock is held while Redis is asked,
// which has a deadline, so that a middleware that ends the request does not
// overtake a handler on another goroutine.
type holder struct {
	sm     *sessionManager
	visit  *visit
	writer *writer
	outer  *http.Request // as Sessions got it

	mu        sync.Mutex
	s         *sessions.Session
	err       error            // of loading
	inner     context.Context  // of the request by which a handler asked last
	touched   bool             // a handler asked
	late      bool             // for the first time after the headers had gone
	committed bool             // the headers have gone, or are about to
	abandoned bool             // the handler was given up and may still be running
	gone      bool             // the session was destroyed or expired meanwhile
	failed    bool             // it could not be saved; the answer says so, if it could
	ended     bool             // the middleware has returned
	cookies   http.Header      // what Regenerate and Destroy set, which took effect at once
	kept      http.Header      // the same, once it is among the headers, for an answer that replaces them
	loading   *session.Loading // of an eager one
	eager     chan loaded      // of one that can't be begun by itself
	headers   headerWriter     // that commit writes to

	shared loaded // for gorilla's registry; guarded by the visit's lock
}

type loaded struct {
	s   *sessions.Session
	err error
}

// holder returns the innermost one, or that of the cookie with the given name.
func (v *visit) holder(name string) *holder {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := len(v.holders) - 1; i >= 0; i-- {
		if h := v.holders[i]; name == "" || h.sm.name == name {
			return h
		}
	}
	return nil
}

// begin starts to load the session for the holder that will be made when the request
// comes to Sessions.
func (sm *sessionManager) begin(v *visit, r *http.Request) {
	v.mu.Lock()
	busy := v.loading != nil
	v.mu.Unlock()
	if busy || v.holder(sm.name) != nil {
		return
	}
	if l := sm.store.Preload(r, sm.name); l != nil {
		v.mu.Lock()
		v.loading, v.loadingOf = l, sm
		v.mu.Unlock()
	}
}

// preload starts to load, if there is something to load: on another goroutine if the
// store can't begin it and go on.
func (h *holder) preload(r *http.Request) {
	if h.loading = h.sm.store.Preload(r, h.sm.name); h.loading != nil {
		return
	}
	if _, err := r.Cookie(h.sm.name); err != nil {
		return
	}
	h.eager = make(chan loaded, 1)
	own := r.WithContext(r.Context()) // New may write to it
	go func() {
		s, err := h.sm.store.New(own, h.sm.name)
		h.eager <- loaded{s, err}
	}()
}

// load returns the session, and asks Redis if nobody has yet.
func (h *holder) load(r *http.Request) (*sessions.Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.loadLocked(r)
}

func (h *holder) loadLocked(r *http.Request) (*sessions.Session, error) {
	if h.s != nil {
		return h.s, h.err
	}
	if h.ended { // on a goroutine that was left behind
		return sessions.NewSession(h.sm.store, h.sm.name), session.ErrUnavailable
	}
	start := time.Now()
	h.s, h.err = h.visit.share(h, r, func() (l loaded) {
		if h.loading != nil {
			l.s, l.err = h.loading.Session()
			return l
		}
		if h.eager != nil {
			return <-h.eager
		}
		l.s, l.err = h.sm.store.New(r, h.sm.name)
		return l
	})
	ev := Event{Area: "http", Op: "session", Outcome: "found", Duration: time.Since(start), Err: h.err}
	switch {
	case h.err != nil:
		ev.Outcome = "error"
		loggerOr(h.sm.cfg.Logger).LogAttrs(r.Context(), slog.LevelError, "session could not be loaded", slog.String("error", h.err.Error()))
	case h.s.IsNew:
		ev.Outcome = "new"
	}
	h.visit.tell(ev)
	return h.s, h.err
}

// use is load for a handler, which may change what it gets.
func (h *holder) use(r *http.Request) (*sessions.Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.useLocked(r)
}

func (h *holder) useLocked(r *http.Request) (*sessions.Session, error) {
	h.late = h.late || h.committed && !h.touched
	h.touched = true
	h.inner = r.Context()
	return h.loadLocked(r)
}

// givenUp reports whether a middleware inside, such as http.TimeoutHandler,
// answers in place of a handler that may still be running and changing the
// session: the handler's context can end apart from ours, and has.
func (h *holder) givenUp() bool {
	if h.inner == nil {
		return false
	}
	outer := h.outer.Context()
	if h.inner.Done() == outer.Done() || h.inner.Err() == nil {
		return false
	}
	return errors.Is(h.inner.Err(), context.DeadlineExceeded) || outer.Err() != nil
}

// beforeHeaders saves before the first byte of the response. reach says whether
// headers set now get to the client.
func (h *holder) beforeHeaders(reach bool) answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || h.committed {
		return nil
	}
	h.committed = true
	if !h.touched {
		return nil
	}
	if h.givenUp() {
		h.abandoned = true
		warn(h.sm.cfg.Logger, WarnSessionAbandoned, h.visit.routeOf(h.outer),
			"a handler was given up by a timeout while it used the session; what it changed is not saved")
		return nil
	}
	err := h.commit(reach)
	if err == nil {
		return nil
	}
	h.failed = true
	return h.failure(err)
}

// finish saves what is left when the handler has returned.
func (h *holder) finish() {
	instead := h.beforeHeaders(!h.writer.sent) // unless that has happened
	if instead != nil && !h.writer.sent {
		h.writer.begun = true
		h.visit.setReplaced()
		h.writer.replace(instead)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// A handler that was given up before it asked may be asking just now.
	late := h.touched && !h.abandoned && !h.givenUp() && !h.gone && !h.failed && !h.ended && (h.writer.sent || h.writer.begun)
	if late && h.late && !h.writer.hijacked && storable(h.writer.under.Header()) {
		warn(h.sm.cfg.Logger, WarnPublicSession, h.visit.routeOf(h.outer),
			"a response that depends on the session went out as public, since the session was asked for after its headers had gone; "+
				"ask for it earlier, or declare the response private", slog.String("route", h.visit.routeOf(h.outer)))
	}
	h.end()
	if !late || instead != nil || len(h.cookies) == 0 && !h.sm.store.Changed(h.s) {
		return
	}
	if err := h.commit(false); err != nil {
		_ = h.failure(err)
	}
}

// abort is for a handler that panicked: nothing is saved, also not when another
// middleware answers. A new id and a logout have taken effect, so their cookies go with
// whatever is answered.
func (h *holder) abort() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.cookies) > 0 && !h.writer.sent {
		moveCookies(h.writer.under.Header(), h.cookies)
		h.kept, h.cookies = h.cookies, nil
	}
	h.end()
}

// keepCookies puts the sessions' cookies back after forError.
func (v *visit) keepCookies(header http.Header) {
	v.mu.Lock()
	holders := v.holders
	v.mu.Unlock()
	for _, h := range holders {
		h.mu.Lock()
		moveCookies(header, h.kept)
		h.mu.Unlock()
	}
}

func (h *holder) end() {
	h.ended = true
	if h.loading != nil {
		h.loading.Drop() // nothing, if somebody asked
	}
}

// commit saves what changed. With reach false nothing that needs a cookie can be
// saved.
func (h *holder) commit(reach bool) error {
	header := h.writer.under.Header()
	if reach {
		moveCookies(header, h.cookies)
	} else {
		header = make(http.Header)
		if len(h.cookies) > 0 {
			h.tooLate("the session's cookie can't be sent, since the response's headers have gone")
		}
		if session.ID(h.s) == "" && h.sm.store.NeedsCookie(h.s) {
			h.tooLate("a new session can't be saved, since the response's headers have gone")
			return nil
		}
	}
	h.kept, h.cookies = h.cookies, nil
	start := time.Now()
	h.headers.header = header
	wrote, err := h.sm.store.Commit(&h.headers, h.outer, h.s)
	if errors.Is(err, session.ErrSessionGone) && !errors.Is(err, session.ErrSuperseded) {
		h.gone = true
		loggerOr(h.sm.cfg.Logger).LogAttrs(h.outer.Context(), slog.LevelInfo, "session was gone when it was to be saved",
			slog.String("session", session.ID(h.s)))
		h.visit.tell(Event{Area: "http", Op: "commit", Outcome: "gone", Duration: time.Since(start)})
		err = nil
	} else {
		ev := Event{Area: "http", Op: "commit", Outcome: "ok", Duration: time.Since(start), Err: err}
		if err != nil {
			ev.Outcome = "error"
		}
		h.visit.tell(ev)
	}
	switch {
	case reach:
		cookie := h.checkCookie(header)
		if markPrivate(header, cookie) {
			warn(h.sm.cfg.Logger, WarnPublicSession, h.visit.routeOf(h.outer),
				"a response that depends on the session was declared public; it is sent as private, or not to be stored at all",
				slog.String("route", h.visit.routeOf(h.outer)))
		}
		if cookie && h.writer.hijacking {
			h.tooLate("the session's cookie is in the headers of a response whose connection is hijacked, which the client gets only if " +
				"the handler sends them, as httputil.ReverseProxy does")
		}
	case wrote:
		h.tooLate("the session's cookie can't be sent, since the response's headers have gone")
	}
	return err
}

// failure logs an error of commit and returns what to answer instead.
func (h *holder) failure(err error) answer {
	r := h.outer
	level := slog.LevelError
	if errors.Is(err, session.ErrSuperseded) { // by another request of the same browser
		level = slog.LevelWarn
	}
	loggerOr(h.sm.cfg.Logger).LogAttrs(r.Context(), level, "session could not be saved",
		slog.String("error", err.Error()), slog.String("route", h.visit.routeOf(r)))
	if h.sm.cfg.ServeUnsaved {
		return nil
	}
	kept := h.kept
	return func(w http.ResponseWriter) {
		moveCookies(w.Header(), kept)
		if h.sm.cfg.Error != nil {
			h.sm.cfg.Error(w, r, err)
			return
		}
		status := http.StatusInternalServerError
		if errors.Is(err, session.ErrUnavailable) || errors.Is(err, session.ErrNotReplicated) || errors.Is(err, session.ErrSuperseded) {
			status = http.StatusServiceUnavailable
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, http.StatusText(status), status)
	}
}

func (h *holder) tooLate(what string) {
	route := h.visit.routeOf(h.outer)
	warn(h.sm.cfg.Logger, WarnHeadersSent, route, what+"; ask for the session and change it before the response begins",
		slog.String("route", route), slog.String("error", session.ErrHeadersSent.Error()))
	h.visit.tell(Event{Area: "http", Op: "commit", Outcome: "headers-sent", Err: session.ErrHeadersSent})
}

// checkCookie looks at the cookie that goes out, and reports whether one does.
func (h *holder) checkCookie(header http.Header) (sent bool) {
	for _, line := range header["Set-Cookie"] {
		value, ok := strings.CutPrefix(line, h.sm.name+"=")
		if !ok {
			continue
		}
		sent = true
		value, attrs, _ := strings.Cut(value, ";")
		if value == "" { // a deletion
			continue
		}
		if !strings.Contains(attrs, "Secure") && (h.outer.TLS != nil || h.outer.Header.Get("X-Forwarded-Proto") == "https") {
			warn(h.sm.cfg.Logger, WarnInsecureCookie, h.sm.name,
				"the session's cookie lacks Secure although it is used over TLS, so browsers send it in the clear as well; "+
					"leave session.Cookie.InsecureHTTP off", slog.String("cookie", h.sm.name))
		}
		if !strings.Contains(value, ".") { // which separates token and signature
			warn(h.sm.cfg.Logger, WarnUnsignedSessions, h.sm.name,
				"session cookies are not signed, so every forged one costs a call to Redis; set session.Config.Keys",
				slog.String("cookie", h.sm.name))
		}
	}
	return sent
}

// moveCookies adds the cookies of from to header, in place of earlier ones of the
// same name, domain and path.
func moveCookies(header, from http.Header) {
	for _, line := range from["Set-Cookie"] {
		kept := header["Set-Cookie"][:0:0]
		for _, old := range header["Set-Cookie"] {
			if !sameCookie(old, line) {
				kept = append(kept, old)
			}
		}
		header["Set-Cookie"] = append(kept, line)
	}
}

// sameCookie reports whether browsers store the cookie of one line over that of the
// other.
func sameCookie(a, b string) bool {
	x, err := http.ParseSetCookie(a)
	y, err2 := http.ParseSetCookie(b)
	if err != nil || err2 != nil {
		name, _, _ := strings.Cut(a, "=")
		return strings.HasPrefix(b, name+"=")
	}
	return x.Name == y.Name && x.Path == y.Path && strings.EqualFold(x.Domain, y.Domain)
}

// headerWriter is a ResponseWriter for those who only set headers.
type headerWriter struct{ header http.Header }

func (w *headerWriter) Header() http.Header         { return w.header }
func (w *headerWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *headerWriter) WriteHeader(int)             {}
