package redporchotel

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
)

// Middleware counts requests and puts what redporch does for them on their span:
// that of a middleware further out, such as otelhttp's, or else one of its own. It
// takes the place of middleware.Observe in the chain, outside of AccessLog,
// RateLimit and Sessions; more are told the same events.
func (t *Telemetry) Middleware(more ...middleware.Observer) middleware.Middleware {
	others := middleware.Observers(more...)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inner, span, own := t.span(r)
			if own {
				defer span.End()
			}
			defer func() { r.Pattern = inner.Pattern }() // for who is further out
			middleware.Observe(func(ev middleware.Event) {
				t.record(inner.Context(), ev)
				annotate(span, ev, own)
				others(ev)
			})(next).ServeHTTP(w, inner)
		})
	}
}

// span returns the span of a request, and whether it was started here.
func (t *Telemetry) span(r *http.Request) (*http.Request, trace.Span, bool) {
	ctx := r.Context()
	if span := trace.SpanFromContext(ctx); span.SpanContext().IsValid() && !span.SpanContext().IsRemote() {
		return r, span, false
	}
	ctx = t.propagator.Extract(ctx, propagation.HeaderCarrier(r.Header))
	attrs := []attribute.KeyValue{attribute.String("http.request.method", method(r)), attribute.String("url.scheme", "http")}
	if r.TLS != nil {
		attrs[1] = attribute.String("url.scheme", "https")
	}
	if !t.noPath {
		attrs = append(attrs, attribute.String("url.path", r.URL.Path))
	}
	name := method(r)
	if name == "_OTHER" {
		name = "HTTP" // as OpenTelemetry's conventions say
		attrs = append(attrs, attribute.String("http.request.method_original", strings.ToValidUTF8(r.Method[:min(len(r.Method), 32)], "?")))
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attrs...))
	return r.WithContext(ctx), span, true
}

// method returns the request's method if it is one that is known, since clients may
// send anything.
func method(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return r.Method
	}
	return "_OTHER"
}

// annotate puts an event on the request's span.
func annotate(span trace.Span, ev middleware.Event, own bool) {
	if !span.IsRecording() {
		return
	}
	switch ev.Op {
	case "request":
		span.SetAttributes(routed(ev)...)
		if !own {
			return // the rest is its owner's
		}
		span.SetAttributes(attribute.Int("http.response.status_code", ev.Status))
		if method := ev.Method; ev.Route != "" {
			if method == "_OTHER" {
				method = "HTTP"
			}
			span.SetName(method + " " + ev.Route)
		}
		switch {
		case ev.Outcome == "panic":
			span.SetStatus(codes.Error, "")
			span.SetAttributes(attribute.String("error.type", "panic"))
		case ev.Status >= 500:
			span.SetStatus(codes.Error, "")
			span.SetAttributes(attribute.String("error.type", strconv.Itoa(ev.Status)))
		}
	default:
		attrs := []attribute.KeyValue{attribute.String("outcome", ev.Outcome)}
		if ev.Name != "" {
			attrs = append(attrs, attribute.String("policy", ev.Name))
		}
		if ev.Err != nil {
			attrs = append(attrs, attribute.String("error.type", class(ev.Err)))
		}
		span.AddEvent("redporch."+ev.Op, trace.WithAttributes(attrs...))
	}
}

// note adds an event to the span of ctx, if there is one.
func note(ctx context.Context, name string, attrs ...attribute.KeyValue) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent(name, trace.WithAttributes(attrs...))
	}
}

// Load gives each call of load a span, redporch.cache.load, under that of the
// caller who needed the value first. cache is the cache's name. The key is not
// recorded, and of an error only its kind.
func Load[K comparable, V any](t *Telemetry, cache string, load func(ctx context.Context, key K) (V, error)) func(ctx context.Context, key K) (V, error) {
	return func(ctx context.Context, key K) (V, error) {
		ctx, span := t.tracer.Start(ctx, "redporch.cache.load", trace.WithAttributes(attribute.String("cache", cache)))
		outcome := "panic"
		defer func() {
			span.SetAttributes(attribute.String("outcome", outcome))
			if outcome == "error" || outcome == "panic" {
				span.SetStatus(codes.Error, "")
			}
			span.End()
		}()
		value, err := load(ctx, key)
		switch {
		case err == nil:
			outcome = "ok"
		case errors.Is(err, cacheaside.ErrNotFound):
			outcome = "not-found"
		default:
			outcome = "error"
			span.SetAttributes(attribute.String("error.type", class(err)))
		}
		return value, err
	}
}
