package cacheaside_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// childEnv makes the test binary act as one process of several. It holds the
// network and address of the server.
const childEnv = "REDPORCH_CACHEASIDE_CHILD"

const callersPerProcess = 250

// child serves commands on standard input: for each key it has 250 callers get
// it at once, and answers "ok", or what went wrong. Its loader counts in Redis,
// takes a while, and for keys that begin with "die" says so and never returns in
// the first process that calls it.
func child() {
	network, addr, _ := strings.Cut(os.Getenv(childEnv), " ")
	rdb := redis.NewClient(&redis.Options{Network: network, Addr: addr, DisableIdentity: true, ContextTimeoutEnabled: true})
	load := func(ctx context.Context, key string) (string, error) {
		n, err := rdb.Incr(ctx, "loads:"+key).Result()
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(key, "die") && n == 1 {
			fmt.Println("loading")
			select {} // until it is killed
		}
		time.Sleep(20 * time.Millisecond)
		return "value of " + key, nil
	}
	// The machine may be slow, and a lease that ends is no second load's excuse.
	c, err := cacheaside.New(rdb, "processes", load, cacheaside.Config{TTL: 10 * time.Minute, Timeout: 20 * time.Second, LoadTimeout: 2 * time.Minute})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		key := in.Text()
		var mu sync.Mutex
		answer := "ok"
		var wg sync.WaitGroup
		for range callersPerProcess {
			wg.Go(func() {
				if v, err := c.Get(context.Background(), key); err != nil || v != "value of "+key {
					mu.Lock()
					answer = fmt.Sprintf("Get = %q, %v", v, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		fmt.Println(answer)
	}
}

// process is a running child.
type process struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startProcess(t *testing.T, s *redistest.Server) *process {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+s.Network()+" "+s.Addr())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p := &process{cmd, in, bufio.NewScanner(out)}
	if got := p.line(); got != "ready" {
		t.Fatalf("child said %q; want ready", got)
	}
	return p
}

func (p *process) line() string {
	if !p.out.Scan() {
		return fmt.Sprint("nothing: ", p.out.Err())
	}
	return p.out.Text()
}

// TestProcesses has 4 processes with 250 callers each ask for one cold key.
func TestProcesses(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	var ps []*process
	for range 4 {
		ps = append(ps, startProcess(t, s))
	}
	for round := range 10 {
		key := fmt.Sprint("key", round)
		for _, p := range ps {
			fmt.Fprintln(p.in, key)
		}
		for i, p := range ps {
			if got := p.line(); got != "ok" {
				t.Fatalf("round %d: process %d: %s", round, i, got)
			}
		}
		if n, err := rdb.Get(t.Context(), "loads:"+key).Int(); err != nil || n != 1 {
			t.Fatalf("round %d: %d loads, %v; want 1", round, n, err)
		}
	}
}

// TestProcessesWinnerKilled kills the process that loads. Its lease would stand
// for minutes; the test lets the time pass.
func TestProcessesWinnerKilled(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	rdb := s.Client()
	var ps []*process
	for range 4 {
		ps = append(ps, startProcess(t, s))
	}
	said := make(chan struct {
		p    *process
		line string
	})
	for _, p := range ps {
		fmt.Fprintln(p.in, "die")
		go func() {
			for p.out.Scan() {
				said <- struct {
					p    *process
					line string
				}{p, p.out.Text()}
			}
		}()
	}
	winner := <-said
	if winner.line != "loading" {
		t.Fatalf("first word = %q; want loading", winner.line)
	}
	must(t, winner.p.cmd.Process.Kill())
	const entry = cacheaside.DefaultPrefix + "processes:die"
	if left := rdb.PTTL(t.Context(), entry).Val(); left < time.Minute || left > 3*time.Minute {
		t.Errorf("the lease stands for another %v; want a little more than LoadTimeout, two minutes", left)
	}
	must(t, rdb.PExpire(t.Context(), entry, time.Millisecond).Err())
	for range 3 {
		select {
		case got := <-said:
			if got.line != "ok" {
				t.Errorf("survivor said %q; want ok", got.line)
			}
		case <-time.After(time.Minute):
			t.Fatal("survivors hang")
		}
	}
	if n, err := rdb.Get(t.Context(), "loads:die").Int(); err != nil || n > 2 {
		t.Errorf("%d loads, %v; want at most 2", n, err)
	}
}
