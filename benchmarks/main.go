// Benchmarks sets redporch beside its peers and beside the raw limits of the
// clients: the same work on the same Redis with the same payloads, in one run.
//
//	go run . -quick          # within 50 s: the bars, at 1 and 64 callers
//	go run . -o plots        # everything, with plots; some minutes
//	go run . -op limit-keys -subject redporch,redis_rate -callers 64
//	go run . -json           # one object a line
//	go run . -growth 1000000 # how figures and memory change as state grows
//
// It starts a redis-server of its own on a free port of 127.0.0.1 and stops it.
// The subjects of an op take turns in short slices, and figures are medians of
// slices, so that a drift of the machine's speed hits all of them alike. Callers
// are closed loops: each makes its next call when the last has returned.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ops are all kinds of work, in the order they are run and printed.
var ops = []op{sessionLoad, sessionSave, sessionHandler, limitKeys, limitHot, limitDenied, cacheRedis, cacheLocal, cacheStampede, chain}

type options struct {
	quick, json   bool
	ops, subjects string
	callers, dir  string
	slices        int
	slice         time.Duration
	cpuprofile    string
	growth        int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o options
	fs := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&o.quick, "quick", false, "end within 50 s: fewer ops, 1 and 64 callers, shorter slices")
	fs.BoolVar(&o.json, "json", false, "print one JSON object a line instead of tables")
	fs.StringVar(&o.ops, "op", "", "run only these ops, separated by commas: "+opNames())
	fs.StringVar(&o.subjects, "subject", "", "run only these subjects, separated by commas")
	fs.StringVar(&o.callers, "callers", "", "run only with these numbers of callers, separated by commas (default 1,8,64,256)")
	fs.StringVar(&o.dir, "o", "", "write plots, table and results into this directory")
	fs.IntVar(&o.slices, "slices", 0, "slices for each subject (0: as many as the run allows)")
	fs.DurationVar(&o.slice, "slice", 0, "counted time of a slice (0: as the run allows)")
	fs.StringVar(&o.cpuprofile, "cpuprofile", "", "write a CPU profile of this process to this file")
	fs.IntVar(&o.growth, "growth", 0, "measure growth instead, up to so many sessions, keys and values (such as 1000000); some minutes")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.cpuprofile != "" {
		f, err := os.Create(o.cpuprofile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if o.growth > 0 {
		return measureGrowth(ctx, o.growth, stdout, stderr)
	}
	selected, levels, p, err := o.choose()
	if err != nil {
		return err
	}
	results, machine, err := measureAll(ctx, selected, levels, p, stderr, func(r result) {
		if o.json {
			writeJSON(stdout, r)
		}
	})
	// What was measured before something failed is still worth printing.
	if !o.json {
		writeTables(stdout, machine, selected, results)
		writeBars(stdout, results)
	} else {
		writeBars(stderr, results)
	}
	if o.dir != "" && len(results) > 0 {
		err = errors.Join(err, writeFiles(o.dir, machine, selected, results))
	}
	return err
}

func opNames() string {
	names := make([]string, len(ops))
	for i, o := range ops {
		names[i] = o.name
	}
	return strings.Join(names, ",")
}

// choose turns the flags into what to run.
func (o *options) choose() (selected []op, levels []int, p plan, err error) {
	p, levels = fullPlan, []int{1, 8, 64, 256}
	if o.quick {
		p, levels = quickPlan, []int{1, 64}
	}
	if o.slices > 0 {
		p.slices = o.slices
	}
	if o.slice > 0 {
		p.length = o.slice
		p.warm = max(o.slice/6, 2*time.Millisecond)
	}
	if o.callers != "" {
		levels = nil
		for _, s := range strings.Split(o.callers, ",") {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 || n > 10_000 {
				return nil, nil, p, fmt.Errorf("-callers: %q is not a number from 1 to 10000", s)
			}
			levels = append(levels, n)
		}
	}
	wanted := list(o.ops)
	for _, name := range wanted {
		if !slices.ContainsFunc(ops, func(o op) bool { return o.name == name }) {
			return nil, nil, p, fmt.Errorf("-op: there is no %q; there are %s", name, opNames())
		}
	}
	only := list(o.subjects)
	for _, op := range ops {
		if wanted != nil && !slices.Contains(wanted, op.name) || wanted == nil && o.quick && op.full {
			continue
		}
		if only != nil {
			op.subjects = slices.DeleteFunc(slices.Clone(op.subjects), func(s subject) bool { return !slices.Contains(only, s.name) })
		}
		if len(op.subjects) > 0 {
			selected = append(selected, op)
		}
	}
	if len(selected) == 0 {
		return nil, nil, p, fmt.Errorf("-subject: none of the ops has a %q", o.subjects)
	}
	return selected, levels, p, nil
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// measureAll runs the ops one after another, each on an empty Redis. A subject
// that fails is reported, and the others go on; the error names all that failed.
func measureAll(ctx context.Context, selected []op, levels []int, p plan, progress io.Writer, found func(result)) (results []result, m machine, err error) {
	srv, err := startServer()
	if err != nil {
		return nil, m, err
	}
	defer srv.stop()
	h := &harness{srv: srv, wire: new(wire)}
	st, err := srv.stats(ctx)
	if err != nil {
		return nil, m, err
	}
	m = describe(st.version)
	start := time.Now()
	cost := func(o op, callers int) (n float64) {
		for _, s := range o.subjects {
			n += p.weight(o.name, s.name, callers)
		}
		return n
	}
	ahead := 0.0 // what is still to be measured, in slices a round
	for _, o := range selected {
		for _, callers := range levels {
			ahead += cost(o, callers)
		}
	}
	var failures []error
	for _, o := range selected {
		if err := srv.admin.FlushAll(ctx).Err(); err != nil {
			return results, m, fmt.Errorf("empty Redis: %w", err)
		}
		var subjects []*running
		for _, s := range o.subjects {
			r, err := h.setUp(o, s)
			if err != nil {
				failures = append(failures, err)
				fmt.Fprintln(progress, err)
				continue
			}
			subjects = append(subjects, r)
		}
		for _, callers := range levels {
			if len(subjects) == 0 {
				break
			}
			fmt.Fprintf(progress, "%5.1fs  %s, %d callers, %d subjects\n", time.Since(start).Seconds(), o.name, callers, len(subjects))
			share := p
			if p.total > 0 {
				// A sixth is kept for setting up and counting.
				left := max(p.total-time.Since(start), time.Millisecond)
				share.total = time.Duration(float64(left) * cost(o, callers) / ahead * 5 / 6)
			}
			ahead -= cost(o, callers)
			rs, errs := h.measure(ctx, o.name, subjects, callers, share)
			for _, err := range errs {
				failures = append(failures, err)
				fmt.Fprintln(progress, err)
			}
			for _, r := range rs {
				found(r)
			}
			results = append(results, rs...)
			if ctx.Err() != nil {
				h.closeSubjects()
				return results, m, errors.Join(append(failures, ctx.Err())...)
			}
		}
		h.closeSubjects()
	}
	fmt.Fprintf(progress, "%5.1fs  done\n", time.Since(start).Seconds())
	return results, m, errors.Join(failures...)
}

func writeFiles(dir string, m machine, selected []op, results []result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var table, lines strings.Builder
	writeTables(&table, m, selected, results)
	writeBars(&table, results)
	for _, r := range results {
		writeJSON(&lines, r)
	}
	files := map[string]string{"results.md": table.String(), "results.jsonl": lines.String()}
	for _, o := range selected {
		if svg := plot(o, results); svg != "" {
			files[o.name+".svg"] = svg
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
