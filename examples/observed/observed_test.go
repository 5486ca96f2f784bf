package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	colmetric "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// output is a writer that can be read while run writes to it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// server is the program, run by a test.
type server struct {
	t             *testing.T
	site, metrics string // URLs
	browser       http.Client
	stop          func()
}

// start runs the program with variables of the environment besides those that a
// test needs, until stop or the end of the test.
func start(t *testing.T, env map[string]string) *server {
	t.Helper()
	t.Setenv("ADDR", "127.0.0.1:0")
	for k, v := range env {
		t.Setenv(k, v)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var out, errs output
	code := make(chan int, 1)
	go func() { code <- run(ctx, &out, &errs) }()
	jar, _ := cookiejar.New(nil)
	s := &server{t: t, browser: http.Client{Jar: jar, Timeout: 10 * time.Second}}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if c := <-code; c != 0 || strings.Contains(errs.String(), "observed:") {
			t.Errorf("exit code %d, stderr %s; want 0 and no complaint", c, errs.String())
		}
	})
	t.Cleanup(s.stop)
	for range 1000 {
		text := out.String()
		if m := regexp.MustCompile(`http://localhost:(\d+)/`).FindStringSubmatch(text); m != nil {
			s.site = "http://127.0.0.1:" + m[1]
			if m := regexp.MustCompile(`Metrics: (\S+)`).FindStringSubmatch(text); m != nil {
				s.metrics = m[1]
			}
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the server did not start: %s%s", out.String(), errs.String())
	return nil
}

// ask sends a request, a POST if it has a form.
func (s *server) ask(path string, form url.Values, want ...int) {
	s.t.Helper()
	method, body := "GET", ""
	if form != nil {
		method, body = "POST", form.Encode()
	}
	r, err := http.NewRequest(method, s.site+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := s.browser.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if !slices.Contains(want, res.StatusCode) {
		s.t.Fatalf("%s %s = %d %s; want %d", method, path, res.StatusCode, text, want)
	}
}

// use does what people do with the page, with a Redis that breaks in between.
func (s *server) use() {
	s.t.Helper()
	one := url.Values{"id": {"1"}}
	s.ask("/", nil, 200)
	s.ask("/login", url.Values{"user": {"ada"}}, 200)
	s.ask("/api/me", nil, 200)
	s.ask("/api/profile?id=1", nil, 200)
	s.ask("/api/profile?id=1", nil, 200)
	s.ask("/api/profile?id=99", nil, 404)
	s.ask("/api/profile", url.Values{"id": {"2"}, "city": {"Paris"}}, 200)
	s.ask("/api/profile/stampede", one, 200)
	for range 25 {
		s.ask("/api/limited", nil, 200, 429)
	}
	s.ask("/api/try", nil, 200, 429)

	s.ask("/redis", url.Values{"mode": {"down"}}, 200)
	for range 3 {
		s.ask("/api/me", nil, 503)
		s.ask("/api/profile?id=2", nil, 200)
		s.ask("/api/try?failure=open", nil, 200)
	}
	s.ask("/api/profile/invalidate", one, 200)
	s.ask("/redis", url.Values{"mode": {"working"}}, 200)
	for range 500 {
		if res, err := s.browser.Get(s.site + "/api/me"); err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				break
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.ask("/logout", url.Values{}, 204)
}

// scrape asks for the metrics as Prometheus does.
func (s *server) scrape() model.Vector {
	s.t.Helper()
	res, err := http.Get(s.metrics)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	dec := expfmt.SampleDecoder{Dec: expfmt.NewDecoder(res.Body, expfmt.ResponseFormat(res.Header)), Opts: &expfmt.DecodeOptions{}}
	var all model.Vector
	for {
		var v model.Vector
		switch err := dec.Decode(&v); err {
		case nil:
			all = append(all, v...)
		case io.EOF:
			return all
		default:
			s.t.Fatal(err)
		}
	}
}

// settled scrapes until the limiters have seen that Redis is back, and what was
// invalidated without it has been made up for.
func (s *server) settled() model.Vector {
	s.t.Helper()
	limited := false // a limiter has seen that Redis is back
	for range 100 {
		if !limited { // each takes a unit of 20, so not more often than needed
			s.ask("/api/limited", nil, 200, 429)
			s.ask("/api/try?failure=open", nil, 200, 429)
		}
		v := s.scrape()
		limited = !slices.ContainsFunc(v, func(m *model.Sample) bool {
			return m.Metric[model.MetricNameLabel] == "redporch_ratelimit_redis_available" && m.Value != 1
		})
		queued := slices.ContainsFunc(v, func(m *model.Sample) bool {
			return m.Metric[model.MetricNameLabel] == "redporch_cache_invalidations_queued" && m.Value != 0
		})
		if limited && !queued {
			return v
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatal("limiters or cache have not recovered")
	return nil
}

// receiver is where OTLP goes.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	service map[string]bool
	spans   map[string][]string // names, each with its events
	metrics map[string]bool
}

func newReceiver(t *testing.T) *receiver {
	rc := &receiver{service: map[string]bool{}, spans: map[string][]string{}, metrics: map[string]bool{}}
	read := func(r *http.Request, m proto.Message) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err == nil {
			err = proto.Unmarshal(b, m)
		}
		if err != nil {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		if bytes.Contains(b, []byte("redporch:session:")) || bytes.Contains(b, []byte("127.0.0.1:0")) {
			t.Errorf("%s holds a key", r.URL.Path)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		var got coltrace.ExportTraceServiceRequest
		read(r, &got)
		rc.mu.Lock()
		defer rc.mu.Unlock()
		for _, rs := range got.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					rc.service[a.Value.GetStringValue()] = true
				}
			}
			for _, ss := range rs.ScopeSpans {
				for _, sp := range ss.Spans {
					events := rc.spans[sp.Name]
					for _, e := range sp.Events {
						events = append(events, e.Name)
					}
					rc.spans[sp.Name] = events
				}
			}
		}
	})
	mux.HandleFunc("POST /v1/metrics", func(w http.ResponseWriter, r *http.Request) {
		var got colmetric.ExportMetricsServiceRequest
		read(r, &got)
		rc.mu.Lock()
		defer rc.mu.Unlock()
		for _, rm := range got.ResourceMetrics {
			for _, sm := range rm.ScopeMetrics {
				for _, m := range sm.Metrics {
					rc.metrics[m.Name] = true
				}
			}
		}
	})
	rc.Server = httptest.NewServer(mux)
	t.Cleanup(rc.Close)
	return rc
}

// TestOpenTelemetry: with OTEL_EXPORTER_OTLP_ENDPOINT spans and metrics go there,
// and what the server has told last goes out when it ends.
func TestOpenTelemetry(t *testing.T) {
	rc := newReceiver(t)
	s := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": rc.URL, "OTEL_SERVICE_NAME": "porch"})
	if s.metrics != "" {
		t.Errorf("metrics are served at %s though nobody asked for that", s.metrics)
	}
	s.use()
	s.stop()

	rc.mu.Lock()
	defer rc.mu.Unlock()
	if !rc.service["porch"] {
		t.Errorf("services %v; want OTEL_SERVICE_NAME", rc.service)
	}
	for span, event := range map[string]string{
		"GET /api/limited":    "redporch.ratelimit",
		"POST /login":         "redporch.commit",
		"GET /api/profile":    "",
		"redporch.cache.load": "",
		"get":                 "", // of redisotel
	} {
		events, ok := rc.spans[span]
		if !ok || event != "" && !slices.Contains(events, event) {
			t.Errorf("span %q came with the events %v, %v; want it with %q", span, events, ok, event)
		}
	}
	for _, name := range []string{
		"redporch.http.request.duration", "redporch.http.decisions", "redporch.session.commits",
		"redporch.session.operation.duration", "redporch.session.events", "redporch.session.loads",
		"redporch.ratelimit.decisions", "redporch.ratelimit.duration", "redporch.ratelimit.redis.available",
		"redporch.cache.requests", "redporch.cache.load.duration", "redporch.cache.fills",
		"redporch.cache.invalidations", "redporch.cache.errors", "redporch.cache.l1.entries",
		"redporch.cache.invalidations.queued",
	} {
		if !rc.metrics[name] {
			t.Errorf("metric %s did not arrive", name)
		}
	}
	if t.Failed() {
		t.Logf("spans %v\nmetrics %v", rc.spans, rc.metrics)
	}
}
