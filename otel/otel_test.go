package redporchotel_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/redporch/redporch/middleware"
	redporchotel "github.com/redporch/redporch/otel"
	"github.com/redporch/redporch/session"
)

func TestMetrics(t *testing.T) {
	a := newApp(t)
	_, cookie := a.get("/city/ada") // loaded, session made
	with := func(r *http.Request) { r.Header.Set("Cookie", cookie) }
	a.get("/city/ada", with) // from Redis, session known
	a.get("/city/nobody")
	a.get("/city/broken")
	if code, _ := a.get("/city/ada"); code != http.StatusTooManyRequests {
		t.Errorf("request 5 got %d; want 429", code)
	}
	if err := a.cache.Invalidate(context.Background(), "ada"); err != nil {
		t.Fatal(err)
	}

	a.want(map[string]int64{
		"redporch.http.request.duration{http.request.method=GET,http.response.status_code=200,http.route=/city/{user},outcome=ok,url.scheme=http}": 2,
		"redporch.http.request.duration{http.request.method=GET,http.response.status_code=404,http.route=/city/{user},outcome=ok,url.scheme=http}": 1,
		"redporch.http.request.duration{http.request.method=GET,http.response.status_code=500,http.route=/city/{user},outcome=ok,url.scheme=http}": 1,
		"redporch.http.request.duration{http.request.method=GET,http.response.status_code=429,outcome=ok,url.scheme=http}":                         1,
		"redporch.http.decisions{outcome=allowed,policy=api}":                                                                                      4,
		"redporch.http.decisions{outcome=denied,policy=api}":                                                                                       1,
		"redporch.session.commits{outcome=ok}":                                              -4,
		"redporch.session.operation.duration{operation=load,outcome=ok}":                    1,
		"redporch.session.events{event=created}":                                            3,
		"redporch.session.loads{outcome=hit,store=web}":                                     1,
		"redporch.ratelimit.decisions{limiter=web,outcome=allowed,policy=api,source=redis}": 4,
		"redporch.ratelimit.decisions{limiter=web,outcome=denied,policy=api,source=redis}":  1,
		"redporch.ratelimit.duration{limiter=web,source=redis}":                             5,
		"redporch.ratelimit.redis.available{limiter=web}":                                   1,
		"redporch.cache.requests{cache=city,outcome=redis}":                                 1,
		"redporch.cache.requests{cache=city,outcome=miss}":                                  3,
		"redporch.cache.load.duration{cache=city,outcome=ok}":                               1,
		"redporch.cache.load.duration{cache=city,outcome=not-found}":                        1,
		"redporch.cache.load.duration{cache=city,outcome=error}":                            1,
		"redporch.cache.fills{cache=city,outcome=accepted}":                                 2,
		"redporch.cache.invalidations{cache=city,outcome=ok}":                               1,
		"redporch.cache.errors{cache=city,operation=load}":                                  1,
	})
}

func TestRedisDown(t *testing.T) {
	a := newApp(t)
	_, cookie := a.get("/city/ada")
	a.redis.Close()
	a.spans.Reset()
	if code, _ := a.get("/city/bob", func(r *http.Request) { r.Header.Set("Cookie", cookie) }); code != http.StatusServiceUnavailable {
		t.Errorf("a response whose session can't be saved got %d; want 503", code)
	}
	a.want(map[string]int64{
		"redporch.ratelimit.decisions{limiter=web,outcome=allowed,policy=api,source=local}": 1,
		"redporch.ratelimit.redis.available{limiter=web}":                                   0,
		"redporch.session.operation.duration{operation=load,outcome=error}":                 -1,
		"redporch.session.loads{outcome=unavailable,store=web}":                             -1,
		"redporch.session.commits{outcome=error}":                                           -1,
	})
	span := a.span("GET /city/{user}")
	if span.Status.Code != codes.Error {
		t.Errorf("span of a 503 has status %v; want Error", span.Status.Code)
	}
	if got := event(span, "redporch.commit"); got["error.type"] != "unavailable" || got["outcome"] != "error" {
		t.Errorf("event redporch.commit has %v; want outcome error, error.type unavailable", got)
	}
}

func TestSpans(t *testing.T) {
	a := newApp(t)
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	a.get("/city/ada", func(r *http.Request) {
		r.Header.Set("Traceparent", "00-"+parent+"-00f067aa0ba902b7-01")
	})
	if a.route != "GET /city/{user}" {
		t.Errorf("r.Pattern outside is %q; want the route", a.route)
	}
	span := a.span("GET /city/{user}")
	if got := span.SpanContext.TraceID().String(); got != parent {
		t.Errorf("trace id is %s; want that of the request, %s", got, parent)
	}
	attrs := flat(span.Attributes)
	for name, want := range map[string]string{"http.request.method": "GET", "http.route": "/city/{user}", "http.response.status_code": "200",
		"url.scheme": "http", "url.path": "/city/ada"} {
		if attrs[name] != want {
			t.Errorf("span has %s = %q; want %q", name, attrs[name], want)
		}
	}
	if got := event(span, "redporch.ratelimit"); got["outcome"] != "allowed" || got["policy"] != "api" {
		t.Errorf("event redporch.ratelimit has %v; want allowed by api", got)
	}
	if event(span, "redporch.session.created") == nil {
		t.Error("the span has no event redporch.session.created")
	}
	load := a.span("redporch.cache.load")
	if load.Parent.SpanID() != span.SpanContext.SpanID() {
		t.Error("the loader's span is not a child of the request's")
	}

	a.get("/city/broken")
	loads := 0
	for _, s := range a.spans.GetSpans() {
		if s.Name == "redporch.cache.load" && flat(s.Attributes)["outcome"] == "error" {
			loads++
			if got := flat(s.Attributes)["error.type"]; got != "other" || s.Status.Code != codes.Error {
				t.Errorf("span of a failed load has error.type %q, status %v; want other, Error", got, s.Status.Code)
			}
		}
	}
	if loads != 1 {
		t.Errorf("%d spans of failed loads; want 1", loads)
	}
}

// TestOuterSpan: the span of otelhttp and its like is used, not doubled or renamed.
func TestOuterSpan(t *testing.T) {
	a := newApp(t)
	ctx, outer := a.tracing.Tracer("test").Start(context.Background(), "outer")
	a.get("/city/ada", func(r *http.Request) { *r = *r.WithContext(ctx) })
	outer.End()
	span := a.span("outer")
	if event(span, "redporch.ratelimit") == nil {
		t.Error("the outer span did not get the event redporch.ratelimit")
	}
	if got := flat(span.Attributes); got["http.route"] != "/city/{user}" || got["http.response.status_code"] != "" {
		t.Errorf("outer span has attributes %v; want the route alone, the rest is its owner's", got)
	}
	for _, s := range a.spans.GetSpans() {
		if s.SpanKind == trace.SpanKindServer {
			t.Errorf("span %q was started beside the outer one", s.Name)
		}
	}
}

func TestPanicAndOddMethod(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tel, err := redporchotel.New(redporchotel.Config{
		MeterProvider:  sdkmetric.NewMeterProvider(),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	h := tel.Middleware(func(ev middleware.Event) { told = append(told, ev.Outcome) })(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed; that is Recover's business")
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("BREW", "/secret", nil))
	}()
	got := spans.GetSpans()
	if len(got) != 1 || got[0].Name != "HTTP" || flat(got[0].Attributes)["error.type"] != "panic" || flat(got[0].Attributes)["http.request.method"] != "_OTHER" || got[0].Status.Code != codes.Error {
		t.Fatalf("spans are %+v; want one called HTTP with status Error and error.type panic", got)
	}
	if !slices.Equal(told, []string{"panic"}) {
		t.Errorf("further observer was told %q; want panic", told)
	}
}

// TestNothingSecret: attributes are of the names promised, and no value comes from
// a request, a key or an error's text.
func TestNothingSecret(t *testing.T) {
	a := newApp(t)
	_, cookie := a.get("/city/ada-secret?token=query-secret")
	with := func(r *http.Request) {
		r.Header.Set("Cookie", cookie)
		r.Header.Set("User-Agent", "agent-secret")
	}
	a.get("/city/ada-secret", with)
	a.get("/city/broken", with) // its loader's error says broken-secret
	addr := a.redis.Addr()
	a.redis.Close()
	a.get("/city/other-secret", with)

	secrets := []string{"secret", "192.0.2", addr, strings.TrimPrefix(cookie, "sid=")}
	names := map[string]bool{}
	look := func(where, name, value string) {
		names[name] = true
		for _, s := range secrets {
			if s != "" && strings.Contains(value, s) {
				t.Errorf("%s: %s = %q holds %q", where, name, value, s)
			}
		}
	}
	for series := range a.points() {
		look("metric", "", series)
	}
	for _, s := range a.spans.GetSpans() {
		look("span", "name", s.Name)
		look("span", "status", s.Status.Description)
		for name, value := range flat(s.Attributes) {
			if name == "url.path" && strings.HasPrefix(value, "/city/") {
				continue // required by the conventions, see Config.NoPath
			}
			look("span "+s.Name, name, value)
		}
		for _, e := range s.Events {
			for name, value := range flat(e.Attributes) {
				look("event "+e.Name, name, value)
			}
		}
	}
	for _, name := range []string{"outcome", "policy", "http.route", "error.type"} {
		if !names[name] {
			t.Errorf("attribute %s was not seen; did anything happen?", name)
		}
	}
}

// TestNoPath: the path is left out where it may hold secrets.
func TestNoPath(t *testing.T) {
	for _, leftOut := range []bool{false, true} {
		spans := tracetest.NewInMemoryExporter()
		tel, err := redporchotel.New(redporchotel.Config{
			MeterProvider:  sdkmetric.NewMeterProvider(),
			TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
			NoPath:         leftOut,
		})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "https://example.org/reset/secret?and=more", nil)
		tel.Middleware()(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
		got := flat(spans.GetSpans()[0].Attributes)
		path, has := got["url.path"]
		if has == leftOut || has && path != "/reset/secret" || got["url.scheme"] != "https" {
			t.Errorf("NoPath %v: attributes %v; want url.scheme https, and url.path without the query unless it is left out", leftOut, got)
		}
	}
}

// TestStreams: how long a stream was open is not taken for how long an answer took.
func TestStreams(t *testing.T) {
	a := newApp(t)
	a.events.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/events", nil))
	const of = "{http.request.method=GET,http.response.status_code=200,http.route=/events,outcome=ok,url.scheme=http}"
	a.want(map[string]int64{"redporch.http.streams" + of: 1, "redporch.http.request.duration" + of: 0})
}

// TestExemplars: the duration of a sampled request comes with its trace, whether this package
// has started the span or somebody further out.
func TestExemplars(t *testing.T) {
	for _, observed := range []bool{false, true} {
		reader, spans := sdkmetric.NewManualReader(), tracetest.NewInMemoryExporter()
		tracing := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
		tel, err := redporchotel.New(redporchotel.Config{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)), TracerProvider: tracing})
		if err != nil {
			t.Fatal(err)
		}
		h := tel.Middleware()
		if observed {
			h = middleware.Observe(tel.Observer())
		}
		ctx, outer := context.Background(), trace.Span(nil)
		if observed {
			ctx, outer = tracing.Tracer("app").Start(ctx, "outer")
		}
		h(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		if observed {
			outer.End()
		}
		var rm metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &rm); err != nil {
			t.Fatal(err)
		}
		want := spans.GetSpans()[0].SpanContext.TraceID()
		var got []string
		for _, m := range rm.ScopeMetrics[0].Metrics {
			if d, ok := m.Data.(metricdata.Histogram[float64]); ok && m.Name == "redporch.http.request.duration" {
				for _, e := range d.DataPoints[0].Exemplars {
					got = append(got, hex.EncodeToString(e.TraceID))
				}
			}
		}
		if !slices.Equal(got, []string{want.String()}) {
			t.Errorf("by an observer %v: exemplars of the traces %q; want %s", observed, got, want)
		}
	}
}

// TestDocumented: the list in doc.go is what is exported.
func TestDocumented(t *testing.T) {
	file, err := os.Open("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	documented := map[string]string{} // name → attributes
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		f := strings.Fields(strings.TrimPrefix(lines.Text(), "//"))
		if len(f) > 2 && strings.HasPrefix(f[0], "redporch.") && slices.Contains([]string{"histogram", "counter", "gauge"}, f[1]) {
			attrs := strings.Split(strings.Join(f[2:], ""), ",")
			slices.Sort(attrs)
			documented[f[0]] = strings.Join(attrs, ",")
		}
	}

	a := newApp(t)
	a.get("/city/ada")
	a.get("/city/broken")
	a.events.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/events", nil))
	a.cache.Invalidate(context.Background(), "ada")
	exported := map[string]string{}
	for series := range a.points() {
		name, attrs, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
		var keys []string
		for pair := range strings.SplitSeq(attrs, ",") {
			key, _, _ := strings.Cut(pair, "=")
			keys = append(keys, key)
		}
		slices.Sort(keys)
		exported[name] = strings.Join(keys, ",")
	}
	for name, attrs := range exported {
		if documented[name] != attrs {
			t.Errorf("%s has attributes %s; doc.go says %q", name, attrs, documented[name])
		}
	}
	for name := range documented {
		if _, ok := exported[name]; !ok {
			t.Errorf("doc.go lists %s, which was not exported", name)
		}
	}
}

func TestClose(t *testing.T) {
	a := newApp(t)
	reads := 0
	err := a.tel.RegisterSessions("second", func() session.Stats { reads++; return session.Stats{} })
	if err != nil {
		t.Fatal(err)
	}
	a.points()
	if reads != 1 {
		t.Fatalf("statistics were read %d times; want 1", reads)
	}
	if err := a.tel.Close(); err != nil {
		t.Fatal(err)
	}
	a.points()
	if reads != 1 {
		t.Error("statistics were read after Close")
	}
}

func (a *app) span(name string) tracetest.SpanStub {
	a.t.Helper()
	for _, s := range a.spans.GetSpans() {
		if s.Name == name {
			return s
		}
	}
	a.t.Fatalf("no span %q among %d", name, len(a.spans.GetSpans()))
	return tracetest.SpanStub{}
}

func flat(attrs []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range attrs {
		m[string(kv.Key)] = fmt.Sprint(kv.Value.AsInterface())
	}
	return m
}

// event returns the attributes of a span's event, nil if there is none.
func event(s tracetest.SpanStub, name string) map[string]string {
	for _, e := range s.Events {
		if e.Name == name {
			return flat(e.Attributes)
		}
	}
	return nil
}
