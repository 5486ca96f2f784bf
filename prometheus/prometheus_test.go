package redporchprom_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchprom "github.com/redporch/redporch/prometheus"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// quiet drops what go-redis prints about the servers that tests take down.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	os.Exit(m.Run())
}

// app is a small program with all of redporch in it.
type app struct {
	t        *testing.T
	redis    *miniredis.Miniredis
	registry *prometheus.Registry
	cache    *cacheaside.Cache[string, string]
	handler  http.Handler
	events   http.Handler // a stream
}

func newApp(t *testing.T) *app {
	t.Helper()
	a := &app{t: t, redis: miniredis.RunT(t), registry: prometheus.NewPedanticRegistry()}
	a.redis.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: a.redis.Addr(), DialerRetries: 1, MaxRetries: -1})
	t.Cleanup(func() { rdb.Close() })

	c := redporchprom.New(redporchprom.Config{ConstLabels: prometheus.Labels{"service": "test"}, Exemplar: traceOf})
	if err := a.registry.Register(c); err != nil {
		t.Fatal(err)
	}
	store, err1 := session.New(rdb, session.Config{Cookie: session.Cookie{InsecureHTTP: true}, Hooks: c.SessionHooks()})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{Hooks: c.RateLimitHooks("web")}, ratelimit.SlidingLog("api", 4, time.Minute))
	load := func(_ context.Context, user string) (string, error) {
		switch user {
		case "nobody":
			return "", cacheaside.ErrNotFound
		case "broken":
			return "", errors.New("no row for broken-secret")
		}
		return "London", nil
	}
	cache, err3 := cacheaside.New(rdb, "city", load, cacheaside.Config{TTL: time.Minute, L1Entries: -1, Hooks: c.CacheHooks("city")})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	a.cache = cache
	c.AddSessions("web", store.Stats)
	c.AddCache("city", cache.Stats)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /city/{user}", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["seen"] = true
		if city, err := cache.Get(r.Context(), r.PathValue("user")); err != nil {
			http.Error(w, "broken", http.StatusInternalServerError)
		} else {
			fmt.Fprintln(w, city)
		}
	})
	a.handler = middleware.Chain(
		middleware.Observe(c.Observer()),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(store, "sid", middleware.SessionsConfig{}),
	)(mux)
	a.events = middleware.Observe(c.Observer())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		middleware.SetRoute(r, "GET /events")
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		fmt.Fprint(w, "data: hello\n\n")
	}))
	return a
}

type traceKey struct{}

// traceOf is what a program has of its tracing library.
func traceOf(ctx context.Context) prometheus.Labels {
	if id, ok := ctx.Value(traceKey{}).(string); ok {
		return prometheus.Labels{"trace_id": id}
	}
	return nil
}

// get asks for a path from 192.0.2.7 and returns the cookie that came.
func (a *app) get(path, cookie string) string {
	r := httptest.NewRequest("GET", path, nil)
	r.RemoteAddr = "192.0.2.7:1234"
	r.Header.Set("Cookie", cookie)
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	cookie, _, _ = strings.Cut(w.Header().Get("Set-Cookie"), ";")
	return cookie
}

// use makes everything happen that is counted.
func (a *app) use() {
	cookie := a.get("/city/ada", "")
	a.get("/city/ada", cookie)
	a.get("/city/nobody", "")
	a.get("/city/broken", "")
	a.get("/city/ada", "") // denied
	a.events.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/events", nil))
	if err := a.cache.Invalidate(context.Background(), "ada"); err != nil {
		a.t.Fatal(err)
	}
}

func (a *app) gather() map[string]*dto.MetricFamily {
	a.t.Helper()
	families, err := a.registry.Gather() // pedantic: it also checks what Describe promised
	if err != nil {
		a.t.Fatal(err)
	}
	m := map[string]*dto.MetricFamily{}
	for _, f := range families {
		m[f.GetName()] = f
	}
	return m
}

// points returns "name{a=1,b=2}" → value, or the count of a histogram.
func (a *app) points() map[string]float64 {
	got := map[string]float64{}
	for name, f := range a.gather() {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() == "service" {
					continue
				}
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			got[name+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return got
}

func (a *app) want(want map[string]float64) {
	a.t.Helper()
	got := a.points()
	for series, n := range want {
		if got[series] != n {
			a.t.Errorf("%s = %v; want %v", series, got[series], n)
		}
	}
	if a.t.Failed() {
		for series, n := range got {
			a.t.Logf("got %s = %v", series, n)
		}
	}
}

func TestMetrics(t *testing.T) {
	a := newApp(t)
	a.use()
	a.want(map[string]float64{
		"redporch_http_request_duration_seconds{http_request_method=GET,http_response_status_code=200,http_route=/city/{user},outcome=ok,url_scheme=http}": 2,
		"redporch_http_request_duration_seconds{http_request_method=GET,http_response_status_code=500,http_route=/city/{user},outcome=ok,url_scheme=http}": 2,
		"redporch_http_request_duration_seconds{http_request_method=GET,http_response_status_code=429,http_route=,outcome=ok,url_scheme=http}":             1,
		"redporch_http_streams_total{http_request_method=GET,http_response_status_code=200,http_route=/events,outcome=ok,url_scheme=http}":                 1,
		"redporch_http_request_duration_seconds{http_request_method=GET,http_response_status_code=200,http_route=/events,outcome=ok,url_scheme=http}":      0,
		"redporch_http_decisions_total{outcome=denied,policy=api}":                                                                                         1,
		"redporch_session_operation_duration_seconds{operation=load,outcome=ok}":                                                                           1,
		"redporch_session_events_total{event=created}":                                                                                                     3,
		"redporch_session_loads_total{outcome=hit,store=web}":                                                                                              1,
		"redporch_ratelimit_decisions_total{limiter=web,outcome=allowed,policy=api,source=redis}":                                                          4,
		"redporch_ratelimit_decisions_total{limiter=web,outcome=denied,policy=api,source=redis}":                                                           1,
		"redporch_ratelimit_duration_seconds{limiter=web,source=redis}":                                                                                    5,
		"redporch_ratelimit_redis_available{limiter=web}":                                                                                                  1,
		"redporch_cache_requests_total{cache=city,outcome=redis}":                                                                                          1,
		"redporch_cache_requests_total{cache=city,outcome=miss}":                                                                                           3,
		"redporch_cache_load_duration_seconds{cache=city,outcome=ok}":                                                                                      1,
		"redporch_cache_load_duration_seconds{cache=city,outcome=not-found}":                                                                               1,
		"redporch_cache_load_duration_seconds{cache=city,outcome=error}":                                                                                   1,
		"redporch_cache_fills_total{cache=city,outcome=accepted}":                                                                                          2,
		"redporch_cache_invalidations_total{cache=city,outcome=ok}":                                                                                        1,
		"redporch_cache_errors_total{cache=city,operation=load}":                                                                                           1,
	})
	if got := a.points()["redporch_session_commits_total{outcome=ok}"]; got < 4 {
		t.Errorf("redporch_session_commits_total{outcome=ok} = %v; want 4 or more", got)
	}
}

func TestRedisDown(t *testing.T) {
	a := newApp(t)
	cookie := a.get("/city/ada", "")
	a.redis.Close()
	a.get("/city/ada", cookie)
	a.want(map[string]float64{
		"redporch_ratelimit_redis_available{limiter=web}":                                                                                                  0,
		"redporch_ratelimit_decisions_total{limiter=web,outcome=allowed,policy=api,source=local}":                                                          1,
		"redporch_http_request_duration_seconds{http_request_method=GET,http_response_status_code=503,http_route=/city/{user},outcome=ok,url_scheme=http}": 1,
	})
	for _, series := range []string{
		"redporch_session_operation_duration_seconds{operation=load,outcome=error}",
		"redporch_session_loads_total{outcome=unavailable,store=web}",
		"redporch_session_commits_total{outcome=error}",
	} {
		if got := a.points()[series]; got < 1 {
			t.Errorf("%s = %v; want 1 or more", series, got)
		}
	}
}

// TestNothingSecret: no label's value comes from a request, a key or an error.
func TestNothingSecret(t *testing.T) {
	a := newApp(t)
	cookie := a.get("/city/ada-secret?q=query-secret", "")
	a.get("/city/broken", cookie)
	addr := a.redis.Addr()
	a.redis.Close()
	a.get("/city/other-secret", cookie)
	points := a.points()
	if len(points) < 15 {
		t.Fatalf("%d series; did anything happen?", len(points))
	}
	for series := range points {
		for _, secret := range []string{"secret", "192.0.2", addr, strings.TrimPrefix(cookie, "sid=")} {
			if strings.Contains(series, secret) {
				t.Errorf("%s holds %q", series, secret)
			}
		}
	}
}

// TestExemplars: a duration comes with the trace of its request, and one whose exemplar the
// client library would refuse is counted without.
func TestExemplars(t *testing.T) {
	a := newApp(t)
	for _, id := range []string{"4bf92f3577b34da6a3ce929d0e0e4736", strings.Repeat("x", 200), "\xff"} {
		r := httptest.NewRequest("GET", "/city/ada", nil)
		a.handler.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), traceKey{}, id)))
	}
	var found []string
	m := a.gather()["redporch_http_request_duration_seconds"].GetMetric()
	for _, b := range m[0].GetHistogram().GetBucket() {
		for _, l := range b.GetExemplar().GetLabel() {
			found = append(found, l.GetName()+"="+l.GetValue())
		}
	}
	if want := []string{"trace_id=4bf92f3577b34da6a3ce929d0e0e4736"}; len(m) != 1 || m[0].GetHistogram().GetSampleCount() != 3 || !slices.Equal(found, want) {
		t.Errorf("%d series, %d requests, exemplars %q; want 1, 3, %q", len(m), m[0].GetHistogram().GetSampleCount(), found, want)
	}
}

func TestNamesAndUnits(t *testing.T) {
	a := newApp(t)
	a.use()
	problems, err := testutil.GatherAndLint(a.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestDocumented: the list in doc.go is what is exported.
func TestDocumented(t *testing.T) {
	file, err := os.Open("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	documented := map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		f := strings.Fields(strings.TrimPrefix(lines.Text(), "//"))
		if len(f) > 2 && strings.HasPrefix(f[0], "redporch_") {
			labels := strings.Split(strings.Join(f[2:], ""), ",")
			slices.Sort(labels)
			documented[f[0]] = f[1] + " " + strings.Join(labels, ",")
		}
	}
	a := newApp(t)
	a.use()
	families := a.gather()
	for name, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			if l.GetName() != "service" {
				labels = append(labels, l.GetName())
			}
		}
		slices.Sort(labels)
		if got := strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ","); documented[name] != got {
			t.Errorf("%s is a %s; doc.go says %q", name, got, documented[name])
		}
	}
	for name := range documented {
		if families[name] == nil {
			t.Errorf("doc.go lists %s, which was not exported", name)
		}
	}
}
