package redporchotel_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/redporch/redporch/ratelimit"
)

// Instrumenting the client after it was passed to a constructor is wrong: commands of
// the program's own are seen then, and those of redporch are not. Instrument first.
func ExampleNew_incorrect() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()

	for _, first := range []bool{false, true} {
		spans := tracetest.NewInMemoryExporter()
		tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
		instrument := func() {
			if err := redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(tracers), redisotel.WithDBStatement(false)); err != nil {
				panic(err)
			}
		}
		if first {
			instrument()
		}
		limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.SlidingLog("api", 100, time.Minute))
		if err != nil {
			panic(err)
		}
		if !first {
			instrument() // wrong: too late
		}

		ctx := context.Background()
		if _, err := limiter.Allow(ctx, "user:ada"); err != nil {
			panic(err)
		}
		seen := 0
		for _, s := range spans.GetSpans() {
			if strings.Contains(s.Name, "eval") { // alone, or in a pipeline
				seen++
			}
		}
		fmt.Println("instrumented first:", first, "- scripts seen:", seen > 0)
		rdb.Close()
	}
	// Output:
	// instrumented first: false - scripts seen: false
	// instrumented first: true - scripts seen: true
}
