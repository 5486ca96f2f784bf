package redporchotel_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchotel "github.com/redporch/redporch/otel"
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

// metered returns a Telemetry, and a function that prints the counters and gauges
// whose names begin with prefix, as an exporter would send them.
func metered() (*redporchotel.Telemetry, func(prefix string)) {
	reader := sdkmetric.NewManualReader()
	telemetry, err := redporchotel.New(redporchotel.Config{
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	})
	if err != nil {
		panic(err)
	}
	return telemetry, func(prefix string) {
		var measured metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &measured); err != nil {
			panic(err)
		}
		var lines []string
		for _, scope := range measured.ScopeMetrics {
			for _, m := range scope.Metrics {
				var points []metricdata.DataPoint[int64]
				switch d := m.Data.(type) {
				case metricdata.Sum[int64]:
					points = d.DataPoints
				case metricdata.Gauge[int64]:
					points = d.DataPoints
				}
				for _, p := range points {
					if strings.HasPrefix(m.Name, prefix) && p.Value != 0 {
						lines = append(lines, fmt.Sprintf("%s{%s} %d", m.Name, p.Attributes.Encoded(attribute.DefaultEncoder()), p.Value))
					}
				}
			}
		}
		slices.Sort(lines)
		fmt.Println(strings.Join(lines, "\n"))
	}
}

// Limiters are told apart by the name given here, policies by their own.
func ExampleTelemetry_RateLimitHooks() {
	rdb, stop := redisForExamples()
	defer stop()
	telemetry, show := metered()
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, Hooks: telemetry.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	for range 3 {
		if _, err := limiter.Allow(context.Background(), "user:ada"); err != nil {
			panic(err)
		}
	}
	show("redporch.ratelimit") // the third was answered in this process
	// Output:
	// redporch.ratelimit.decisions{limiter=web,outcome=allowed,policy=api,source=redis} 1
	// redporch.ratelimit.decisions{limiter=web,outcome=denied,policy=api,source=denied} 1
	// redporch.ratelimit.decisions{limiter=web,outcome=denied,policy=api,source=redis} 1
	// redporch.ratelimit.redis.available{limiter=web} 1
}

// Hooks count what happens seldom; what happens all the time is read from the
// store's Stats whenever metrics are collected.
func ExampleTelemetry_RegisterSessions() {
	rdb, stop := redisForExamples()
	defer stop()
	telemetry, show := metered()
	defer telemetry.Close()
	store, err := session.New(rdb, session.Config{Hooks: telemetry.SessionHooks()})
	if err != nil {
		panic(err)
	}
	if err := telemetry.RegisterSessions("web", store.Stats); err != nil {
		panic(err)
	}

	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	s, _ := store.Get(r, "sid")
	s.Values["user"] = "ada"
	if err := s.Save(r, w); err != nil {
		panic(err)
	}
	again := httptest.NewRequest("GET", "/", nil)
	again.AddCookie(w.Result().Cookies()[0])
	store.Get(again, "sid")
	show("redporch.session")
	// Output:
	// redporch.session.events{event=created} 1
	// redporch.session.loads{outcome=hit,store=web} 1
}

// A cache needs both: its hooks tell of loads, fills and invalidations, its Stats
// of hits.
func ExampleTelemetry_RegisterCache() {
	rdb, stop := redisForExamples()
	defer stop()
	telemetry, show := metered()
	defer telemetry.Close()
	load := func(_ context.Context, user string) (string, error) {
		if user != "ada" {
			return "", cacheaside.ErrNotFound
		}
		return "London", nil
	}
	cities, err := cacheaside.New(rdb, "city", load,
		cacheaside.Config{TTL: time.Minute, L1Entries: -1, Hooks: telemetry.CacheHooks("city")})
	if err != nil {
		panic(err)
	}
	defer cities.Close()
	if err := telemetry.RegisterCache("city", cities.Stats); err != nil {
		panic(err)
	}

	ctx := context.Background()
	for _, user := range []string{"ada", "ada", "eve", "eve"} {
		if _, err := cities.Get(ctx, user); err != nil && !errors.Is(err, cacheaside.ErrNotFound) {
			panic(err)
		}
	}
	show("redporch.cache.requests")
	// Output:
	// redporch.cache.requests{cache=city,outcome=miss} 2
	// redporch.cache.requests{cache=city,outcome=negative} 1
	// redporch.cache.requests{cache=city,outcome=redis} 1
}

// A program that wants no spans of requests observes them without Middleware.
func ExampleTelemetry_Observer() {
	rdb, stop := redisForExamples()
	defer stop()
	telemetry, show := metered()
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	h := middleware.Chain(
		middleware.Observe(telemetry.Observer()),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
	)(http.NotFoundHandler())
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	}
	show("redporch.http.decisions")
	// Output:
	// redporch.http.decisions{outcome=allowed,policy=api} 1
	// redporch.http.decisions{outcome=denied,policy=api} 1
}
