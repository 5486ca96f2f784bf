package browsertest

import (
	"bufio"
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) {
	// Browsers compute more than they wait; -parallel says otherwise.
	if err := flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	redistest.Main(m)
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "browsertest")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "webserver")
	cmd := exec.Command("go", "build", "-o", bin, "./webserver")
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		os.Stderr.Write(out)
	}
	return bin, err
})

var listening = regexp.MustCompile(`http://localhost:(\d+)/`)

// startServer builds and runs the example until the test ends, and returns its
// URL.
func startServer(t *testing.T, env ...string) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatalf("build the example: %v", err)
	}
	cmd := exec.Command(bin)
	cmd.Env = append([]string{"ADDR=127.0.0.1:0", "REDIS_TIMEOUT=1s"}, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	port := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			if m := listening.FindStringSubmatch(s.Text()); m != nil {
				port <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		force := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer force.Stop()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("server ended with %v; want a clean shutdown\n%s", err, stderr.String())
		}
		if n := bytes.Count(stderr.Bytes(), []byte("\n")); n > 200 {
			t.Errorf("server logged %d lines; want few\n%s", n, stderr.String())
		}
	})
	select {
	case p := <-port:
		return "http://127.0.0.1:" + p
	case <-time.After(patience):
		t.Fatal("server did not start")
		return ""
	}
}

// everyRedis runs body on the Redis inside the example, and on a real one, in one
// browser.
func everyRedis(t *testing.T, body func(t *testing.T, b *browser, env []string)) {
	b := startBrowser(t)
	t.Run("embedded", func(t *testing.T) { body(t, b, nil) })
	t.Run("server", func(t *testing.T) {
		s := redistest.Start(t)
		body(t, b, []string{"REDIS_URL=unix://" + s.Addr()})
	})
}
