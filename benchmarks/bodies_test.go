package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// start returns a harness on a redis-server of the test's own.
func start(t testing.TB) *harness {
	t.Helper()
	srv, err := startServer()
	if err != nil {
		if os.Getenv("REDISTEST") == "all" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(srv.stop)
	h := &harness{srv: srv, wire: new(wire)}
	t.Cleanup(h.closeSubjects)
	return h
}

// sent is how many commands a call of each subject sends, one call at a time, and
// what its bar stands on. A range where the library decides by its state.
var sent = map[string][2]float64{
	"session-load/redporch":      {1, 2}, // HGETALL and PTTL in one round trip
	"session-load/redisstore":    {1, 1},
	"session-load/boj":           {2, 2}, // PING before each use of a connection
	"session-load/scs":           {1, 1},
	"session-save/redporch":      {2, 3},
	"session-save/redisstore":    {2, 2},
	"session-save/boj":           {4, 4},
	"session-save/scs":           {2, 2},
	"session-handler/redporch":   {2, 3},
	"session-handler/redisstore": {2, 2},
	"session-handler/boj":        {4, 4},
	"session-handler/scs":        {2, 2},
	"limit-keys/redporch":        {1, 1},
	"limit-keys/redis_rate":      {1, 1},
	"limit-keys/ulule":           {1, 1},
	"limit-keys/throttled":       {3, 4}, // TIME, GET, and SETNX with EXPIRE or EVAL
	"limit-keys/httprate-redis":  {5, 5}, // MGET; MULTI, INCRBY, EXPIRE, EXEC
	"limit-keys/rueidislimiter":  {1, 1},
	"limit-denied/redporch":      {0, 0},
	"limit-denied/redis_rate":    {1, 1},
	"cache-redis/redporch":       {1, 1},
	"cache-redis/go-redis-cache": {1, 1},
	"cache-redis/rockscache":     {1, 1},
	"cache-local/redporch":       {0, 0},
	"cache-local/go-redis-cache": {0, 0},
	"cache-local/rueidisaside":   {0, 0},
	"cache-local/go-redis-csc":   {0, 0},
	"cache-local/otter":          {0, 0},
	"chain/redporch":             {3, 3}, // limiter, HGETALL and PTTL; the profile is in process
	"chain/stack":                {2, 2},
	"chain/stack-go-redis":       {2, 2},
}

// TestBodies runs a little of every subject of every op: each call checks what it
// got, so an error is a subject that does not do its work, and the commands show
// that it does no more and no less than its peers.
func TestBodies(t *testing.T) {
	h := start(t)
	ctx := context.Background()
	for _, o := range ops {
		if err := h.srv.admin.FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		for _, s := range o.subjects {
			t.Run(o.name+"/"+s.name, func(t *testing.T) {
				defer h.closeSubjects()
				r, err := h.setUp(o, s)
				if err != nil {
					t.Fatal(err)
				}
				want, ok := sent[o.name+"/"+s.name]
				if strings.HasPrefix(s.name, "raw-") {
					want, ok = [2]float64{1, 1}, true
				}
				// On a machine that is busy with other things a deadline of
				// 100 ms passes now and then, so a slice has three tries.
				var why string
				for range 3 {
					why = ""
					if sl := timedSlice(r.body.do, newCallers(8), time.Millisecond, 10*time.Millisecond); sl.failed > 0 && o.name+s.name != "limit-hotthrottled" {
						why = fmt.Sprintf("%d of %d calls failed: %v", sl.failed, sl.ops+sl.failed, sl.err)
					}
					res, err := h.account(ctx, r.body, newCallers(1), 40)
					if err != nil {
						t.Fatal(err)
					}
					if ok && (res.Commands < want[0] || res.Commands > want[1]) {
						why += fmt.Sprintf(" %v commands a call; want %v to %v", res.Commands, want[0], want[1])
					}
					if why == "" {
						return
					}
				}
				t.Error(why)
			})
		}
	}
}

// TestBodiesNotice takes away what the calls stand on: then they must fail, or
// their checks are worth nothing.
func TestBodiesNotice(t *testing.T) {
	h := start(t)
	ctx := context.Background()
	for _, o := range []op{sessionLoad, sessionSave, cacheRedis} {
		for _, s := range o.subjects {
			t.Run(o.name+"/"+s.name, func(t *testing.T) {
				defer h.closeSubjects()
				r, err := h.setUp(o, s)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.srv.admin.FlushAll(ctx).Err(); err != nil {
					t.Fatal(err)
				}
				c := newCallers(1)[0]
				if err := r.body.do(c); err == nil {
					t.Error("a call on an emptied Redis succeeded")
				}
			})
		}
	}
}

// TestLimitersDeny asks each limiter for one call more than its quota.
func TestLimitersDeny(t *testing.T) {
	h := start(t)
	ctx := context.Background()
	for _, m := range limiterMakers {
		t.Run(m.name, func(t *testing.T) {
			defer h.closeSubjects()
			take, err := m.make(h, scarce)
			if err != nil {
				t.Fatal(err)
			}
			c := newCallers(1)[0]
			for i := range int(scarce) + 3 {
				ok, err := take(ctx, c, "somebody")
				if err != nil {
					t.Fatal(err)
				}
				if want := i < int(scarce); ok != want {
					t.Errorf("call %d: allowed = %t; want %t", i+1, ok, want)
				}
			}
			if ok, err := take(ctx, c, "somebody else"); err != nil || !ok {
				t.Errorf("another key: allowed = %t, %v; want true", ok, err)
			}
		})
	}
}

// TestStampede counts the loads of cold keys that 32 callers walk over.
func TestStampede(t *testing.T) {
	h := start(t)
	for name, make := range map[string]cacheMaker{"redporch": redporchCache(false), "go-redis-cache": goRedisCache(nil), "rueidisaside": aside} {
		t.Run(name, func(t *testing.T) {
			defer h.closeSubjects()
			var loads atomic.Int64
			get, err := make(h, func(_ context.Context, i int) (profile, error) {
				loads.Add(1)
				time.Sleep(2 * time.Millisecond)
				return profileOf(i), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			const keys = 10
			_, err = fixedSlice(func(c *caller) error {
				_, err := get(context.Background(), c.n)
				return err
			}, newCallers(32), 32*keys, func() {})
			if err != nil {
				t.Fatal(err)
			}
			if n := loads.Load(); n < keys || n > 2*keys {
				t.Errorf("%d loads of %d keys", n, keys)
			}
		})
	}
}

func TestRequestsAreCounted(t *testing.T) {
	text := "*2\r\n$3\r\nGET\r\n$5\r\n*1\r\n$\r\n" + // an argument that looks like a request
		"*2\r\n$5\r\nhello\r\n$1\r\n3\r\n" +
		"*1\r\n$4\r\nPING\r\n"
	for size := 1; size <= len(text); size++ {
		var p requests
		n := 0
		for b := []byte(text); len(b) > 0; b = b[min(size, len(b)):] {
			n += p.count(b[:min(size, len(b))])
		}
		if n != 2 {
			t.Errorf("in pieces of %d bytes: %d commands; want 2, GET and PING", size, n)
		}
	}
}

func TestPercentiles(t *testing.T) {
	var d []time.Duration
	for i := 1; i <= 200; i++ {
		d = append(d, time.Duration(i)*time.Microsecond)
	}
	if p50, p99 := percentile(d, 0.5), percentile(d, 0.99); p50 != 100 || p99 != 198 {
		t.Errorf("percentiles 50 and 99 of 1 to 200 µs = %v, %v; want 100, 198", p50, p99)
	}
	if m := median([]float64{9, 1, 5, 3}); m != 4 {
		t.Errorf("median = %v; want 4", m)
	}
}

// TestSlicesCountTheRate compares a slice with a body whose rate is known.
func TestSlicesCountTheRate(t *testing.T) {
	const each = 4 * time.Millisecond
	s := timedSlice(func(*caller) error { time.Sleep(each); return nil }, newCallers(10), 8*time.Millisecond, 120*time.Millisecond)
	rate := float64(s.ops) / s.elapsed.Seconds()
	if most := 10 / each.Seconds(); rate > most*1.1 {
		t.Errorf("%.0f calls a second; want %.0f at most", rate, most)
	}
	// A busy machine makes calls longer, and fewer in the same measure: what the callers
	// spent in them is what ten callers have.
	var sum time.Duration
	for _, took := range s.latencies {
		sum += took
	}
	mean := sum / time.Duration(len(s.latencies))
	if callers := rate * mean.Seconds(); callers < 5 || callers > 15 {
		t.Errorf("%.0f calls a second of %v keep %.1f callers busy; want 10", rate, mean, callers)
	}
	if p := percentile(s.latencies, 0.5); p < float64(each.Microseconds()) {
		t.Errorf("p50 = %v µs; want at least %v", p, each)
	}
	boom := errors.New("boom")
	if s := timedSlice(func(*caller) error { return boom }, newCallers(1), 0, time.Millisecond); s.ops != 0 || s.failed == 0 || s.err != boom {
		t.Errorf("a slice of failures = %d calls, %d failed, %v", s.ops, s.failed, s.err)
	}
}

// TestRun drives the program as a user does.
func TestRun(t *testing.T) {
	start(t) // skips where there is no redis-server
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	args := []string{"-json", "-op", "limit-keys,limit-denied", "-subject", "redporch,redis_rate", "-callers", "1,4", "-slices", "2", "-slice", "5ms", "-o", dir}
	if err := run(context.Background(), args, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	want := []string{"op", "subject", "callers", "ns_per_op", "p50_us", "p99_us", "allocs_per_op", "bytes_per_op", "commands_per_op"}
	lines := 0
	for sc := bufio.NewScanner(&stdout); sc.Scan(); lines++ {
		var m map[string]any
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", sc.Text(), err)
		}
		for _, k := range want {
			if _, ok := m[k]; !ok {
				t.Errorf("%s: no %q", sc.Text(), k)
			}
		}
		if len(m) != len(want) || m["ns_per_op"].(float64) <= 0 || m["p99_us"].(float64) < m["p50_us"].(float64) {
			t.Errorf("not as it should be: %s", sc.Text())
		}
	}
	if lines != 8 {
		t.Errorf("%d lines; want 2 ops × 2 subjects × 2 numbers of callers", lines)
	}
	for _, name := range []string{"limit-keys.svg", "limit-denied.svg"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, s := range []string{"redporch", "redis_rate", "polyline"} {
			if !bytes.Contains(b, []byte(s)) {
				t.Errorf("%s does not show %s", name, s)
			}
		}
	}
	table, err := os.ReadFile(filepath.Join(dir, "results.md"))
	if err != nil || !bytes.Contains(table, []byte("### limit-keys")) || !bytes.Contains(table, []byte("| limit-denied |")) {
		t.Errorf("results.md lacks a table or the bars: %v\n%s", err, table)
	}
	for _, bad := range [][]string{{"-op", "nothing"}, {"-callers", "0"}, {"-subject", "nobody"}, {"word"}} {
		if err := run(context.Background(), bad, io.Discard, io.Discard); err == nil {
			t.Errorf("run(%q) succeeded", bad)
		}
	}
}

// TestGrowth measures a little growth: 1,000 of each, and a cluster.
func TestGrowth(t *testing.T) {
	start(t) // skips where there is no redis-server
	was := growthPlan
	defer func() { growthPlan = was }()
	growthPlan = plan{slices: 1, warm: 2 * time.Millisecond, length: 5 * time.Millisecond}
	var out bytes.Buffer
	if err := measureGrowth(context.Background(), 1000, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(out.String()) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && !strings.Contains(line, "ns") && !strings.Contains(line, "--") {
			rows++
			for _, cell := range cells[2:6] {
				if f, err := strconv.ParseFloat(strings.ReplaceAll(strings.TrimSpace(cell), ",", ""), 64); err != nil || f <= 0 {
					t.Errorf("%q is no figure in: %s", cell, line)
				}
			}
		}
	}
	if rows != 9 { // sessions, keys, logs of 10 to 1,000, values, three ops on a cluster
		t.Errorf("%d rows; want 9:\n%s", rows, out.String())
	}
}

func TestBars(t *testing.T) {
	results := []result{
		{Op: "session-save", Subject: "redporch", Callers: 64, NsPerOp: 10},
		{Op: "session-save", Subject: "redisstore", Callers: 64, NsPerOp: 39},
		{Op: "limit-keys", Subject: "redporch", Callers: 1, NsPerOp: 125},
		{Op: "limit-keys", Subject: "redis_rate", Callers: 1, NsPerOp: 100},
	}
	var b strings.Builder
	writeBars(&b, results)
	got := strings.Fields(b.String())
	if fmt.Sprint(got[len(got)-2:]) != "[yes |]" || !strings.Contains(b.String(), "3.90") || !strings.Contains(b.String(), "NO") {
		t.Errorf("bars:\n%s\nwant 3.90 of 4 missed, 1.25 of 1.25 met", b.String())
	}
}

// Benchmark runs the same bodies for benchstat:
//
//	go test -run '^$' -bench './op=limit-keys' -count 10
func Benchmark(b *testing.B) {
	for _, o := range ops {
		b.Run("op="+o.name, func(b *testing.B) {
			for _, s := range o.subjects {
				b.Run("subject="+s.name, func(b *testing.B) {
					h := start(b)
					r, err := h.setUp(o, s)
					if err != nil {
						b.Fatal(err)
					}
					for _, n := range []int{1, 64} {
						b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
							callers := newCallers(n)
							if err := timedSlice(r.body.do, callers, 0, 2*time.Millisecond).err; err != nil {
								b.Fatal(err)
							}
							b.ReportAllocs()
							before := true
							_, err := fixedSlice(r.body.do, callers, b.N, func() {
								if before {
									b.ResetTimer()
								} else {
									b.StopTimer()
								}
								before = false
							})
							if err != nil {
								b.Fatal(err)
							}
						})
					}
				})
			}
		})
	}
}

// Where time is short, most of it goes to what the bars are about.
func TestPlanWeighsSubjects(t *testing.T) {
	for _, c := range []struct {
		plan        plan
		op, subject string
		callers     int
		want        float64
	}{
		{fullPlan, "session-load", "boj", 64, 1},
		{quickPlan, "session-load", "redporch", 64, 1},
		{quickPlan, "session-load", "redisstore", 64, 1},
		{quickPlan, "session-load", "redisstore", 1, 0.125},
		{quickPlan, "session-load", "raw-direct", 1, 1},
		{quickPlan, "session-load", "boj", 64, 0.125},
		{quickPlan, "session-save", "redporch", 1, 0.125},
	} {
		if got := c.plan.weight(c.op, c.subject, c.callers); got != c.want {
			t.Errorf("weight of %s, %d callers, %s = %v; want %v", c.op, c.callers, c.subject, got, c.want)
		}
	}
}

// Everybody has one turn a round, and follows nobody in more than half of the rounds.
func TestTurnsChange(t *testing.T) {
	for n := 1; n < 8; n++ {
		before := map[[2]int]int{}
		last := -1
		for round := range 4 * n {
			seen := map[int]bool{}
			for k := range n {
				i := turn(round, k, n)
				seen[i] = true
				before[[2]int{last, i}]++
				last = i
			}
			if len(seen) != n {
				t.Fatalf("round %d of %d subjects has %v", round, n, seen)
			}
		}
		for pair, count := range before {
			if n > 2 && count > 2*n {
				t.Errorf("of %d subjects %d follows %d in %d of %d rounds", n, pair[1], pair[0], count, 4*n)
			}
		}
	}
}
