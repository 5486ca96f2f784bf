package redistest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

var ctx = context.Background()

func TestKillAndRestartKeepWhatIsPersisted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opt  redistest.Option
		want int64
	}{
		{"none", redistest.RDB(`""`), 0},
		{"aof", redistest.AOF("always"), 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := redistest.Start(t, tt.opt)
			rdb := s.Client(func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
			for i := range 100 {
				if err := rdb.Set(ctx, fmt.Sprint(i), i, 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			before := s.Pid()
			s.Kill()
			if err := rdb.Ping(ctx).Err(); err == nil {
				t.Error("PING after Kill succeeded; want an error")
			}
			s.Restart()
			if got, err := rdb.DBSize(ctx).Result(); got != tt.want || err != nil {
				t.Errorf("DBSize after Kill and Restart = %d, %v; want %d", got, err, tt.want)
			}
			if s.Pid() == before {
				t.Errorf("Pid after Restart = %d; want another than before", before)
			}
		})
	}
	t.Run("rdb", func(t *testing.T) {
		s := redistest.Start(t, redistest.RDB("1 1"), redistest.TCP())
		rdb := s.Client()
		rdb.Set(ctx, "k", "v", 0)
		s.Restart() // an orderly stop saves
		if got := rdb.Get(ctx, "k").Val(); got != "v" {
			t.Errorf("GET after Restart = %q; want v", got)
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.TCP())
	rdb := s.Client(func(o *redis.Options) {
		o.MaxRetries = -1
		o.ReadTimeout = 50 * time.Millisecond
	})
	redistest.Await(t, "a connection", func() error { return rdb.Ping(ctx).Err() })
	s.Pause()
	var timeout net.Error
	if err := rdb.Ping(ctx).Err(); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("PING while paused = %v; want a timeout", err)
	}
	s.Resume()
	if err := s.Client().Ping(ctx).Err(); err != nil {
		t.Errorf("PING after Resume = %v", err)
	}
	s.Pause() // a paused server can be stopped
	s.Stop()
}

func TestTLSAndACL(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.TLS("yes"), redistest.Set("user", "default off", "app on >secret ~app:* +get +set"))
	if !strings.HasPrefix(s.Addr(), "127.0.0.1:") || s.Network() != "tcp" {
		t.Errorf("Addr = %s on %s; want 127.0.0.1 on tcp", s.Addr(), s.Network())
	}
	login := func(o *redis.Options) { o.Username, o.Password = "app", "secret" }

	app := s.Client(login)
	if err := app.Set(ctx, "app:k", 1, 0).Err(); err != nil {
		t.Errorf("SET inside the rights: %v", err)
	}
	if err := app.Set(ctx, "other", 1, 0).Err(); !redis.IsPermissionError(err) {
		t.Errorf("SET outside the rights = %v; want NOPERM", err)
	}
	if err := s.Client().Get(ctx, "app:k").Err(); !redis.IsAuthError(err) {
		t.Errorf("GET without a password = %v; want NOAUTH", err)
	}
	noCert := s.Client(login, func(o *redis.Options) { o.TLSConfig.Certificates = nil })
	// The client may meet the closed connection before the alert; the log knows.
	if err := noCert.Get(ctx, "app:k").Err(); err == nil || !strings.Contains(s.LogTail(), "did not return a certificate") {
		t.Errorf("GET without a client certificate = %v; want a refusal for that reason; log:\n%s", err, s.LogTail())
	}
	stranger := redistest.Start(t, redistest.TLS("no")) // with an authority of its own
	foreign := s.Client(login, func(o *redis.Options) { o.TLSConfig.RootCAs = stranger.TLSConfig().RootCAs })
	if err := foreign.Get(ctx, "app:k").Err(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("GET trusting another authority = %v; want a certificate error", err)
	}
}

func TestAddAppends(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Set("user", "a on nopass +get"), redistest.Add("user", "b on nopass +get"))
	users, err := s.Client().Do(ctx, "acl", "users").StringSlice()
	if got := strings.Join(users, " "); got != "a b default" || err != nil {
		t.Errorf("ACL USERS = %q, %v; want a b default", got, err)
	}
}

// outcome is a testing.TB that records how a helper ended the test.
type outcome struct {
	testing.TB
	skipped, failed string
}

func (o *outcome) Helper()                       {}
func (o *outcome) Skip(args ...any)              { o.skipped = fmt.Sprint(args...); runtime.Goexit() }
func (o *outcome) Skipf(format string, a ...any) { o.Skip(fmt.Sprintf(format, a...)) }
func (o *outcome) Fatalf(format string, a ...any) {
	o.failed = fmt.Sprintf(format, a...)
	runtime.Goexit()
}

// startWith calls Start as a test would.
func startWith(t *testing.T, opts ...redistest.Option) *outcome {
	o := &outcome{TB: t}
	var wg sync.WaitGroup
	wg.Go(func() { redistest.Start(o, opts...) })
	wg.Wait()
	return o
}

func TestMissingServerSkipsOrFails(t *testing.T) {
	t.Setenv("REDIS_SERVER", filepath.Join(t.TempDir(), "redis-server"))
	t.Setenv("REDISTEST", "")
	if got := startWith(t); !strings.Contains(got.skipped, "apt-get install") || got.failed != "" {
		t.Errorf("without redis-server: skipped %q, failed %q; want a skip that says how to get it", got.skipped, got.failed)
	}
	t.Setenv("REDISTEST", "all")
	if got := startWith(t); got.skipped != "" || !strings.Contains(got.failed, "REDISTEST=all") {
		t.Errorf("without redis-server, REDISTEST=all: skipped %q, failed %q; want a failure", got.skipped, got.failed)
	}
	// The kinds of Run skip or fail alike, and miniredis runs regardless.
	run := func(mode string) (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCount$", "-test.v")
		cmd.Env = append(os.Environ(), "REDISTEST="+mode)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("")
	for _, want := range []string{"PASS: TestCount/miniredis", "SKIP: TestCount/server", "SKIP: TestCount/cluster"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("Run without redis-server ended with %v; want success and %q:\n%s", err, want, out)
		}
	}
	out, err = run("all")
	for _, want := range []string{"PASS: TestCount/miniredis", "FAIL: TestCount/server", "FAIL: TestCount/cluster"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("Run without redis-server, REDISTEST=all ended with %v; want failure and %q:\n%s", err, want, out)
		}
	}
}

func TestShortRunsOnMiniredisAlone(t *testing.T) {
	t.Setenv("REDISTEST", "")
	before := flag.Lookup("test.short").Value.String()
	if err := flag.Set("test.short", "true"); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("test.short", before)
	if got := startWith(t); got.failed != "" || got.skipped == "" {
		t.Errorf("under -short: skipped %q, failed %q; want a skip", got.skipped, got.failed)
	}
}

func TestBrokenServerFailsWithItsLog(t *testing.T) {
	redistest.Start(t) // skips where none can run
	got := startWith(t, redistest.Set("no-such-directive", "1"))
	if !strings.Contains(got.failed, "no-such-directive") {
		t.Errorf("Start with a bad configuration failed with %q; want the server's complaint", got.failed)
	}
}

// TestNoOrphans runs a test binary that starts servers and panics.
func TestNoOrphans(t *testing.T) {
	if dir := os.Getenv("REDISTEST_PANIC"); dir != "" {
		s := redistest.Start(t)
		os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, s.Pid()), 0o600)
		go panic("on purpose")
		select {}
	}
	redistest.Start(t) // skips without a server
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells children of their parent's death")
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoOrphans$")
	cmd.Env = append(os.Environ(), "REDISTEST_PANIC="+dir, "TMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "on purpose") {
		t.Fatalf("the panicking test ended with %v:\n%s", err, out)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		stat, err := os.ReadFile("/proc/" + string(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return // gone, or dead and waiting for whoever adopted it
		}
		if time.Now().After(deadline) {
			t.Fatalf("redis-server %s outlived its test binary", pid)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
