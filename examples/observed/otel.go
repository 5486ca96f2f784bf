package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/redporch/redporch/examples/internal/demo"
	redporchotel "github.com/redporch/redporch/otel"
)

// openTelemetry sends spans and metrics where OTEL_EXPORTER_OTLP_ENDPOINT says. The
// exporters and the SDK read that and the other OTEL_ variables themselves.
func openTelemetry(ctx context.Context, stdout io.Writer) (demo.Telemetry, func(context.Context) error, error) {
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	if endpoint == "" {
		return demo.Telemetry{}, func(context.Context) error { return nil }, nil
	}
	fail := func(err error) (demo.Telemetry, func(context.Context) error, error) {
		return demo.Telemetry{}, nil, fmt.Errorf("OpenTelemetry: %w", err)
	}
	spans, err := otlptracehttp.New(ctx)
	if err != nil {
		return fail(err)
	}
	metrics, err := otlpmetrichttp.New(ctx)
	if err != nil {
		return fail(err)
	}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(metrics)))
	t, err := redporchotel.New(redporchotel.Config{MeterProvider: meters, TracerProvider: tracers})
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(stdout, "Spans and metrics go to %s.\n", endpoint)
	stop := func(ctx context.Context) error { // Close last: Shutdown still reads what was registered
		return errors.Join(tracers.Shutdown(ctx), meters.Shutdown(ctx), t.Close())
	}
	return demo.Telemetry{
		Middleware: t.Middleware(),
		Sessions:   t.SessionHooks(),
		RateLimit:  t.RateLimitHooks,
		Cache:      t.CacheHooks,
		Load: func(cache string, load demo.Loader) demo.Loader {
			return redporchotel.Load(t, cache, load)
		},
		AddSessions: t.RegisterSessions,
		AddCache:    t.RegisterCache,
		Redis: func(rdb redis.UniversalClient) error {
			// Without statements: they hold keys and values.
			return redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(tracers), redisotel.WithDBStatement(false))
		},
	}, stop, nil
}
