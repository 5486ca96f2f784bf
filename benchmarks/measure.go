package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// plan says how long to measure.
type plan struct {
	slices int           // for each subject
	thin   int           // subjects that no bar is about get one slice in so many; 0: all
	warm   time.Duration // at the start of each slice, not counted
	length time.Duration // of the counted part
	total  time.Duration // of the whole run; when it is short there are fewer slices. 0: no bound
}

// leastSlices are made however little time is left.
const leastSlices = 3

// inProcess is of how many calls one is timed if they ask nobody.
const inProcess = 64

// weight is the share of the rounds that a subject takes part in.
func (p plan) weight(opName, subject string, callers int) float64 {
	if p.thin == 0 || barred(opName, subject, callers) {
		return 1
	}
	return 1 / float64(p.thin)
}

var (
	fullPlan  = plan{slices: 11, warm: 15 * time.Millisecond, length: 85 * time.Millisecond}
	quickPlan = plan{slices: 48, thin: 8, warm: 5 * time.Millisecond, length: 27 * time.Millisecond, total: 38 * time.Second}
)

// result is one line of the output. Fields without a JSON name are for the table
// and the plots alone.
type result struct {
	Op       string  `json:"op"`
	Subject  string  `json:"subject"`
	Callers  int     `json:"callers"`
	NsPerOp  float64 `json:"ns_per_op"` // wall clock by calls, all callers together
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Allocs   float64 `json:"allocs_per_op"`
	Bytes    float64 `json:"bytes_per_op"`
	Commands float64 `json:"commands_per_op"` // sent; those a script calls are part of it

	Writes    float64 `json:"-"` // system calls that send, an op
	Executed  float64 `json:"-"` // commands the server ran, those in scripts included, an op
	ServerUs  float64 `json:"-"` // the server's CPU time, an op
	OwnUs     float64 `json:"-"` // this process' CPU time, an op
	FailedPct float64 `json:"-"`
}

// running is a subject that is set up for an op.
type running struct {
	name string
	body body
}

// errNothingWorked means that not one call of a slice succeeded.
var errNothingWorked = errors.New("no call succeeded")

// measure lets the subjects of one op take turns in slices, so that a drift of
// the machine's speed hits all of them, and returns a result for each. A subject
// that can't do its work is left out, with an error.
func (h *harness) measure(ctx context.Context, opName string, subjects []*running, callers int, p plan) (results []result, errs []error) {
	type state struct {
		dead      bool
		every     int // it takes part in every so manieth round
		callers   []*caller
		ns        []float64
		latencies []time.Duration
		ops       []float64
		failed    float64
	}
	start := time.Now()
	states := make([]state, len(subjects))
	fail := func(i int, err error) {
		states[i].dead = true
		errs = append(errs, fmt.Errorf("%s, %d callers, %s: %w", opName, callers, subjects[i].name, err))
	}
	for i, s := range subjects {
		states[i].callers = newCallers(callers)
		states[i].every = int(1 / p.weight(opName, s.name, callers))
		// Fills pools and caches, and finds out how often to look at the clock.
		first := timedSlice(s.body.do, states[i].callers, 0, p.warm)
		if first.ops == 0 && first.failed > 0 {
			fail(i, fmt.Errorf("%w: %w", errNothingWorked, first.err))
			continue
		}
		each := first.elapsed * time.Duration(min(callers, runtime.GOMAXPROCS(0))) / time.Duration(max(first.ops, 1))
		for _, c := range states[i].callers {
			switch { // both readings of the clock take a tenth of a microsecond
			case each < 3*time.Microsecond:
				c.every = inProcess
			case each < 30*time.Microsecond:
				c.every = 8
			}
		}
	}
	for round := range p.slices {
		if p.total > 0 && round >= leastSlices*max(p.thin, 1) && time.Since(start) > p.total {
			break
		}
		for k := range subjects {
			i := turn(round, k, len(subjects))
			st := &states[i]
			if st.dead || round%st.every != 0 || ctx.Err() != nil {
				continue
			}
			runtime.GC() // the neighbour's garbage is not this subject's
			sl := timedSlice(subjects[i].body.do, st.callers, p.warm, p.length)
			if sl.ops == 0 {
				if sl.failed > 0 {
					fail(i, fmt.Errorf("%w: %w", errNothingWorked, sl.err))
				}
				continue // or one call took longer than the slice
			}
			st.ns = append(st.ns, float64(sl.elapsed.Nanoseconds())/float64(sl.ops))
			st.ops = append(st.ops, float64(sl.ops))
			st.latencies = append(st.latencies, sl.latencies...)
			st.failed += float64(sl.failed) / float64(sl.ops+sl.failed)
		}
	}
	for i, s := range subjects {
		st := &states[i]
		if st.dead || ctx.Err() != nil {
			continue
		}
		if len(st.ns) == 0 {
			fail(i, fmt.Errorf("no call ended within a slice of %v", p.length))
			continue
		}
		r, err := h.account(ctx, s.body, st.callers, int(median(st.ops)))
		if err != nil {
			fail(i, err)
			continue
		}
		r.Op, r.Subject, r.Callers = opName, s.name, callers
		r.NsPerOp = round(median(st.ns), 1)
		slices.Sort(st.latencies)
		r.P50, r.P99 = percentile(st.latencies, 0.5), percentile(st.latencies, 0.99)
		r.FailedPct = 100 * st.failed / float64(len(st.ns))
		results = append(results, r)
	}
	return results, errs
}

// turn says which of n subjects is the k-th in a round. They change their order, and every
// other round its direction, so that nobody always follows the same neighbour.
func turn(round, k, n int) int {
	if round%2 == 1 {
		k = n - 1 - k
	}
	return (k + round/2) % n
}

// account counts what about n calls cost, in slices of their own that begin and
// end in silence: allocations and CPU time in one, commands in another, since
// counting those costs something as well.
func (h *harness) account(ctx context.Context, b body, callers []*caller, n int) (r result, err error) {
	n = max(n, len(callers))
	if callers[0].every == inProcess {
		n = max(n, 200_000) // quick ones are many, so that a stray allocation is none of theirs
	}
	var mem [2]runtime.MemStats
	var srv [2]serverStats
	var own [2]float64
	k := 0
	runtime.GC()
	ops, callErr := fixedSlice(b.do, callers, n, func() {
		// The readings' own cost stays outside: the second set reads in reverse.
		if k == 0 {
			srv[0], err = h.srv.stats(ctx)
			own[0] = cpuTime()
			runtime.ReadMemStats(&mem[0])
		} else {
			runtime.ReadMemStats(&mem[1])
			own[1] = cpuTime()
			if err == nil {
				srv[1], err = h.srv.stats(ctx)
			}
		}
		k++
	})
	if err != nil {
		return r, err
	}
	if ops == 0 {
		return r, fmt.Errorf("%w: %w", errNothingWorked, callErr)
	}
	per := func(total float64, ops int) float64 { return round(total/float64(ops), 2) }
	r.Allocs = per(float64(mem[1].Mallocs-mem[0].Mallocs), ops)
	r.Bytes = round(float64(mem[1].TotalAlloc-mem[0].TotalAlloc)/float64(ops), 0)
	r.Executed = per(srv[1].commands-srv[0].commands-statsCommands, ops)
	r.OwnUs = per(1e6*(own[1]-own[0]), ops)
	r.ServerUs = per(1e6*(srv[1].cpu-srv[0].cpu), ops)

	commands, writes := h.wire.commands.Load(), h.wire.writes.Load()
	h.wire.on.Store(true)
	ops, callErr = fixedSlice(b.do, callers, n, func() {})
	h.wire.on.Store(false)
	if ops == 0 {
		return r, fmt.Errorf("%w: %w", errNothingWorked, callErr)
	}
	r.Commands = per(float64(h.wire.commands.Load()-commands), ops)
	r.Writes = per(float64(h.wire.writes.Load()-writes), ops)
	return r, nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// percentile is in microseconds; sorted must be.
func percentile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return round(float64(sorted[max(i, 0)].Nanoseconds())/1e3, 3)
}

func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}
