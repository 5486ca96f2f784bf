package redporchprom_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	redporchprom "github.com/redporch/redporch/prometheus"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// service is a program with all of redporch in it. Its metrics are a handler of their
// own, for an address that users can't reach.
type service struct {
	app, metrics http.Handler
	cities       *cacheaside.Cache[string, string]
}

func newService(rdb redis.UniversalClient) (*service, error) {
	collector := redporchprom.New(redporchprom.Config{})
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector); err != nil {
		return nil, err
	}
	load := func(_ context.Context, user string) (string, error) { return "London", nil }

	sessions, err1 := session.New(rdb, session.Config{Hooks: collector.SessionHooks()})
	limiter, err2 := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second, Hooks: collector.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 100, time.Minute))
	cities, err3 := cacheaside.New(rdb, "city", load,
		cacheaside.Config{TTL: time.Minute, Hooks: collector.CacheHooks("city")})
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	collector.AddSessions("web", sessions.Stats)
	collector.AddCache("city", cities.Stats)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /city", func(w http.ResponseWriter, r *http.Request) {
		middleware.Session(r).Values["seen"] = true
		city, err := cities.Get(r.Context(), "ada")
		if err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, city)
	})
	h := middleware.Chain(
		middleware.Recover(middleware.RecoverConfig{}),
		middleware.Observe(collector.Observer()),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
		middleware.Sessions(sessions, session.HostName("sid"), middleware.SessionsConfig{}),
	)(mux)
	return &service{h, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), cities}, nil
}

// A service with sessions, a limit and a cache, all of which tell Prometheus.
func Example_service() {
	inside, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer inside.Close()
	inside.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: inside.Addr()})
	defer rdb.Close()
	s, err := newService(rdb)
	if err != nil {
		panic(err)
	}
	defer s.cities.Close()

	s.app.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/city", nil))

	w := httptest.NewRecorder()
	s.metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasSuffix(line, " 1\n") && !strings.Contains(line, "_bucket") && !strings.Contains(line, "_l1_") {
			fmt.Print(line)
		}
	}
	// Output:
	// redporch_cache_fills_total{cache="city",outcome="accepted"} 1
	// redporch_cache_load_duration_seconds_count{cache="city",outcome="ok"} 1
	// redporch_cache_requests_total{cache="city",outcome="miss"} 1
	// redporch_http_decisions_total{outcome="allowed",policy="api"} 1
	// redporch_http_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",http_route="/city",outcome="ok",url_scheme="http"} 1
	// redporch_ratelimit_decisions_total{limiter="web",outcome="allowed",policy="api",source="redis"} 1
	// redporch_ratelimit_duration_seconds_count{limiter="web",source="redis"} 1
	// redporch_ratelimit_redis_available{limiter="web"} 1
	// redporch_session_commits_total{outcome="ok"} 1
	// redporch_session_events_total{event="created"} 1
	// redporch_session_operation_duration_seconds_count{operation="create",outcome="ok"} 1
}
