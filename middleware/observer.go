package middleware

import (
	"context"
	"expvar"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Event is one thing that happened in a middleware or a core. It holds no keys,
// tokens, addresses or ids, so that it may go anywhere metrics go.
type Event struct {
	// Area is "http", "session", "ratelimit" or "cacheaside".
	Area string
	// Op is what was done: of "http" it is "request", "ratelimit", "session" (a
	// session was loaded) or "commit"; for the cores see their hooks, such as
	// SessionHooks.
	Op string
	// Outcome is how it ended, such as "ok", "denied", "new", "error". Together
	// with Area and Op it takes few values, so it may become a metric's label.
	Outcome string
	// Name is the route as the program registered it, such as "GET /users/{id}", the
	// deciding policy, or the cache.
	Name string
	// Context is that of the request or call, for a trace's id beside a measurement. It is
	// nil where it is not known: limiters decide for several requests at once.
	Context context.Context
	// Method is the request's for "http", and "_OTHER" for one that is not in RFC 9110 or
	// 5789, since clients may send anything. Otherwise empty.
	Method string
	// Scheme is "http" or "https" for "http", by the connection to this server. Otherwise
	// empty.
	Scheme string
	// Route is Name without method and host for Op "request", such as "/users/{id}": what
	// OpenTelemetry calls http.route.
	Route string
	// Stream reports, for Op "request", that the response was a stream of events
	// (text/event-stream) or that the connection was taken over, as for a WebSocket. Its
	// Duration says how long it was open, not how long an answer took.
	Stream bool
	// Status is the response's status for "http", otherwise 0.
	Status int
	// Bytes is the length of the response's body for "http", otherwise 0.
	Bytes int64
	// Duration is how long it took; zero where it was not measured.
	Duration time.Duration
	// Err is non-nil when something failed, whoever else dealt with it.
	Err error
}

// Observer is told what happens. It is called on the goroutine of the request,
// so it must be quick, and safe for concurrent use. A panic in it is dropped.
//
// One Observer serves them all: [Observe] gives it to the middlewares of a chain,
// and [SessionHooks], [RateLimitHooks] and [CacheHooks] make hooks of it for the
// configurations of the cores.
type Observer func(Event)

// tell calls o, if there is one, and survives it.
func (o Observer) tell(ev Event) {
	if o == nil {
		return
	}
	defer func() { _ = recover() }()
	o(ev)
}

// Observers returns an Observer that tells all of obs.
func Observers(obs ...Observer) Observer {
	return func(ev Event) {
		for _, o := range obs {
			o.tell(ev)
		}
	}
}

// Observe reports each request to o when it has been answered, and lets the
// middlewares inside report what they do.
func Observe(o Observer) Middleware {
	return func(next http.Handler) http.Handler {
		routes := new(routeWatch)
		return newLayer(kindObserve, next, nil, func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			v.mu.Lock()
			v.observer = o
			v.mu.Unlock()
			t := v.track(w)
			start := time.Now()
			finished := false
			defer func() {
				ev := Event{Area: "http", Op: "request", Outcome: "ok", Name: v.routeOf(r), Status: t.code(), Bytes: t.bytes, Duration: time.Since(start),
					Context: r.Context(), Method: knownMethod(r.Method), Scheme: "http", Stream: t.streamed(r)}
				_, _, ev.Route = splitPattern(ev.Name)
				if r.TLS != nil {
					ev.Scheme = "https"
				}
				if !finished {
					ev.Outcome = "panic"
					if !t.sent {
						ev.Status = http.StatusInternalServerError
					}
				}
				routes.see(nil, ev.Name, ev.Status)
				o.tell(ev)
			}()
			next.ServeHTTP(t.out, r)
			finished = true
		})
	}
}

// knownMethod returns a method that clients can't choose freely.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return m
	case "":
		return http.MethodGet
	}
	return "_OTHER"
}

// streamed reports whether the response to r lasts for as long as somebody listens.
func (t *writer) streamed(r *http.Request) bool {
	if t.hijacked || t.status == http.StatusSwitchingProtocols || r.Method == http.MethodConnect && t.sent && t.status < 300 {
		return true
	}
	kind, _, _ := strings.Cut(t.under.Header().Get("Content-Type"), ";")
	return t.sent && strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}

func (v *visit) tell(ev Event) {
	ev.Context = v
	v.mu.Lock()
	o := v.observer
	v.mu.Unlock()
	o.tell(ev)
}

// SlogObserver logs events: failures at level Error, everything else at level.
// Nil means slog.Default().
func SlogObserver(logger *slog.Logger, level slog.Level) Observer {
	return func(ev Event) {
		l, at := loggerOr(logger), level
		if ev.Err != nil {
			at = slog.LevelError
		}
		if !l.Enabled(context.Background(), at) {
			return
		}
		attrs := make([]slog.Attr, 0, 6)
		attrs = append(attrs, slog.String("outcome", ev.Outcome))
		if ev.Name != "" {
			attrs = append(attrs, slog.String("name", ev.Name))
		}
		if ev.Status != 0 {
			attrs = append(attrs, slog.Int("status", ev.Status), slog.Int64("bytes", ev.Bytes))
		}
		if ev.Duration != 0 {
			attrs = append(attrs, milliseconds(ev.Duration))
		}
		if ev.Err != nil {
			attrs = append(attrs, slog.String("error", ev.Err.Error()))
		}
		l.LogAttrs(context.Background(), at, ev.Area+" "+ev.Op, attrs...)
	}
}

// ExpvarObserver counts events in m, under names such as
// "ratelimit.decide.denied", with the sum of durations in microseconds under
// "ratelimit.decide.us", of streams none, and, for requests, one count for each class of status
// under "http.status.2xx". Publish m with expvar.NewMap.
func ExpvarObserver(m *expvar.Map) Observer {
	type series struct{ area, op, outcome string }
	var names sync.Map // series → [2]string, so that names are built once
	return func(ev Event) {
		s := series{ev.Area, ev.Op, ev.Outcome}
		n, ok := names.Load(s)
		if !ok {
			n, _ = names.LoadOrStore(s, [2]string{ev.Area + "." + ev.Op + "." + ev.Outcome, ev.Area + "." + ev.Op + ".us"})
		}
		name := n.([2]string)
		m.Add(name[0], 1)
		if ev.Duration > 0 && !ev.Stream {
			m.Add(name[1], ev.Duration.Microseconds())
		}
		if ev.Status != 0 {
			m.Add("http.status."+strconv.Itoa(ev.Status/100)+"xx", 1)
		}
	}
}
