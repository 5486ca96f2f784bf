package middleware

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
)

// RecoverConfig tells Recover what to do with a panic. The zero value logs it
// with its stack and answers 500.
type RecoverConfig struct {
	// Logger gets one error record for each panic. Nil means slog.Default().
	Logger *slog.Logger

	// OnPanic, when set, is called instead of logging. It must be safe for
	// concurrent use; a panic in it is dropped.
	OnPanic func(r *http.Request, value any, stack []byte)

	// Answer writes the response. Nil means a plain-text 500. The handler's cookies
	// and what described its body are taken out of the headers, but not the cookie of a
	// session that got a new id or ended. It is not called
	// when the handler had already begun to answer: then the connection is
	// aborted, so that the client does not take a torn response for a whole one.
	Answer http.Handler
}

// Recover turns a panic in a handler into a 500 answer. http.ErrAbortHandler is
// let through: it is how a handler asks net/http to drop the connection.
//
// Sessions inside of Recover save nothing when the handler panics. The cookie of a
// Regenerate or Destroy before goes with the answer.
func Recover(cfg RecoverConfig) Middleware {
	if cfg.Answer == nil {
		cfg.Answer = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		})
	}
	return func(next http.Handler) http.Handler {
		return newLayer(kindRecover, next, cfg.Logger, func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			t := v.track(w)
			defer func() {
				p := recover()
				if p == nil {
					return
				}
				replaced := v.wasReplaced() // by an answer that is complete
				if p == http.ErrAbortHandler {
					if replaced {
						return
					}
					panic(p)
				}
				cfg.report(v, r, p)
				if replaced {
					return
				}
				if t.sent {
					panic(http.ErrAbortHandler)
				}
				forError(w.Header())
				v.keepCookies(w.Header())
				cfg.Answer.ServeHTTP(t.out, r)
			}()
			next.ServeHTTP(t.out, r)
		})
	}
}

func (cfg *RecoverConfig) report(v *visit, r *http.Request, p any) {
	stack := debug.Stack()
	if cfg.OnPanic == nil {
		v.mu.Lock()
		id := v.requestID
		v.mu.Unlock()
		loggerOr(cfg.Logger).LogAttrs(r.Context(), slog.LevelError, "handler panicked",
			slog.String("panic", fmt.Sprint(p)), slog.String("method", r.Method), slog.String("route", v.routeOf(r)),
			slog.String("request_id", id), slog.String("stack", string(stack)))
		return
	}
	defer func() { _ = recover() }()
	cfg.OnPanic(r, p, stack)
}

func loggerOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}
