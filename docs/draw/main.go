// Command draw draws docs/figures: what each algorithm of package ratelimit does
// with one and the same traffic, so that docs/ratelimit.md shows what they do
// rather than what somebody thinks they do:
//
//	go run -C docs ./draw
package main

import (
	"fmt"
	"log"
	"os"
	"path"
	"time"

	"github.com/redporch/redporch/ratelimit"
)

const dir = "figures" // in docs

// The limits are those of an API that admits one call a second.
const (
	limit = 60
	burst = 20
	units = 10
	span  = time.Minute // a window, and a lease
)

// figure is one algorithm with its traffic, and the words in its picture.
type figure struct {
	name, title    string
	policy         ratelimit.Policy
	bound          string // what the policy calls its limit
	traffic        []phase
	counts, beside string // what the algorithm counts, and what the picture compares it with
	windows        bool   // whether the ends of its windows are drawn
	callsTop, top  int64  // of the two vertical axes
	says           func(run) string
}

const lastMinute = "admitted within the last minute"

var figures = []figure{
	{
		name: "fixed-window", title: "Fixed window: 60 a minute", policy: ratelimit.FixedWindow("calls", limit, span), bound: "limit",
		traffic: calls, counts: "used in the window", beside: lastMinute, windows: true, callsTop: 40, top: 120,
		says: func(r run) string {
			return fmt.Sprintf("It admits %s. The burst lies across the end of a window, so that two of them admit it: %d calls within one minute.",
				r.share(), r.most())
		},
	},
	{
		name: "sliding-log", title: "Sliding log: 60 in any minute", policy: ratelimit.SlidingLog("calls", limit, span), bound: "limit",
		traffic: calls, counts: "entries in the log", beside: lastMinute, callsTop: 40, top: 120,
		says: func(r run) string {
			return fmt.Sprintf("It admits %s, and never more than %d within a minute: what it counts is what was admitted in the last one. It does not spread the overload: the %d calls that come first are admitted, and the next when those are a minute old.",
				r.share(), r.most(), r.admittedFirst(overload))
		},
	},
	{
		name: "sliding-window", title: "Sliding window: about 60 in any minute", policy: ratelimit.SlidingWindow("calls", limit, span), bound: "limit",
		traffic: calls, counts: "counted: two counters, weighted", beside: lastMinute, callsTop: 40, top: 120,
		says: func(r run) string {
			return fmt.Sprintf("It admits %s. The older counter is taken to be spread evenly over its minute. The overload came late in it, so that its units are given back too early: %d calls within one minute.",
				r.share(), r.most())
		},
	},
	{
		name: "token-bucket", title: "Token bucket: 60 a minute, 20 at once", policy: ratelimit.TokenBucket("calls", limit, span, burst), bound: "burst",
		traffic: calls, counts: "tokens missing from the bucket", beside: lastMinute, callsTop: 40, top: 120,
		says: func(r run) string {
			return fmt.Sprintf("It admits %s, at most %d within a minute: the %d saved and %d that came in meanwhile. Once the bucket is empty, overload is admitted at an even one a second.",
				r.share(), r.most(), burst, r.most()-burst)
		},
	},
	{
		name: "concurrency", title: "Concurrency: 10 at the same time", policy: ratelimit.Concurrency("work", units, span), bound: "limit",
		traffic: work, counts: "units held", beside: "units held if none were denied", callsTop: 3, top: 20,
		says: func(r run) string {
			return fmt.Sprintf("It admits %s, and never holds more than %d units. While slow work holds all of them %d calls are denied. Then %d callers die with theirs: of the calls after them %d are denied, until the leases of the dead end, the first at %s.",
				r.share(), r.peak(), r.denied(slow)+r.denied(quick), r.admitted(die), r.denied(after), clock(r.first(die)+span))
		},
	},
}

func main() {
	if err := drawAll(dir); err != nil {
		log.Fatal("draw: ", err)
	}
}

func drawAll(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range figures {
		r, err := play(f.policy, f.traffic)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := os.WriteFile(path.Join(dir, f.name+".svg"), []byte(f.draw(r)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// clock writes a time of whole seconds as the axis does, such as 2:10.
func clock(d time.Duration) string {
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}
