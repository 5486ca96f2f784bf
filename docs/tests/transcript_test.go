package tests

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// TestGettingStarted builds the program on docs/getting-started.md, starts it, types
// what the page types and compares what comes back.
func TestGettingStarted(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("REDISTEST") == "all" {
			t.Fatal(err)
		}
		t.Skip("the transcript needs curl: ", err)
	}
	var program, transcript string
	for _, m := range pages(t) {
		if m.path != "docs/getting-started.md" {
			continue
		}
		for _, b := range m.blocks {
			switch {
			case isGo(b):
				program = b.text
			case b.info == "console":
				transcript = b.text
			}
		}
	}
	if program == "" || transcript == "" {
		t.Fatal("docs/getting-started.md has no program or no transcript")
	}

	dir := t.TempDir()
	bin := filepath.Join(dir, "server")
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(abs, "gettingstarted", "main.go"): write("main.go", program)}})
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay="+write("overlay.json", string(overlay)), "-o", bin, "./gettingstarted")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	// A malformed URL is told, without the password that it may hold.
	for _, url := range []string{"redis://app:s3cr3t@[::1", "redis://app:s3cr3t/x@localhost", "redis://app:s3cr3t%zz@localhost"} {
		server := exec.Command(bin)
		server.Env = append(os.Environ(), "REDIS_URL="+url)
		out, err := server.CombinedOutput()
		if err == nil || strings.Contains(string(out), "s3cr3t") || !strings.Contains(string(out), "REDIS_URL") {
			t.Errorf("REDIS_URL=%s: the program ends with %v and says %q; want a complaint of REDIS_URL without the password", url, err, out)
		}
	}

	m := miniredis.RunT(t)
	m.ClockTTL(true)
	addr := freeAddr(t)
	server := exec.Command(bin)
	server.Env = append(os.Environ(), "ADDR="+addr, "REDIS_URL=redis://"+m.Addr())
	var log strings.Builder
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the server does not listen")
		}
	}

	for step := range strings.SplitSeq(strings.TrimPrefix(transcript, "$ "), "\n$ ") {
		command, want, _ := strings.Cut(step, "\n")
		sh := exec.Command("bash", "-c", strings.ReplaceAll(strings.ReplaceAll(command, "localhost:8081", addr), "curl", "curl -sS --max-time 10"))
		sh.Dir = dir
		got, err := sh.CombinedOutput()
		if err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(want) {
			t.Errorf("%s (%v) prints\n%s\nwant\n%s", command, err, got, want)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
