package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// machine is what the figures were taken on.
type machine struct {
	cpu, system, golang, redis string
	modules                    []string // the subjects' versions
}

func describe(redisVersion string) machine {
	m := machine{cpu: "unknown CPU", system: runtime.GOOS + "/" + runtime.GOARCH, golang: runtime.Version(), redis: redisVersion}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	m.cpu = fmt.Sprintf("%d cores of %s", runtime.NumCPU(), m.cpu)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			for _, s := range []string{"go-redis", "rueidis", "redisstore", "redistore", "scs", "ulule", "throttled", "httprate", "rockscache", "otter", "gorilla/sessions"} {
				if strings.Contains(d.Path, s) {
					m.modules = append(m.modules, strings.TrimPrefix(d.Path, "github.com/")+" "+d.Version)
					break
				}
			}
		}
	}
	return m
}

func writeJSON(w io.Writer, r result) {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // a struct of strings and finite numbers
	}
	fmt.Fprintf(w, "%s\n", b)
}

// writeTables prints a Markdown table for each op.
func writeTables(w io.Writer, m machine, selected []op, results []result) {
	fmt.Fprintf(w, "%s, %s, %s, redis-server %s on loopback TCP, same machine\n", m.cpu, m.system, m.golang, m.redis)
	fmt.Fprintf(w, "%s\n", strings.Join(m.modules, ", "))
	for _, o := range selected {
		rows := [][]string{{"subject", "callers", "ns/op", "op/s", "p50 µs", "p99 µs", "allocs", "bytes", "commands", "writes", "run by server", "server µs", "own µs", "against redporch"}}
		for _, r := range results {
			if r.Op != o.name {
				continue
			}
			name, against := r.Subject, ""
			if ours, ok := find(results, r.Op, "redporch", r.Callers); ok && r.Subject != "redporch" {
				against = fmt.Sprintf("%.2f×", r.NsPerOp/ours.NsPerOp)
			}
			if r.FailedPct > 0 {
				name += fmt.Sprintf(" (%.1f %% failed)", r.FailedPct)
			}
			rows = append(rows, []string{name, fmt.Sprint(r.Callers), grouped(r.NsPerOp), grouped(1e9 / r.NsPerOp),
				figure(r.P50), figure(r.P99), figure(r.Allocs), grouped(r.Bytes), figure(r.Commands), figure(r.Writes), figure(r.Executed), figure(r.ServerUs), figure(r.OwnUs), against})
		}
		if len(rows) == 1 {
			continue
		}
		fmt.Fprintf(w, "\n### %s: %s\n\n", o.name, strings.TrimPrefix(o.title[strings.Index(o.title, ":")+1:], " "))
		writeRows(w, rows)
	}
}

// writeRows prints a Markdown table whose first row is the head. The columns
// after the first are numbers.
func writeRows(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i == 0 {
				fmt.Fprintf(w, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(w, "| %s%s ", pad, cell)
			}
		}
		fmt.Fprintln(w, "|")
		if n == 0 {
			for i, n := range width {
				if i == 0 {
					fmt.Fprintf(w, "|%s", strings.Repeat("-", n+2))
				} else {
					fmt.Fprintf(w, "|%s:", strings.Repeat("-", n+1))
				}
			}
			fmt.Fprintln(w, "|")
		}
	}
}

// grouped writes whole numbers with commas, and small ones with one digit more.
func grouped(v float64) string {
	if v < 1000 {
		return figure(v)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 1000:
		return grouped(v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func find(results []result, op, subject string, callers int) (result, bool) {
	for _, r := range results {
		if r.Op == op && r.Subject == subject && r.Callers == callers {
			return r, true
		}
	}
	return result{}, false
}
