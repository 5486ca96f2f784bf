// Package demo is the server of examples/webserver: sessions, rate limits and a
// cache behind one page. It is a package, so that examples/observed can serve the
// same with telemetry. Begin reading at app.go; config.go lists the environment.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Main serves until the process is told to end, and returns its exit code.
func Main(telemetry ...Telemetry) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Run(ctx, os.Getenv, os.Stdout, os.Stderr, telemetry...)
}

// Run serves until ctx ends. It returns the exit code: 0 after a clean shutdown,
// 2 for a wrong environment, 1 for everything else.
func Run(ctx context.Context, getenv func(string) string, stdout, stderr io.Writer, telemetry ...Telemetry) int {
	cfg, err := readConfig(getenv)
	if err != nil {
		fmt.Fprintf(stderr, "webserver: %v\n", err)
		return 2
	}
	logger := slog.New(newBoundedLog(slog.NewTextHandler(stderr, nil)))
	if err := serve(ctx, cfg, stdout, logger, telemetry); err != nil {
		fmt.Fprintf(stderr, "webserver: %v\n", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, cfg config, stdout io.Writer, logger *slog.Logger, telemetry allTelemetry) error {
	rds, err := openRedis(cfg)
	if err != nil {
		return err
	}
	defer rds.close()
	app, err := newApp(cfg, rds, logger, telemetry)
	if err != nil {
		return err
	}
	defer app.close()

	ln, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           app.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	if cfg.randomKeys {
		logger.Warn("SESSION_KEYS is empty: using a random key, so sessions end with this process; set it to 64 hex digits")
	}
	fmt.Fprintf(stdout, "Redis: %s\n", rds.description)
	fmt.Fprintf(stdout, "Listening on %s, open http://localhost:%d/\n", ln.Addr(), ln.Addr().(*net.TCPAddr).Port)

	srv.RegisterOnShutdown(app.stop) // or Shutdown would wait for the streams

	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintln(stdout, "Shutting down.")
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
