package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/examples/internal/demo"
	"github.com/redporch/redporch/middleware"
	redporchprom "github.com/redporch/redporch/prometheus"
	"github.com/redporch/redporch/session"
)

// prometheusMetrics serves /metrics on METRICS_ADDR, which is not where the users
// come in.
func prometheusMetrics(_ context.Context, stdout io.Writer) (demo.Telemetry, func(context.Context) error, error) {
	addr := os.Getenv("METRICS_ADDR")
	if addr == "" {
		return demo.Telemetry{}, func(context.Context) error { return nil }, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return demo.Telemetry{}, nil, fmt.Errorf("METRICS_ADDR: %w; use for example localhost:9100", err)
	}
	c := redporchprom.New(redporchprom.Config{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	go srv.Serve(ln)
	fmt.Fprintf(stdout, "Metrics: http://%s/metrics\n", ln.Addr())
	return demo.Telemetry{
		Middleware: middleware.Observe(c.Observer()),
		Sessions:   c.SessionHooks(),
		RateLimit:  c.RateLimitHooks,
		Cache:      c.CacheHooks,
		AddSessions: func(store string, stats func() session.Stats) error {
			c.AddSessions(store, stats)
			return nil
		},
		AddCache: func(cache string, stats func() cacheaside.Stats) error {
			c.AddCache(cache, stats)
			return nil
		},
	}, srv.Shutdown, nil
}
