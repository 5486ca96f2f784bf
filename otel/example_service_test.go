package redporchotel_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchotel "github.com/redporch/redporch/otel"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// service is a program with all of redporch in it.
type service struct {
	http.Handler
	cities    *cacheaside.Cache[string, string]
	telemetry *redporchotel.Telemetry
}

func (s *service) close() error { return errors.Join(s.telemetry.Close(), s.cities.Close()) }

// newService wires everything to the providers, in this order: hooks go into
// configurations, statistics are registered when their owners exist.
func newService(rdb redis.UniversalClient, meters metric.MeterProvider, tracers trace.TracerProvider) (*service, error) {
	t, err := redporchotel.New(redporchotel.Config{MeterProvider: meters, TracerProvider: tracers})
	if err != nil {
		return nil, err
	}
	load := func(_ context.Context, user string) (string, error) { return "London", nil }

	sessions, err1 := session.New(rdb, session.Config{Hooks: t.SessionHooks()})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, Hooks: t.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 100, time.Minute))
	cities, err3 := cacheaside.New(rdb, "city", redporchotel.Load(t, "city", load),
		cacheaside.Config{TTL: time.Minute, Hooks: t.CacheHooks("city")})
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	err = errors.Join(t.RegisterSessions("web", sessions.Stats), t.RegisterCache("city", cities.Stats))
	if err != nil {
		return nil, err
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /city", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["seen"] = true
		city, err := cities.Get(r.Context(), "ada")
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, city)
	})
	h := middleware.Chain(
		middleware.Recover(middleware.RecoverConfig{}),
		t.Middleware(), // in the place of Observe
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(sessions, session.HostName("sid"), middleware.SessionsConfig{}),
	)(mux)
	return &service{h, cities, t}, nil
}

// A service with sessions, a limit and a cache, all of which tell OpenTelemetry.
func Example_service() {
	inside, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer inside.Close()
	inside.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: inside.Addr()})
	defer rdb.Close()
	reader, spans := sdkmetric.NewManualReader(), tracetest.NewInMemoryExporter()
	s, err := newService(rdb, sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
		sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
	if err != nil {
		panic(err)
	}
	defer s.close()

	s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/city", nil))

	for _, span := range spans.GetSpans() {
		fmt.Println("span", span.Name)
		for _, event := range span.Events {
			fmt.Println("  event", event.Name)
		}
	}
	var measured metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &measured); err != nil {
		panic(err)
	}
	fmt.Println(len(measured.ScopeMetrics[0].Metrics) > 10, "metrics")
	// Output:
	// span redporch.cache.load
	// span GET /city
	//   event redporch.ratelimit
	//   event redporch.session
	//   event redporch.session.created
	//   event redporch.commit
	// true metrics
}
