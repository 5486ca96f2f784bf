package redporchotel_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	redporchotel "github.com/redporch/redporch/otel"
)

// Each call of a loader is a span. The key is not recorded, and of an error only
// what kind it is.
func ExampleLoad() {
	spans := tracetest.NewInMemoryExporter()
	telemetry, err := redporchotel.New(redporchotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
	})
	if err != nil {
		panic(err)
	}
	load := redporchotel.Load(telemetry, "user", func(_ context.Context, id int) (string, error) {
		if id != 42 {
			return "", errors.New("no connection for secret-dsn")
		}
		return "ada", nil
	})

	ctx := context.Background()
	load(ctx, 42) // cacheaside.New(rdb, "user", load, …) calls it when a value is missing
	load(ctx, 43)
	for _, s := range spans.GetSpans() {
		fmt.Print(s.Name)
		for _, a := range s.Attributes {
			fmt.Printf(" %s=%s", a.Key, a.Value.AsString())
		}
		fmt.Println()
	}
	// Output:
	// redporch.cache.load cache=user outcome=ok
	// redporch.cache.load cache=user error.type=other outcome=error
}

// Where a middleware further out has started a span, such as otelhttp's, that one is
// used; name and status are left to its owner.
func ExampleTelemetry_Middleware() {
	spans := tracetest.NewInMemoryExporter()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	telemetry, err := redporchotel.New(redporchotel.Config{TracerProvider: tracers})
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	h := telemetry.Middleware()(mux)
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // stands for otelhttp
		ctx, span := tracers.Tracer("app").Start(r.Context(), "incoming")
		defer span.End()
		h.ServeHTTP(w, r.WithContext(ctx))
	})

	for _, h := range []http.Handler{h, outer} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/users/42", nil))
	}
	for _, s := range spans.GetSpans() {
		fmt.Printf("%s:", s.Name)
		for _, a := range s.Attributes {
			fmt.Printf(" %s=%q", a.Key, a.Value.String())
		}
		fmt.Println()
	}
	// Output:
	// GET /users/{id}: http.request.method="GET" url.scheme="http" url.path="/users/42" http.route="/users/{id}" http.response.status_code="200"
	// incoming: http.route="/users/{id}"
}
