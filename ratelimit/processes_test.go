package ratelimit_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
)

// childEnv holds, in a process started by TestProcesses, network and address of
// the server.
const childEnv = "RATELIMIT_CHILD"

const (
	processes = 8
	callers   = 8
	calls     = 12
	limit     = 200
)

// child is what each process does: its callers ask for one key under each
// algorithm, merged and single, and it tells how many units it was granted.
func child() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	network, addr, _ := strings.Cut(os.Getenv(childEnv), " ")
	rdb := redis.NewClient(&redis.Options{Network: network, Addr: addr, ContextTimeoutEnabled: true})
	defer rdb.Close()
	die := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	die(rdb.Incr(ctx, "ready").Err())
	for {
		n, err := rdb.Get(ctx, "ready").Int()
		die(err)
		if n >= processes {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for name, p := range five(limit) {
		for _, single := range []bool{false, true} {
			l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: 20 * time.Second, NoCoalesce: single}, p)
			die(err)
			key := fmt.Sprint(name, single)
			var granted atomic.Int64
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					for j := range calls {
						r, err := l.AllowN(ctx, key, int64(1+(i+j)%2))
						die(err)
						die(r.Err)
						granted.Add(r.Granted)
					}
				})
			}
			wg.Wait()
			fmt.Println("granted", key, granted.Load())
		}
	}
}

// 8 processes × 8 callers on one key are granted exactly the limit.
func TestProcesses(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	var mu sync.Mutex
	granted := make(map[string]int)
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+s.Network()+" "+s.Addr())
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("process: %v\n%s", err, out)
				return
			}
			lines := bufio.NewScanner(strings.NewReader(string(out)))
			for lines.Scan() {
				var key string
				var n int
				if _, err := fmt.Sscanf(lines.Text(), "granted %s %d", &key, &n); err != nil {
					t.Errorf("line %q: %v", lines.Text(), err)
				}
				mu.Lock()
				granted[key] += n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(granted) != 10 {
		t.Errorf("%d keys; want 5 algorithms, merged and single", len(granted))
	}
	for key, n := range granted {
		// 1152 units are asked for, and a single one always fits in the end.
		if n != limit {
			t.Errorf("%s: %d units granted; want exactly %d", key, n, limit)
		}
	}
}
