package redporchprom_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/middleware"
	redporchprom "github.com/redporch/redporch/prometheus"
	"github.com/redporch/redporch/ratelimit"
)

func Example() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	registry := prometheus.NewRegistry()
	collector := redporchprom.New(redporchprom.Config{})
	registry.MustRegister(collector)
	limiter, err := ratelimit.New(rdb, ratelimit.Config{Hooks: collector.RateLimitHooks("web")},
		ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	h := middleware.Chain(
		middleware.Observe(collector.Observer()),
		middleware.RateLimit(limiter, middleware.ClientIP(), middleware.RateLimitConfig{}),
	)(mux)
	for range 3 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/hello", nil))
	}

	// Serve metrics apart from the app, where only Prometheus can ask.
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	w := httptest.NewRecorder()
	metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "redporch_http_decisions_total") {
			fmt.Fprint(os.Stdout, line)
		}
	}
	// Output:
	// redporch_http_decisions_total{outcome="allowed",policy="api"} 1
	// redporch_http_decisions_total{outcome="denied",policy="api"} 2
}
