package redporchotel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/redporch/redporch/session"
)

// scope names this package to OpenTelemetry.
const scope = "github.com/redporch/redporch/otel"

// Config says where telemetry goes. The zero value is usable: the providers that
// the program has set globally.
type Config struct {
	// MeterProvider gets the metrics. Nil means otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// TracerProvider gets the spans. Nil means otel.GetTracerProvider().
	TracerProvider trace.TracerProvider
	// Propagator reads the trace that an incoming request belongs to. Nil means
	// otel.GetTextMapPropagator(), which reads nothing unless the program has set
	// one: then clients can choose the trace of their requests.
	Propagator propagation.TextMapPropagator
	// NoPath leaves url.path out of the spans that Middleware starts, though OpenTelemetry's
	// conventions require it: for paths that hold secrets, such as the token of a password
	// reset. The route is there in any case, the query never.
	NoPath bool
}

// Telemetry makes metrics and spans of what redporch reports. Make one with New for
// a program; it is safe for concurrent use.
type Telemetry struct {
	instruments
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	noPath     bool

	mu         sync.Mutex
	registered []metric.Registration
}

// New returns a Telemetry. The error lists the instruments that the provider
// refused; the Telemetry is then not usable.
func New(cfg Config) (*Telemetry, error) {
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.Propagator == nil {
		cfg.Propagator = otel.GetTextMapPropagator()
	}
	t := &Telemetry{tracer: cfg.TracerProvider.Tracer(scope), propagator: cfg.Propagator, noPath: cfg.NoPath}
	if err := t.instruments.make(cfg.MeterProvider.Meter(scope)); err != nil {
		return nil, fmt.Errorf("redporchotel: new: %w", err)
	}
	return t, nil
}

// Close stops reading the statistics that were registered. It does not shut the
// providers down.
func (t *Telemetry) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range t.registered {
		errs = append(errs, r.Unregister())
	}
	t.registered = nil
	return errors.Join(errs...)
}

// class says what kind of error err is, since its text may hold what must not
// leave the program.
func class(err error) string {
	switch {
	case errors.Is(err, session.ErrUnavailable): // the same in all packages
		return "unavailable"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "other"
}
