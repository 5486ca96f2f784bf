package redporchotel_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchotel "github.com/redporch/redporch/otel"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// app is a small program with all of redporch in it, and what it told OpenTelemetry.
type app struct {
	t       *testing.T
	redis   *miniredis.Miniredis
	reader  *sdkmetric.ManualReader
	spans   *tracetest.InMemoryExporter
	tracing *sdktrace.TracerProvider
	tel     *redporchotel.Telemetry
	store   *session.Store
	cache   *cacheaside.Cache[string, string]
	handler http.Handler
	events  http.Handler // a stream
	route   string       // as seen outside
}

func newApp(t *testing.T) *app {
	t.Helper()
	a := &app{t: t, redis: miniredis.RunT(t), reader: sdkmetric.NewManualReader(), spans: tracetest.NewInMemoryExporter()}
	a.redis.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: a.redis.Addr(), DialerRetries: 1, MaxRetries: -1})
	t.Cleanup(func() { rdb.Close() })
	a.tracing = sdktrace.NewTracerProvider(sdktrace.WithSyncer(a.spans))

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	a.tel, err = redporchotel.New(redporchotel.Config{
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(a.reader)),
		TracerProvider: a.tracing,
		Propagator:     propagation.TraceContext{},
	})
	must(err)
	a.store, err = session.New(rdb, session.Config{Cookie: session.Cookie{InsecureHTTP: true}, Hooks: a.tel.SessionHooks()})
	must(err)
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Hooks: a.tel.RateLimitHooks("web")}, ratelimit.SlidingLog("api", 4, time.Minute))
	must(err)
	load := func(_ context.Context, user string) (string, error) {
		switch user {
		case "nobody":
			return "", cacheaside.ErrNotFound
		case "broken":
			return "", errors.New("no row for broken-secret")
		}
		return "London", nil
	}
	a.cache, err = cacheaside.New(rdb, "city", redporchotel.Load(a.tel, "city", load), cacheaside.Config{TTL: time.Minute, L1Entries: -1, Hooks: a.tel.CacheHooks("city")})
	must(err)
	t.Cleanup(func() { a.cache.Close() })
	must(a.tel.RegisterSessions("web", a.store.Stats))
	must(a.tel.RegisterCache("city", a.cache.Stats))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /city/{user}", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["seen"] = true
		city, err := a.cache.Get(r.Context(), r.PathValue("user"))
		switch {
		case errors.Is(err, cacheaside.ErrNotFound):
			http.NotFound(w, r)
		case err != nil:
			http.Error(w, "broken", http.StatusInternalServerError)
		default:
			fmt.Fprintln(w, city)
		}
	})
	chain := middleware.Chain(
		a.tel.Middleware(),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(a.store, "sid", middleware.SessionsConfig{}),
	)(mux)
	a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chain.ServeHTTP(w, r)
		a.route = r.Pattern
	})
	a.events = a.tel.Middleware()(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		middleware.SetRoute(r, "GET /events")
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: hello\n\n")
	}))
	return a
}

// get asks for a path from 192.0.2.7 and returns status and cookie.
func (a *app) get(path string, change ...func(*http.Request)) (int, string) {
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "192.0.2.7:1234"
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	return w.Code, cookie
}

// points is what was measured: "name{a=1,b=2}" → count of a histogram, or value.
func (a *app) points() map[string]int64 {
	a.t.Helper()
	var rm metricdata.ResourceMetrics
	if err := a.reader.Collect(context.Background(), &rm); err != nil {
		a.t.Fatal(err)
	}
	got := map[string]int64{}
	series := func(name string, set attribute.Set) string {
		return name + "{" + set.Encoded(attribute.DefaultEncoder()) + "}"
	}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					got[series(m.Name, p.Attributes)] = int64(p.Count)
					if p.Sum < 0 || p.Sum > 60 {
						a.t.Errorf("%s sums to %v seconds; want a plausible time", m.Name, p.Sum)
					}
				}
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					got[series(m.Name, p.Attributes)] = p.Value
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					got[series(m.Name, p.Attributes)] = p.Value
				}
			default:
				a.t.Errorf("metric %s has data %T", m.Name, m.Data)
			}
		}
	}
	return got
}

// want compares what was measured with want; a negative number means at least so
// many, for what takes one try or several.
func (a *app) want(want map[string]int64) {
	a.t.Helper()
	got := a.points()
	for series, n := range want {
		if n < 0 && got[series] >= -n {
			continue
		}
		if got[series] != n {
			a.t.Errorf("%s = %d; want %d", series, got[series], n)
		}
	}
	if a.t.Failed() {
		for series, n := range got {
			a.t.Logf("got %s = %d", series, n)
		}
	}
}
