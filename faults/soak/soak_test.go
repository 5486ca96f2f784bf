package soak_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

var lasts = flag.Duration("for", 4*time.Second, "how long the soak lasts")

func TestMain(m *testing.M) { redistest.Main(m) }

func TestSoak(t *testing.T) {
	redis := redistest.Start(t, redistest.TCP(), redistest.Proxied(), redistest.AOF("everysec"))
	server := startServer(t, "redis://"+redis.Proxy.Addr())

	tally := &tally{statuses: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), *lasts)
	defer cancel()
	drive := func(ctx context.Context, users int) {
		var all sync.WaitGroup
		for range users {
			all.Go(func() { user(ctx, server.url, tally) })
		}
		all.Wait()
	}
	warm, stop := context.WithTimeout(ctx, time.Second)
	drive(warm, 16)
	stop()
	atStart := server.memory(t)

	var faults map[string]int
	var harm sync.WaitGroup
	harm.Go(func() { faults = wreck(ctx, redis) })
	drive(ctx, 16)
	harm.Wait()
	redis.Proxy.Clear()

	// Well again: a new user can sign in and everything is answered.
	after := newTally()
	deadline := time.Now().Add(10 * time.Second)
	for after.ok() == 0 && time.Now().Before(deadline) {
		calm, stop := context.WithTimeout(context.Background(), 500*time.Millisecond)
		after = newTally()
		user(calm, server.url, after)
		stop()
	}
	if after.ok() == 0 {
		t.Errorf("after the faults the server answers %v; want 200", after.statuses)
	}
	atEnd := server.memory(t)
	t.Logf("%v, faults: %v\n%s", *lasts, faults, tally)
	t.Logf("the server's resident memory: %.1f MB at the start, %.1f MB at the end", atStart, atEnd)

	for status, n := range tally.statuses {
		if strings.HasPrefix(status, "profile ") {
			continue
		}
		if !slices.Contains([]string{"200", "303", "401", "429", "503"}, status) {
			t.Errorf("%d requests were answered with %q; want 200, 303, 401, 429 or 503", n, status)
		}
	}
	// Four deadlines of 250 ms, one after another, are what a request may take.
	if longest := tally.longest; longest > 3*time.Second {
		t.Errorf("the longest request took %v; want at most what its deadlines allow", longest)
	}
	if atEnd > 2*atStart+32 {
		t.Errorf("the server's memory went from %.1f MB to %.1f MB; want it to stay", atStart, atEnd)
	}
	server.stop(t)
}

// wreck does something to Redis or to the way there until ctx ends, and returns
// what and how often.
func wreck(ctx context.Context, s *redistest.Server) map[string]int {
	done := map[string]int{}
	for ctx.Err() == nil {
		pause := func(most time.Duration) { sleep(ctx, rand.N(most)) }
		kinds := []struct {
			name string
			f    func()
		}{
			{"replies lost", func() {
				s.Proxy.Set(redistest.Fault{Match: "evalsha", Times: 5, LoseReply: true})
				pause(300 * time.Millisecond)
			}},
			{"connections cut", func() { s.Proxy.Cut(rand.IntN(2) == 0) }},
			{"replies cut short", func() { s.Proxy.Set(redistest.Fault{Times: 5, TruncateReply: 3}); pause(200 * time.Millisecond) }},
			{"mute", func() { s.Proxy.Set(redistest.Fault{Mute: true}); pause(time.Second) }},
			{"slow", func() { s.Proxy.Set(redistest.Fault{DelayReply: rand.N(400 * time.Millisecond)}); pause(time.Second) }},
			{"stopped", func() { s.Pause(); pause(800 * time.Millisecond); s.Resume() }},
			{"killed and restarted", func() { s.Kill(); pause(500 * time.Millisecond); s.Restart() }},
			{"scripts forgotten", func() { s.Client().ScriptFlush(ctx) }},
		}
		k := kinds[rand.IntN(len(kinds))]
		k.f()
		s.Proxy.Clear()
		done[k.name]++
		pause(600 * time.Millisecond)
	}
	return done
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// profile is read through a cache. The example's database behind it is the same
// Redis, by a plain client, so that faults hit its loader as well, which may take
// five seconds and fail.
const profile = "/api/profile?id=1"

// user is somebody who signs in, looks around, and signs out.
func user(ctx context.Context, base string, tally *tally) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for ctx.Err() == nil {
		jar, _ := cookiejar.New(nil)
		client := &http.Client{Jar: jar, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		do := func(method, path string, form url.Values) {
			if ctx.Err() != nil {
				return
			}
			r, err := http.NewRequest(method, base+path, strings.NewReader(form.Encode()))
			if err != nil {
				panic(err)
			}
			if form != nil {
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			start := time.Now()
			res, err := client.Do(r)
			status := "no answer"
			if err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				status = strconv.Itoa(res.StatusCode)
			}
			if path == profile {
				status = "profile " + status
			}
			tally.add(status, time.Since(start))
		}
		do("POST", "/login", url.Values{"user": {"ada"}})
		for range 10 {
			do("GET", "/api/me", nil)
			do("GET", profile, nil)
			do("GET", "/api/limited", nil)
			sleep(ctx, rand.N(20*time.Millisecond))
		}
		do("POST", "/logout", nil)
	}
}

type tally struct {
	mu       sync.Mutex
	statuses map[string]int
	took     []time.Duration
	longest  time.Duration // without those of profile
}

func newTally() *tally { return &tally{statuses: map[string]int{}} }

func (x *tally) add(status string, took time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.statuses[status]++
	x.took = append(x.took, took)
	if !strings.HasPrefix(status, "profile ") {
		x.longest = max(x.longest, took)
	}
}

func (x *tally) ok() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.statuses["200"]
}

func (x *tally) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	slices.Sort(x.took)
	n := len(x.took)
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests:", n)
	for _, status := range slices.Sorted(maps.Keys(x.statuses)) {
		fmt.Fprintf(&b, " %s × %d,", status, x.statuses[status])
	}
	fmt.Fprintf(&b, " p50 %v, p99 %v, longest %v, with the loader's %v", x.took[n/2], x.took[n*99/100], x.longest, x.took[n-1])
	return b.String()
}

// server is the example server, as a process of its own.
type server struct {
	cmd *exec.Cmd
	url string
}

func startServer(t *testing.T, redisURL string) *server {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "webserver")
	if out, err := exec.Command("go", "build", "-C", "../../examples", "-o", binary, "./webserver").CombinedOutput(); err != nil {
		t.Fatalf("build the example server: %v\n%s", err, out)
	}
	s := &server{cmd: exec.Command(binary)}
	s.cmd.Env = append(os.Environ(), "REDIS_URL="+redisURL, "ADDR=127.0.0.1:0")
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if at, ok := strings.CutPrefix(lines.Text(), "Listening on "); ok {
			addr, _, _ := strings.Cut(at, ",")
			s.url = "http://" + addr
			break
		}
	}
	if s.url == "" {
		t.Fatal("the example server did not say where it listens")
	}
	go io.Copy(io.Discard, out)
	return s
}

// memory returns the resident memory of the server in MB.
func (s *server) memory(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		if runtime.GOOS == "linux" || os.Getenv("REDISTEST") == "all" {
			t.Fatal(err) // the server is gone
		}
		t.Skipf("memory is read from /proc: %v", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return float64(kb) / 1024
}

func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the server ended with %v; want a clean shutdown", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("the server has not shut down after 15 s")
	}
}
