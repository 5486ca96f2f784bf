// Package examples_test holds what is true of every example.
package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMalformedURLs: an example that can't read REDIS_URL says so, without the password
// that the URL may hold.
func TestMalformedURLs(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "./chain", "./apis/...", "./webserver")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	build = exec.Command("go", "build", "-C", "gorilla", "-o", dir+"/", "./before", "./after")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	programs, err := filepath.Glob(dir + "/*")
	if err != nil || len(programs) != 7 {
		t.Fatalf("built %d programs (%v); want 7", len(programs), err)
	}
	for _, program := range programs {
		for _, url := range []string{"redis://app:s3cr3t@[::1", "redis://app:s3cr3t/x@localhost", "redis://app:s3cr3t%zz@localhost"} {
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), "ADDR=127.0.0.1:0", "REDIS_URL="+url)
			out, err := cmd.CombinedOutput()
			if err == nil || strings.Contains(string(out), "s3cr3t") || !strings.Contains(string(out), "REDIS_URL") {
				t.Errorf("%s with REDIS_URL=%s ends with %v and says %q; want a complaint of REDIS_URL without the password", filepath.Base(program), url, err, out)
			}
		}
	}
}
