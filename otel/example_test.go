package redporchotel_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/redporch/redporch/middleware"
	redporchotel "github.com/redporch/redporch/otel"
	"github.com/redporch/redporch/ratelimit"
)

// A whole program would take the providers from its exporters; this one keeps what
// it measures in memory. redisotel adds a span for each command, with the spans of
// redporch around them.
func Example() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	reader, spans := sdkmetric.NewManualReader(), tracetest.NewInMemoryExporter()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))

	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	if err := redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(tracers), redisotel.WithDBStatement(false)); err != nil {
		panic(err)
	}
	telemetry, err := redporchotel.New(redporchotel.Config{MeterProvider: meters, TracerProvider: tracers})
	if err != nil {
		panic(err)
	}
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Hooks: telemetry.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	h := middleware.Chain(
		telemetry.Middleware(), // in the place of middleware.Observe
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
	)(mux)
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/hello", nil))
	}

	var measured metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &measured); err != nil {
		panic(err)
	}
	for _, m := range measured.ScopeMetrics[0].Metrics {
		if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "redporch.ratelimit.decisions" {
			for _, p := range sum.DataPoints {
				outcome, _ := p.Attributes.Value("outcome")
				fmt.Println(outcome.AsString(), p.Value)
			}
		}
	}
	for _, s := range spans.GetSpans() {
		switch {
		case s.Name == "eval": // the first run of a script; its EVALSHA before that was refused
			fmt.Println(s.Name, "seen by redisotel")
		case len(s.Events) > 0 && s.Events[0].Name != "exception":
			fmt.Println(s.Name, s.Events[0].Name, s.Events[0].Attributes[0].Value.AsString())
		}
	}
	// Unordered output:
	// allowed 1
	// denied 1
	// eval seen by redisotel
	// GET /hello redporch.ratelimit allowed
	// GET redporch.ratelimit denied
}
