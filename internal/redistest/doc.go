// Package redistest gives tests a Redis: one test body on miniredis, a real
// redis-server and a real cluster ([Run]); private servers that can be paused,
// killed and restarted ([Start], [StartCluster], [StartSentinel]); a proxy that
// loses replies ([NewProxy]); and a count of what went over the wire ([Count]).
//
// It is imported by _test.go files only. A package that uses it has
//
//	func TestMain(m *testing.M) { redistest.Main(m) }
//
// which stops the shared servers at the end of the test binary.
//
// # Without redis-server
//
// Real servers need the redis-server binary, 6.2 or later, on PATH or named by
// the environment variable REDIS_SERVER. Without it, and under go test -short,
// what needs one is skipped with a message. REDISTEST=all turns such skips into
// failures, so that CI can't lose coverage unnoticed.
//
// # Isolation
//
// Each body of Run has its server to itself: an empty miniredis of its own, or a
// shared server that was flushed and is locked until the body's cleanups have
// run. A test that calls Run may be parallel; a body may not call t.Parallel or
// Run, since it would hold that lock while it waits. A body that changes a
// server's configuration uses Start, since nothing resets the shared ones.
//
// Servers listen on unix sockets or on 127.0.0.1, and end with the test binary
// even if that panics or times out (on Linux, by the parent-death signal; on
// other systems only by Main and Cleanup).
package redistest
