// Webserver is redporch's demonstration: one server whose requests carry
// sessions, are rate limited, and read through a cache.
//
//	go run -C examples ./webserver
//
// needs nothing else: without REDIS_URL it runs an in-memory Redis inside. The code
// is in examples/internal/demo, whose config.go lists the environment variables;
// examples/observed is the same server with OpenTelemetry and Prometheus.
package main

import (
	"os"

	"github.com/redporch/redporch/examples/internal/demo"
)

func main() { os.Exit(demo.Main()) }
