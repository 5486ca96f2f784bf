package middleware

import (
	"log/slog"
	"net/http"
	"slices"
)

// Middleware wraps a handler in another. It is an alias, so that a value of this
// type fits wherever a router takes func(http.Handler) http.Handler.
type Middleware = func(http.Handler) http.Handler

// Chain returns the middleware that applies mws with the first outermost: a
// request passes them in the order they are written. Nil ones are left out, and
// Chain() of nothing hands the handler on as it is.
//
// When a middleware of this package stands where it can't do its work, applying
// the chain logs a warning that says what goes wrong. See [Order].
func Chain(mws ...Middleware) Middleware {
	mws = slices.Clone(mws)
	return func(next http.Handler) http.Handler {
		var kinds []kind // innermost first
		for _, mw := range slices.Backward(mws) {
			if mw == nil {
				continue
			}
			next = mw(next)
			if l, ok := next.(*layer); ok {
				kinds = append(kinds, l.kind)
			}
		}
		slices.Reverse(kinds)
		checkOrder(slog.Default(), kinds)
		return next
	}
}

// Order is the recommended order of this package's middlewares, outermost first.
// RateLimit stands twice: by client address before the session is loaded, since
// a denied request should cost nothing more, and by user or session after.
// A handler of CORS belongs inside of AccessLog and outside of RateLimit,
// http.CrossOriginProtection innermost, with [Routed] between it and the mux.
//
// A broken order is warned about when [Chain] builds it, and, for chains that are
// nested by hand, when the first request passes.
var Order = []string{"Recover", "RequestID", "ClientAddr", "Observe", "AccessLog", "RateLimit", "Sessions", "RateLimit"}

// kind tells the layers of this package apart. The values are bits, so that a
// visit remembers in one word which ones it has passed.
type kind uint16

const (
	kindRecover kind = 1 << iota
	kindRequestID
	kindClientAddr
	kindObserve
	kindAccessLog
	kindRateLimit
	kindSessions

	usedClientIP   // a limiter's key needed the client address
	usedSessionKey // a limiter's key needed the session, and there was none
)

func (k kind) String() string {
	switch k {
	case kindRecover:
		return "Recover"
	case kindRequestID:
		return "RequestID"
	case kindClientAddr:
		return "ClientAddr"
	case kindObserve:
		return "Observe"
	case kindAccessLog:
		return "AccessLog"
	case kindRateLimit:
		return "RateLimit"
	default:
		return "Sessions"
	}
}

// misplaced says what goes wrong when the layer of a rule is entered after any
// of the kinds in its mask, that is, inside of them.
var misplaced = []struct {
	inner kind
	outer kind
	code  Code
	why   string
}{
	{kindRecover, kindSessions, WarnRecoverInside, "Recover stands inside Sessions: a handler that panicked looks like one that returned, and its half-made session changes are saved"},
	{kindRecover, kindAccessLog | kindRateLimit | kindClientAddr | kindRequestID | kindObserve, WarnRecoverInside, "Recover does not stand outermost: a panic in a middleware outside of it is not recovered"},
	{kindClientAddr, usedClientIP, WarnLimiterBeforeClientAddr, "RateLimit by client address stands outside ClientAddr: it counts proxies instead of clients"},
	{kindClientAddr, kindAccessLog, WarnAccessLogInside, "AccessLog stands outside ClientAddr: requests that end before ClientAddr are logged with the proxy's address"},
	{kindAccessLog, kindRateLimit | kindSessions, WarnAccessLogInside, "AccessLog stands inside RateLimit or Sessions: requests that they answer are not logged"},
	{kindObserve, kindRateLimit | kindSessions, WarnObserveInside, "Observe stands inside RateLimit or Sessions: what they do is not observed"},
	{kindSessions, usedSessionKey, WarnLimiterBeforeSessions, "RateLimit by session stands outside Sessions: its key is never known"},
	{kindRequestID, kindAccessLog | kindRateLimit | kindSessions, WarnRequestIDInside, "RequestID stands inside AccessLog, RateLimit or Sessions: requests that end before it have no id"},
}

// checkOrder looks at the kinds of a chain, outermost first. Whether a limiter
// needs the client address is not known before the first request, but its
// fallback for requests without a key does.
func checkOrder(logger *slog.Logger, kinds []kind) {
	var passed kind
	for _, k := range kinds {
		for _, m := range misplaced {
			outer := m.outer
			if outer == usedClientIP {
				outer = kindRateLimit
			}
			if m.inner == k && passed&outer != 0 {
				warn(logger, m.code, "", m.why)
			}
		}
		passed |= k
	}
}

// layer is a handler of this package: the part that all share.
type layer struct {
	kind  kind
	next  http.Handler
	log   *slog.Logger
	serve func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler)

	// ahead begins what a layer further in will need, see SessionsConfig.Eager; nil if
	// there is none, or if somebody else's handler is in between.
	ahead func(v *visit, r *http.Request)
	begin func(v *visit, r *http.Request) // what this layer needs
}

func newLayer(k kind, next http.Handler, log *slog.Logger, serve func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler)) *layer {
	l := &layer{kind: k, next: next, log: log, serve: serve}
	if inner, ok := next.(*layer); ok {
		if l.ahead = inner.begin; l.ahead == nil {
			l.ahead = inner.ahead
		}
	}
	return l
}

// ServeHTTP makes sure that the request has a visit, and that the pattern that a
// mux further in finds is seen by those further out, who hold another copy of
// the request.
func (l *layer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v, inner := enter(r)
	if passed := v.pass(l.kind); passed != 0 {
		for _, m := range misplaced {
			if m.inner == l.kind && passed&m.outer != 0 {
				warn(l.log, m.code, "", m.why)
			}
		}
	}
	defer func() {
		r.Pattern = v.noteRoute(inner, inner.Pattern)
	}()
	l.serve(v, w, inner, l.next)
}
