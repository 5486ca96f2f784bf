package redporchotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// instruments are all metrics. Those that are read from statistics are observable.
type instruments struct {
	meter metric.Meter

	requestDuration metric.Float64Histogram
	streams         metric.Int64Counter
	httpDecisions   metric.Int64Counter
	commits         metric.Int64Counter

	sessionDuration metric.Float64Histogram
	sessionEvents   metric.Int64Counter
	sessionLoads    metric.Int64ObservableCounter

	decisions     metric.Int64Counter
	limitDuration metric.Float64Histogram
	available     metric.Int64Gauge

	cacheRequests metric.Int64ObservableCounter
	loadDuration  metric.Float64Histogram
	fills         metric.Int64Counter
	invalidations metric.Int64Counter
	cacheErrors   metric.Int64Counter
	entries       metric.Int64ObservableGauge
	queued        metric.Int64ObservableGauge
}

// Bounds of the histograms in seconds: calls to Redis from 50 µs on, requests and
// loaders up to 10 s.
var (
	redisBounds = []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}
	workBounds  = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
)

func (in *instruments) make(m metric.Meter) error {
	in.meter = m
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	var err error

	histogram := func(name, what string, bounds []float64) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(bounds...))
		add(err)
		return h
	}
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
		add(err)
		return c
	}

	in.requestDuration = histogram("redporch.http.request.duration", "Duration of requests, without streams.", workBounds)
	in.streams = counter("redporch.http.streams", "{request}", "Requests whose response was a stream of events, or whose connection was taken over, when they ended.")
	in.httpDecisions = counter("redporch.http.decisions", "{decision}", "What requests were told by the rate limits in front of them.")
	in.commits = counter("redporch.session.commits", "{commit}", "Attempts to save a session: before a response's headers go, and when its handler returns.")

	in.sessionDuration = histogram("redporch.session.operation.duration", "Duration of the session store's exchanges with Redis.", redisBounds)
	in.sessionEvents = counter("redporch.session.events", "{session}", "What happened to sessions.")
	in.sessionLoads, err = m.Int64ObservableCounter("redporch.session.loads", metric.WithUnit("{session}"), metric.WithDescription("Sessions asked for, by what was found."))
	add(err)

	in.decisions = counter("redporch.ratelimit.decisions", "{decision}", "Decisions of limiters.")
	in.limitDuration = histogram("redporch.ratelimit.duration", "Duration of decisions.", redisBounds)
	in.available, err = m.Int64Gauge("redporch.ratelimit.redis.available", metric.WithUnit("1"), metric.WithDescription("Whether the limiter can ask Redis, 0 or 1, as of the last change."))
	add(err)

	in.cacheRequests, err = m.Int64ObservableCounter("redporch.cache.requests", metric.WithUnit("{request}"), metric.WithDescription("Values asked for, by where they came from."))
	add(err)
	in.loadDuration = histogram("redporch.cache.load.duration", "Duration of loader calls.", workBounds)
	in.fills = counter("redporch.cache.fills", "{fill}", "Attempts to store loaded values.")
	in.invalidations = counter("redporch.cache.invalidations", "{invalidation}", "Invalidations by this process.")
	in.cacheErrors = counter("redporch.cache.errors", "{error}", "Failures that no caller has seen.")
	in.entries, err = m.Int64ObservableGauge("redporch.cache.l1.entries", metric.WithUnit("{entry}"), metric.WithDescription("Values in this process."))
	add(err)
	in.queued, err = m.Int64ObservableGauge("redporch.cache.invalidations.queued", metric.WithUnit("{invalidation}"), metric.WithDescription("Failed invalidations that wait to be tried again."))
	add(err)
	return errors.Join(errs...)
}

// with makes the option for attributes given as name, value, name, value.
func with(pairs ...string) metric.MeasurementOption {
	attrs := make([]attribute.KeyValue, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		attrs = append(attrs, attribute.String(pairs[i], pairs[i+1]))
	}
	return metric.WithAttributeSet(attribute.NewSet(attrs...))
}

// record counts an event of the observer.
func (in *instruments) record(ctx context.Context, ev middleware.Event) {
	switch ev.Area + " " + ev.Op {
	case "http request":
		attrs := metric.WithAttributeSet(attribute.NewSet(append(routed(ev), attribute.String("http.request.method", ev.Method),
			attribute.String("url.scheme", ev.Scheme), attribute.Int("http.response.status_code", ev.Status), attribute.String("outcome", ev.Outcome))...))
		if ev.Stream {
			in.streams.Add(ctx, 1, attrs)
			return
		}
		in.requestDuration.Record(ctx, ev.Duration.Seconds(), attrs)
	case "http ratelimit":
		in.httpDecisions.Add(ctx, 1, with("policy", ev.Name, "outcome", ev.Outcome))
	case "http commit":
		in.commits.Add(ctx, 1, with("outcome", ev.Outcome))
	case "session session":
		in.sessionEvents.Add(ctx, 1, with("event", ev.Outcome))
	case "cacheaside load":
		in.loadDuration.Record(ctx, ev.Duration.Seconds(), with("cache", ev.Name, "outcome", ev.Outcome))
	case "cacheaside fill":
		in.fills.Add(ctx, 1, with("cache", ev.Name, "outcome", ev.Outcome))
	case "cacheaside invalidate":
		in.invalidations.Add(ctx, 1, with("cache", ev.Name, "outcome", ev.Outcome))
	case "cacheaside error":
		in.cacheErrors.Add(ctx, 1, with("cache", ev.Name, "operation", ev.Outcome))
	default:
		if ev.Area == "session" { // an exchange with Redis
			in.sessionDuration.Record(ctx, ev.Duration.Seconds(), with("operation", ev.Op, "outcome", ev.Outcome))
		}
	}
}

// routed is http.route, or nothing where the route is not known.
func routed(ev middleware.Event) []attribute.KeyValue {
	if ev.Route == "" {
		return nil
	}
	return []attribute.KeyValue{attribute.String("http.route", ev.Route)}
}

// contextOf is the context of an event. From the span in it come exemplars.
func contextOf(ev middleware.Event) context.Context {
	if ev.Context == nil {
		return context.Background()
	}
	return ev.Context
}

// Observer returns an observer that counts, for programs that call
// middleware.Observe themselves and don't want the spans of Middleware.
func (t *Telemetry) Observer() middleware.Observer {
	return func(ev middleware.Event) { t.record(contextOf(ev), ev) }
}

// SessionHooks returns hooks for session.Config.
func (t *Telemetry) SessionHooks() session.Hooks {
	hooks := middleware.SessionHooks(t.Observer())
	for name, hook := range map[string]*func(context.Context, session.Event){
		"created": &hooks.Created, "destroyed": &hooks.Destroyed, "regenerated": &hooks.Regenerated,
		"revoked": &hooks.Revoked, "adopted": &hooks.Adopted,
	} {
		count := *hook
		*hook = func(ctx context.Context, ev session.Event) {
			count(ctx, ev)
			note(ctx, "redporch.session."+name)
		}
	}
	return hooks
}

// RateLimitHooks returns hooks for ratelimit.Config; name tells limiters apart.
func (t *Telemetry) RateLimitHooks(name string) ratelimit.Hooks {
	ctx := context.Background()
	t.available.Record(ctx, 1, with("limiter", name)) // until it turns out otherwise
	return ratelimit.Hooks{
		OnDecision: func(d ratelimit.Decision) {
			outcome, policy := decided(d)
			t.decisions.Add(ctx, 1, with("limiter", name, "policy", policy, "outcome", outcome, "source", d.Source.String()))
			t.limitDuration.Record(ctx, d.Duration.Seconds(), with("limiter", name, "source", d.Source.String()))
		},
		OnStateChange: func(available bool, _ error) {
			var n int64
			if available {
				n = 1
			}
			t.available.Record(ctx, n, with("limiter", name))
		},
	}
}

// decided returns the outcome of a decision and the policy that it is about, in the
// words of middleware.RateLimitHooks, which does not tell the source.
func decided(d ratelimit.Decision) (outcome, policy string) {
	middleware.RateLimitHooks(func(ev middleware.Event) { outcome, policy = ev.Outcome, ev.Name }).OnDecision(d)
	return outcome, policy
}

// CacheHooks returns hooks for cacheaside.Config; name is the cache's.
func (t *Telemetry) CacheHooks(name string) cacheaside.Hooks {
	return middleware.CacheHooks(t.Observer(), name)
}

// RegisterSessions reads the statistics of a store, such as sessions.Stats, whenever
// metrics are collected, until Close. name tells stores apart. The error is the
// provider's.
func (t *Telemetry) RegisterSessions(name string, stats func() session.Stats) error {
	return t.register(func(o metric.Observer) {
		s := stats()
		for outcome, n := range map[string]uint64{"hit": s.Hits, "miss": s.Misses, "refused": s.Refused, "unavailable": s.Unavailable} {
			o.ObserveInt64(t.sessionLoads, int64(n), with("store", name, "outcome", outcome))
		}
	}, t.sessionLoads)
}

// RegisterCache reads the statistics of a cache, such as users.Stats, whenever
// metrics are collected, until Close. name is the cache's. The error is the
// provider's.
func (t *Telemetry) RegisterCache(name string, stats func() cacheaside.Stats) error {
	return t.register(func(o metric.Observer) {
		s := stats()
		for outcome, n := range map[string]uint64{"l1": s.L1Hits, "redis": s.RedisHits, "stale": s.StaleHits, "negative": s.NegativeHits, "miss": s.Misses} {
			o.ObserveInt64(t.cacheRequests, int64(n), with("cache", name, "outcome", outcome))
		}
		o.ObserveInt64(t.entries, int64(s.L1Entries), with("cache", name))
		o.ObserveInt64(t.queued, int64(s.Queued), with("cache", name))
	}, t.cacheRequests, t.entries, t.queued)
}

func (t *Telemetry) register(read func(metric.Observer), instruments ...metric.Observable) error {
	r, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		read(o)
		return nil
	}, instruments...)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.registered = append(t.registered, r)
	t.mu.Unlock()
	return nil
}
