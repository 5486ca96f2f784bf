package main

import (
	"fmt"
	"io"
	"slices"
)

// A bar is what redporch promises beside another subject, or by itself.
type bar struct {
	op      string
	callers int
	text    string
	against string // the other subject, empty for none
	figure  func(ours, other result) float64
	least   float64 // the figure must not be below, if above 0
	most    float64 // the figure must not be above, if least is 0
}

func faster(ours, other result) float64 { return other.NsPerOp / ours.NsPerOp }
func slower(ours, other result) float64 { return ours.NsPerOp / other.NsPerOp }

var bars = []bar{
	{op: "session-load", callers: 64, text: "times as fast as redisstore", against: "redisstore", figure: faster, least: 4},
	{op: "session-load", callers: 64, text: "times as fast as scs", against: "scs", figure: faster, least: 4},
	{op: "session-load", callers: 64, text: "allocations", figure: func(r, _ result) float64 { return r.Allocs }, most: 40},
	{op: "session-load", callers: 64, text: "times the time of raw-autopipeline", against: "raw-autopipeline", figure: slower, most: 2.2},
	{op: "session-load", callers: 1, text: "times the time of raw-direct", against: "raw-direct", figure: slower, most: 1.25},
	{op: "session-save", callers: 64, text: "times as fast as redisstore", against: "redisstore", figure: faster, least: 4},
	{op: "limit-keys", callers: 64, text: "times as fast as redis_rate", against: "redis_rate", figure: faster, least: 4},
	{op: "limit-keys", callers: 64, text: "times as fast as rueidislimiter", against: "rueidislimiter", figure: faster, least: 1.5},
	{op: "limit-hot", callers: 64, text: "times as fast as redis_rate", against: "redis_rate", figure: faster, least: 8},
	{op: "limit-keys", callers: 1, text: "times the time of redis_rate", against: "redis_rate", figure: slower, most: 1.25},
	{op: "limit-denied", callers: 1, text: "ns", figure: func(r, _ result) float64 { return r.NsPerOp }, most: 300},
	{op: "limit-denied", callers: 64, text: "ns", figure: func(r, _ result) float64 { return r.NsPerOp }, most: 300},
	{op: "limit-denied", callers: 64, text: "commands", figure: func(r, _ result) float64 { return r.Commands }},
	{op: "limit-denied", callers: 64, text: "allocations", figure: func(r, _ result) float64 { return r.Allocs }},
	{op: "cache-redis", callers: 64, text: "times as fast as go-redis-cache", against: "go-redis-cache", figure: faster, least: 3.5},
	{op: "cache-local", callers: 1, text: "ns", figure: func(r, _ result) float64 { return r.NsPerOp }, most: 200},
	{op: "cache-local", callers: 64, text: "ns", figure: func(r, _ result) float64 { return r.NsPerOp }, most: 200},
	{op: "cache-local", callers: 64, text: "allocations", figure: func(r, _ result) float64 { return r.Allocs }},
	{op: "chain", callers: 64, text: "times as fast as the peers' stack", against: "stack", figure: faster, least: 3},
}

// barred reports whether a bar is about what a subject does.
func barred(opName, subject string, callers int) bool {
	return slices.ContainsFunc(bars, func(b bar) bool {
		return b.op == opName && b.callers == callers && (subject == "redporch" || subject == b.against)
	})
}

// writeBars says which bars the results meet. Those that were not measured are
// left out.
func writeBars(w io.Writer, results []result) {
	rows := [][]string{{"op", "callers", "figure", "bar", "", "met"}}
	for _, b := range bars {
		ours, ok := find(results, b.op, "redporch", b.callers)
		if !ok {
			continue
		}
		var other result
		if b.against != "" {
			if other, ok = find(results, b.op, b.against, b.callers); !ok {
				continue
			}
		}
		v := b.figure(ours, other)
		met, want := v <= b.most, "≤ "+figure(b.most)
		if b.least > 0 {
			met, want = v >= b.least, "≥ "+figure(b.least)
		}
		word := "yes"
		if !met {
			word = "NO"
		}
		rows = append(rows, []string{b.op, fmt.Sprint(b.callers), figure(v), want, b.text, word})
	}
	if len(rows) > 1 {
		fmt.Fprintln(w, "\n### Bars")
		fmt.Fprintln(w)
		writeRows(w, rows)
	}
}
