package redporchprom

import (
	"context"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// Config says how metrics are named and counted. The zero value is usable.
type Config struct {
	// ConstLabels are added to every metric, such as the service's name where
	// several are in one registry.
	ConstLabels prometheus.Labels
	// RequestBuckets are the bounds of requests' and loaders' durations in
	// seconds. Nil means from 1 ms to 10 s.
	RequestBuckets []float64
	// RedisBuckets are the bounds of the durations of exchanges with Redis in
	// seconds. Nil means from 50 µs to 1 s.
	RedisBuckets []float64
	// Exemplar, when set, returns the labels of an exemplar for a duration, such as
	// trace_id, from the context of the request; nil for none. All together may have 128
	// characters, more are left out. It must be safe for concurrent use. They are served
	// where promhttp.HandlerOpts.EnableOpenMetrics is set.
	Exemplar func(ctx context.Context) prometheus.Labels
}

// Collector is a prometheus.Collector for all of redporch. Make one with New for a
// program and register it; it is safe for concurrent use.
type Collector struct {
	requestDuration, sessionDuration, limitDuration, loadDuration *prometheus.HistogramVec

	exemplar func(ctx context.Context) prometheus.Labels

	streams, httpDecisions, commits, sessionEvents, decisions, fills, invalidations, cacheErrors *prometheus.CounterVec

	available *prometheus.GaugeVec

	sessionLoads, cacheRequests, entries, queued *prometheus.Desc

	own []prometheus.Collector // those of the above that hold their values

	mu     sync.RWMutex
	stores map[string]func() session.Stats
	caches map[string]func() cacheaside.Stats
}

var _ prometheus.Collector = (*Collector)(nil)

var requestLabels = []string{"http_request_method", "url_scheme", "http_route", "http_response_status_code", "outcome"}

// New returns a Collector that is not registered yet.
func New(cfg Config) *Collector {
	if cfg.RequestBuckets == nil {
		cfg.RequestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	}
	if cfg.RedisBuckets == nil {
		cfg.RedisBuckets = []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}
	}
	c := &Collector{exemplar: cfg.Exemplar, stores: map[string]func() session.Stats{}, caches: map[string]func() cacheaside.Stats{}}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets, ConstLabels: cfg.ConstLabels}, labels)
		c.own = append(c.own, v)
		return v
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: cfg.ConstLabels}, labels)
		c.own = append(c.own, v)
		return v
	}
	read := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, cfg.ConstLabels)
	}

	c.requestDuration = histogram("redporch_http_request_duration_seconds", "Duration of requests, without streams.", cfg.RequestBuckets, requestLabels...)
	c.streams = counter("redporch_http_streams_total", "Requests whose response was a stream of events, or whose connection was taken over, when they ended.", requestLabels...)
	c.httpDecisions = counter("redporch_http_decisions_total", "What requests were told by the rate limits in front of them.", "policy", "outcome")
	c.commits = counter("redporch_session_commits_total", "Attempts to save a session: before a response's headers go, and when its handler returns.", "outcome")

	c.sessionDuration = histogram("redporch_session_operation_duration_seconds", "Duration of the session store's exchanges with Redis.", cfg.RedisBuckets, "operation", "outcome")
	c.sessionEvents = counter("redporch_session_events_total", "What happened to sessions.", "event")
	c.sessionLoads = read("redporch_session_loads_total", "Sessions asked for, by what was found.", "store", "outcome")

	c.decisions = counter("redporch_ratelimit_decisions_total", "Decisions of limiters.", "limiter", "policy", "outcome", "source")
	c.limitDuration = histogram("redporch_ratelimit_duration_seconds", "Duration of decisions.", cfg.RedisBuckets, "limiter", "source")
	c.available = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "redporch_ratelimit_redis_available",
		Help: "Whether the limiter can ask Redis, 0 or 1, as of the last change.", ConstLabels: cfg.ConstLabels}, []string{"limiter"})
	c.own = append(c.own, c.available)

	c.cacheRequests = read("redporch_cache_requests_total", "Values asked for, by where they came from.", "cache", "outcome")
	c.loadDuration = histogram("redporch_cache_load_duration_seconds", "Duration of loader calls.", cfg.RequestBuckets, "cache", "outcome")
	c.fills = counter("redporch_cache_fills_total", "Attempts to store loaded values.", "cache", "outcome")
	c.invalidations = counter("redporch_cache_invalidations_total", "Invalidations by this process.", "cache", "outcome")
	c.cacheErrors = counter("redporch_cache_errors_total", "Failures that no caller has seen.", "cache", "operation")
	c.entries = read("redporch_cache_l1_entries", "Values in this process.", "cache")
	c.queued = read("redporch_cache_invalidations_queued", "Failed invalidations that wait to be tried again.", "cache")
	return c
}

// Describe is for the registry.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.own {
		v.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{c.sessionLoads, c.cacheRequests, c.entries, c.queued} {
		ch <- d
	}
}

// Collect is for the registry. It reads the statistics of stores and caches.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.own {
		v.Collect(ch)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for name, stats := range c.stores {
		s := stats()
		counter(c.sessionLoads, s.Hits, name, "hit")
		counter(c.sessionLoads, s.Misses, name, "miss")
		counter(c.sessionLoads, s.Refused, name, "refused")
		counter(c.sessionLoads, s.Unavailable, name, "unavailable")
	}
	for name, stats := range c.caches {
		s := stats()
		counter(c.cacheRequests, s.L1Hits, name, "l1")
		counter(c.cacheRequests, s.RedisHits, name, "redis")
		counter(c.cacheRequests, s.StaleHits, name, "stale")
		counter(c.cacheRequests, s.NegativeHits, name, "negative")
		counter(c.cacheRequests, s.Misses, name, "miss")
		gauge(c.entries, s.L1Entries, name)
		gauge(c.queued, s.Queued, name)
	}
}

// Observer returns an observer that counts, for middleware.Observe.
func (c *Collector) Observer() middleware.Observer {
	return func(ev middleware.Event) {
		switch ev.Area + " " + ev.Op {
		case "http request":
			labels := []string{ev.Method, ev.Scheme, ev.Route, strconv.Itoa(ev.Status), ev.Outcome}
			if ev.Stream {
				c.streams.WithLabelValues(labels...).Inc()
				return
			}
			c.observe(c.requestDuration.WithLabelValues(labels...), ev)
		case "http ratelimit":
			c.httpDecisions.WithLabelValues(ev.Name, ev.Outcome).Inc()
		case "http commit":
			c.commits.WithLabelValues(ev.Outcome).Inc()
		case "session session":
			c.sessionEvents.WithLabelValues(ev.Outcome).Inc()
		case "cacheaside load":
			c.observe(c.loadDuration.WithLabelValues(ev.Name, ev.Outcome), ev)
		case "cacheaside fill":
			c.fills.WithLabelValues(ev.Name, ev.Outcome).Inc()
		case "cacheaside invalidate":
			c.invalidations.WithLabelValues(ev.Name, ev.Outcome).Inc()
		case "cacheaside error":
			c.cacheErrors.WithLabelValues(ev.Name, ev.Outcome).Inc()
		default:
			if ev.Area == "session" { // an exchange with Redis
				c.observe(c.sessionDuration.WithLabelValues(ev.Op, ev.Outcome), ev)
			}
		}
	}
}

// observe counts a duration, with an exemplar where there is one.
func (c *Collector) observe(h prometheus.Observer, ev middleware.Event) {
	seconds := ev.Duration.Seconds()
	if c.exemplar != nil && ev.Context != nil {
		if labels := c.exemplar(ev.Context); labels != nil && fits(labels) {
			h.(prometheus.ExemplarObserver).ObserveWithExemplar(seconds, labels)
			return
		}
	}
	h.Observe(seconds)
}

// fits reports whether the client library takes labels for an exemplar; it panics on others.
func fits(labels prometheus.Labels) bool {
	n := 0
	for name, value := range labels {
		if !model.LegacyValidation.IsValidLabelName(name) || !utf8.ValidString(value) {
			return false
		}
		n += utf8.RuneCountInString(name) + utf8.RuneCountInString(value)
	}
	return n <= prometheus.ExemplarMaxRunes
}

// SessionHooks returns hooks for session.Config.
func (c *Collector) SessionHooks() session.Hooks { return middleware.SessionHooks(c.Observer()) }

// CacheHooks returns hooks for cacheaside.Config; name is the cache's.
func (c *Collector) CacheHooks(name string) cacheaside.Hooks {
	return middleware.CacheHooks(c.Observer(), name)
}

// RateLimitHooks returns hooks for ratelimit.Config; name tells limiters apart.
func (c *Collector) RateLimitHooks(name string) ratelimit.Hooks {
	available := c.available.WithLabelValues(name)
	available.Set(1) // until it turns out otherwise
	return ratelimit.Hooks{
		OnDecision: func(d ratelimit.Decision) {
			outcome, policy := decided(d)
			c.decisions.WithLabelValues(name, policy, outcome, d.Source.String()).Inc()
			c.limitDuration.WithLabelValues(name, d.Source.String()).Observe(d.Duration.Seconds())
		},
		OnStateChange: func(yes bool, _ error) {
			if yes {
				available.Set(1)
			} else {
				available.Set(0)
			}
		},
	}
}

// decided returns the outcome of a decision and the policy that it is about, in the
// words of middleware.RateLimitHooks, which does not tell the source.
func decided(d ratelimit.Decision) (outcome, policy string) {
	middleware.RateLimitHooks(func(ev middleware.Event) { outcome, policy = ev.Outcome, ev.Name }).OnDecision(d)
	return outcome, policy
}

// AddSessions has the statistics of a store, such as sessions.Stats, collected
// under a name that tells stores apart. The same name again replaces it.
func (c *Collector) AddSessions(name string, stats func() session.Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stores[name] = stats
}

// AddCache has the statistics of a cache, such as users.Stats, collected under its
// name. The same name again replaces it.
func (c *Collector) AddCache(name string, stats func() cacheaside.Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caches[name] = stats
}
