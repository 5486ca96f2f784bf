package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

// test names a test, or with an empty name its package.
type test struct{ pkg, name string }

func (t test) String() string {
	short := t.pkg[strings.LastIndex(t.pkg, "/")+1:]
	if t.name == "" {
		return short
	}
	return short + "." + t.name
}

// result is one run of go test.
type result struct {
	form   form
	seed   int64
	took   time.Duration
	failed []test
	times  map[test]time.Duration
	output map[test][]string // lines of each test, as many as a screen has
	text   strings.Builder   // all that was said
	skips  int
}

const screen = 25 // lines of a failure

func newResult(f form, seed int64) *result {
	return &result{form: f, seed: seed, times: map[test]time.Duration{}, output: map[test][]string{}}
}

// read takes in what go test -json says.
func (r *result) read(out io.Reader) error {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				e = event{Action: "output", Output: line}
			}
			r.add(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *result) add(e event) {
	t := test{cmp.Or(e.Package, e.ImportPath), e.Test}
	switch e.Action {
	case "output", "build-output":
		r.text.WriteString(e.Output)
		if len(r.output[t]) < screen && !chatter(e.Output) {
			r.output[t] = append(r.output[t], e.Output)
		}
	case "pass", "fail", "skip":
		r.times[t] = time.Duration(e.Elapsed * float64(time.Second))
		if e.Action == "fail" {
			r.failed = append(r.failed, t)
		}
		if e.Action == "skip" && e.Test != "" {
			r.skips++
		}
	case "build-fail":
		r.failed = append(r.failed, t)
	}
}

// chatter reports whether a line only says which test runs.
func chatter(line string) bool {
	return strings.HasPrefix(line, "=== ")
}

// finish keeps of the failed tests those that did not fail for a subtest, or a test,
// that failed. err is what the go command ended with.
func (r *result) finish(err error) {
	var leaves []test
	for _, t := range r.failed {
		if !slices.ContainsFunc(r.failed, func(u test) bool {
			return t.pkg == u.pkg && t != u && (t.name == "" || strings.HasPrefix(u.name, t.name+"/"))
		}) {
			leaves = append(leaves, t)
		}
	}
	r.failed = leaves
	if err != nil && len(r.failed) == 0 {
		r.failed = []test{{"go test: " + err.Error(), ""}}
		r.output[r.failed[0]] = r.output[test{}]
	}
}

func (r *result) red() bool { return len(r.failed) > 0 }

func (r *result) names() (names []string) {
	for _, t := range r.failed {
		names = append(names, t.String())
	}
	return names
}

// report is all runs.
type report struct{ runs []*result }

func (a *report) red() (n int) {
	for _, r := range a.runs {
		if r.red() {
			n++
		}
	}
	return n
}

func (a *report) print(w io.Writer, top int) {
	fmt.Fprintf(w, "\n%-16s %5s %6s %10s %10s %8s\n", "form", "runs", "green", "median", "longest", "skipped")
	var forms []string
	for _, r := range a.runs {
		if !slices.Contains(forms, r.form.name) {
			forms = append(forms, r.form.name)
		}
	}
	for _, name := range forms {
		green, skips, times := 0, 0, []time.Duration{}
		for _, r := range a.runs {
			if r.form.name != name {
				continue
			}
			times = append(times, r.took)
			skips = max(skips, r.skips)
			if !r.red() {
				green++
			}
		}
		fmt.Fprintf(w, "%-16s %5d %6d %8.1f s %8.1f s %8d\n", name, len(times), green, median(times).Seconds(), slices.Max(times).Seconds(), skips)
	}
	a.printFailures(w)
	a.printSlow(w, top, "packages", func(t test) bool { return t.name == "" })
	a.printSlow(w, top, "tests", func(t test) bool { return t.name != "" && !strings.Contains(t.name, "/") })
}

func (a *report) printFailures(w io.Writer) {
	in := map[test][]*result{} // the runs in which it failed
	for _, r := range a.runs {
		for _, t := range r.failed {
			in[t] = append(in[t], r)
		}
	}
	if len(in) == 0 {
		fmt.Fprintf(w, "\nno test failed in %d runs\n", len(a.runs))
		return
	}
	fmt.Fprintf(w, "\nfailed in %d runs:\n", len(a.runs))
	for _, t := range slices.SortedFunc(maps.Keys(in), func(x, y test) int {
		return cmp.Or(cmp.Compare(len(in[y]), len(in[x])), cmp.Compare(x.String(), y.String()))
	}) {
		fmt.Fprintf(w, "%3d times  %s:", len(in[t]), t)
		for _, r := range in[t] {
			fmt.Fprintf(w, " %s (seed %d)", r.form.name, r.seed)
		}
		fmt.Fprintln(w)
		for _, line := range in[t][0].output[t] {
			fmt.Fprintf(w, "           | %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

func (a *report) printSlow(w io.Writer, top int, what string, of func(test) bool) {
	times := map[test][]time.Duration{}
	longest := map[test]*result{}
	for _, r := range a.runs {
		for t, d := range r.times {
			if of(t) {
				times[t] = append(times[t], d)
				if l := longest[t]; l == nil || d > l.times[t] {
					longest[t] = r
				}
			}
		}
	}
	fmt.Fprintf(w, "\nslowest %-40s %10s %10s  in form\n", what, "median", "longest")
	slow := slices.SortedFunc(maps.Keys(times), func(x, y test) int {
		return cmp.Or(cmp.Compare(longest[y].times[y], longest[x].times[x]), cmp.Compare(x.String(), y.String()))
	})
	for _, t := range slow[:min(top, len(slow))] {
		fmt.Fprintf(w, "%-48s %8.1f s %8.1f s  %s\n", t, median(times[t]).Seconds(), longest[t].times[t].Seconds(), longest[t].form.name)
	}
}

func median(times []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(times))
	return s[len(s)/2]
}
