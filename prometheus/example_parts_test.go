package redporchprom_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchprom "github.com/redporch/redporch/prometheus"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// redisForExamples stands for your Redis.
func redisForExamples() (*redis.Client, func()) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		panic(err)
	}
	m.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	return rdb, func() { rdb.Close(); m.Close() }
}

// scraped returns a registry, and a function that prints the lines of /metrics that
// begin with prefix, but for those that are zero.
func scraped() (*prometheus.Registry, func(prefix string)) {
	registry := prometheus.NewRegistry()
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return registry, func(prefix string) {
		w := httptest.NewRecorder()
		metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for line := range strings.Lines(w.Body.String()) {
			if strings.HasPrefix(line, prefix) && !strings.HasSuffix(line, " 0\n") {
				fmt.Print(line)
			}
		}
	}
}

// One Collector for the program. Several services in one registry are told apart by a
// constant label; buckets are chosen once, since changing them breaks old queries.
func ExampleNew() {
	registry, show := scraped()
	collector := redporchprom.New(redporchprom.Config{
		ConstLabels:    prometheus.Labels{"service": "shop"},
		RequestBuckets: []float64{.01, .1, 1},
	})
	registry.MustRegister(collector)
	h := middleware.Observe(collector.Observer())(http.NotFoundHandler())
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	show("redporch_http_request_duration_seconds_count")
	// Output:
	// redporch_http_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="",outcome="ok",service="shop",url_scheme="http"} 1
}

// Limiters are told apart by the name given here, policies by their own.
func ExampleCollector_RateLimitHooks() {
	rdb, stop := redisForExamples()
	defer stop()
	registry, show := scraped()
	collector := redporchprom.New(redporchprom.Config{})
	registry.MustRegister(collector)
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, Hooks: collector.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	for range 3 {
		if _, err := limiter.Allow(context.Background(), "user:ada"); err != nil {
			panic(err)
		}
	}
	show("redporch_ratelimit_decisions_total") // the third was answered in this process
	show("redporch_ratelimit_redis_available")
	// Output:
	// redporch_ratelimit_decisions_total{limiter="web",outcome="allowed",policy="api",source="redis"} 1
	// redporch_ratelimit_decisions_total{limiter="web",outcome="denied",policy="api",source="denied"} 1
	// redporch_ratelimit_decisions_total{limiter="web",outcome="denied",policy="api",source="redis"} 1
	// redporch_ratelimit_redis_available{limiter="web"} 1
}

// Hooks count what happens seldom; what happens all the time is read from the
// store's Stats with each scrape.
func ExampleCollector_AddSessions() {
	rdb, stop := redisForExamples()
	defer stop()
	registry, show := scraped()
	collector := redporchprom.New(redporchprom.Config{})
	registry.MustRegister(collector)
	store, err := session.New(rdb, session.Config{Hooks: collector.SessionHooks()})
	if err != nil {
		panic(err)
	}
	collector.AddSessions("web", store.Stats)

	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	s, _ := store.Get(r, "sid")
	s.Values["user"] = "ada"
	if err := s.Save(r, w); err != nil {
		panic(err)
	}
	again := httptest.NewRequest("GET", "/", nil)
	again.AddCookie(w.Result().Cookies()[0])
	store.Get(again, "sid")
	show("redporch_session_events")
	show("redporch_session_loads")
	// Output:
	// redporch_session_events_total{event="created"} 1
	// redporch_session_loads_total{outcome="hit",store="web"} 1
}

// A cache needs both: its hooks tell of loads, fills and invalidations, its Stats
// of hits.
func ExampleCollector_AddCache() {
	rdb, stop := redisForExamples()
	defer stop()
	registry, show := scraped()
	collector := redporchprom.New(redporchprom.Config{})
	registry.MustRegister(collector)
	load := func(_ context.Context, user string) (string, error) {
		if user != "ada" {
			return "", cacheaside.ErrNotFound
		}
		return "London", nil
	}
	cities, err := cacheaside.New(rdb, "city", load,
		cacheaside.Config{TTL: time.Minute, L1Entries: -1, Hooks: collector.CacheHooks("city")})
	if err != nil {
		panic(err)
	}
	defer cities.Close()
	collector.AddCache("city", cities.Stats)

	ctx := context.Background()
	for _, user := range []string{"ada", "ada", "eve", "eve"} {
		if _, err := cities.Get(ctx, user); err != nil && !errors.Is(err, cacheaside.ErrNotFound) {
			panic(err)
		}
	}
	show("redporch_cache_requests_total")
	show("redporch_cache_load_duration_seconds_count")
	// Output:
	// redporch_cache_requests_total{cache="city",outcome="miss"} 2
	// redporch_cache_requests_total{cache="city",outcome="negative"} 1
	// redporch_cache_requests_total{cache="city",outcome="redis"} 1
	// redporch_cache_load_duration_seconds_count{cache="city",outcome="not-found"} 1
	// redporch_cache_load_duration_seconds_count{cache="city",outcome="ok"} 1
}

// Observe stands inside of RateLimit here, which is wrong: what the limiter denies
// never gets to it, so an attack looks like silence. Outside, it counts everything.
func ExampleCollector_Observer_incorrect() {
	rdb, stop := redisForExamples()
	defer stop()
	for _, right := range []bool{false, true} {
		registry, show := scraped()
		collector := redporchprom.New(redporchprom.Config{})
		registry.MustRegister(collector)
		limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, Prefix: fmt.Sprint("app:", right, ":")}, ratelimit.SlidingLog("api", 1, time.Minute))
		if err != nil {
			panic(err)
		}
		observe := middleware.Observe(collector.Observer())
		limit := middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{})
		chain := middleware.Chain(limit, observe) // wrong, and Chain logs a warning
		if right {
			chain = middleware.Chain(observe, limit)
		}
		h := chain(http.NotFoundHandler())
		for range 3 {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}
		fmt.Println("outside:", right)
		show("redporch_http_request_duration_seconds_count")
	}
	// Output:
	// outside: false
	// redporch_http_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="",outcome="ok",url_scheme="http"} 1
	// outside: true
	// redporch_http_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="",outcome="ok",url_scheme="http"} 1
	// redporch_http_request_duration_seconds_count{http_request_method="GET",http_response_status_code="429",http_route="",outcome="ok",url_scheme="http"} 2
}
