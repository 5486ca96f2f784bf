// Package soak holds a test that runs the example server under load, on a Redis
// that something happens to every few hundred milliseconds:
//
//	go test -C faults ./soak -v -for 15m -timeout 20m
//
// It prints requests, answers by kind, latencies, and the server's memory at
// start and end. By itself it runs for a few seconds, which shows that it works.
package soak
