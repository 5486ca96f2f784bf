package middleware

import (
	"context"
	"expvar"
	"log/slog"
	"net/http"
	"strconv"
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
	// Name is the route, the deciding policy, or the cache.
	Name string
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
				ev := Event{Area: "http", Op: "request", Outcome: "ok", Name: v.routeOf(r), Status: t.code(), Bytes: t.bytes, Duration: time.Since(start)}
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

func (v *visit) tell(ev Event) {
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
			attrs = append(attrs, slog.Duration("duration", ev.Duration))
		}
		if ev.Err != nil {
			attrs = append(attrs, slog.String("error", ev.Err.Error()))
		}
		l.LogAttrs(context.Background(), at, ev.Area+" "+ev.Op, attrs...)
	}
}

// ExpvarObserver counts events in m, under names such as
// "ratelimit.decide.denied", with the sum of durations in microseconds under
// "ratelimit.decide.us" and, for requests, one count for each class of status
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
		if ev.Duration > 0 {
			m.Add(name[1], ev.Duration.Microseconds())
		}
		if ev.Status != 0 {
			m.Add("http.status."+strconv.Itoa(ev.Status/100)+"xx", 1)
		}
	}
}
