// Observed is the server of examples/webserver with telemetry, which is a module of
// its own because the libraries for it are many. In this folder:
//
//	METRICS_ADDR=localhost:9100 go run .
//
// serves metrics for Prometheus at http://localhost:9100/metrics. With
// OTEL_EXPORTER_OTLP_ENDPOINT, such as http://localhost:4318, spans and metrics are
// sent there by OTLP over HTTP, and the other OTEL_ variables hold as well, such as
// OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER. Both may be on, or neither. The other
// variables are those of the webserver.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redporch/redporch/examples/internal/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run serves until ctx ends and returns the exit code. It takes its settings from
// the process's environment, since the exporters do.
func run(ctx context.Context, stdout, stderr io.Writer) int {
	var all []demo.Telemetry
	for _, start := range []func(context.Context, io.Writer) (demo.Telemetry, func(context.Context) error, error){openTelemetry, prometheusMetrics} {
		telemetry, stop, err := start(ctx, stdout)
		if err != nil {
			fmt.Fprintf(stderr, "observed: %v\n", err)
			return 2
		}
		defer func() { // after the server has ended, so that its last spans get out
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := stop(ctx); err != nil {
				fmt.Fprintf(stderr, "observed: %v\n", err)
			}
		}()
		all = append(all, telemetry)
	}
	return demo.Run(ctx, os.Getenv, stdout, stderr, all...)
}
