// Package faults holds no code, only tests: each promise of session, ratelimit,
// cacheaside and middleware, kept on real servers while they break.
//
// The heart is a matrix, one row a fault and one column a package; docs/faults.md
// renders it with the figures of a run:
//
//	go test -C faults . -run TestMatrix -v
//
// Besides there are failovers of a cluster and of a Sentinel set under load, what
// a killed server still knows after a restart, a checker for the histories of
// sessions, attacks, and the least rights each package needs.
//
// The package in ratelimitmodel compares rate limits with a model of their page,
// step by step:
//
//	go test -C faults ./ratelimitmodel -seeds 60 -steps 3500
//
// The package in soak runs the example server under load and random faults for
// as long as it is told to.
package faults
