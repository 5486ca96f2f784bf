package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is a module whose tests fail in known runs.
var sample = map[string]string{
	"go.mod": "module sample\n\ngo 1.26\n",
	"a/a_test.go": `package a
import ("os"; "runtime"; "strings"; "testing"; "time")
// TestTurns fails in every second run.
func TestTurns(t *testing.T) {
	t.Run("sub", func(t *testing.T) {
		b, _ := os.ReadFile("runs")
		os.WriteFile("runs", append(b, 'x'), 0o644)
		if len(b)%2 == 1 {
			t.Fatal("an odd run\n" + strings.Repeat("line\n", 1000))
		}
	})
	t.Run("other", func(*testing.T) {})
}
func TestOneCore(t *testing.T) {
	if runtime.GOMAXPROCS(0) == 1 { t.Error("one core") }
}
func TestNoRedis(t *testing.T) {
	if os.Getenv("REDIS_SERVER") != "" { t.Error("no redis") }
}
func TestSlow(t *testing.T) { time.Sleep(50*time.Millisecond) }
func TestSkipped(t *testing.T) { t.Skip() }
`,
	"b/b_test.go": `package b
import ("os"; "testing")
func TestMain(m *testing.M) { if m.Run(); os.Getenv("GOMAXPROCS") == "1" { os.Exit(3) } }
func TestQuick(t *testing.T) {}
`,
}

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// flake runs the command on the module in dir.
func flake(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir()) // for the output of red runs
	var out, complaints strings.Builder
	code = run(context.Background(), append([]string{"-dir", dir}, args...), &out, &complaints)
	return code, out.String(), complaints.String()
}

func TestReport(t *testing.T) {
	code, out, complaints := flake(t, write(t, sample), "-n", "2", "-forms", "quiet,busy,one,busy+noredis", "-seed", "7")
	if code != 1 || complaints != "" {
		t.Errorf("code %d, stderr %q; want 1 and nothing", code, complaints)
	}
	for _, want := range []string{
		`(?m)^run 1  quiet         seed 7  +\d+\.\d s  ok$`,
		`(?m)^run 2  busy          seed 8  .*FAILED a.TestTurns/sub$`,
		`(?m)^run 3  one           seed 9  .*FAILED (a.TestOneCore b|b a.TestOneCore)$`,
		`(?m)^run 8  busy\+noredis .*FAILED .*a.TestTurns/sub`,
		`(?m)^quiet +2 +2 .* 1$`,
		`(?m)^one +2 +0 .* 1$`,
		`(?m)^  4 times  a.TestTurns/sub: busy \(seed 8\) busy\+noredis \(seed 10\) busy \(seed 12\) busy\+noredis \(seed 14\)$`,
		`(?m)^  2 times  a.TestOneCore: one \(seed 9\) one \(seed 13\)$`,
		`(?m)^  2 times  a.TestNoRedis: busy\+noredis`,
		`(?m)^  2 times  b: one`,
		`\| .*an odd run`,
		`slowest packages(.*\n)+?[ab] .*\n(.*\n)*slowest tests .*\na.TestSlow `,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the report lacks %s", want)
		}
	}
	if n := strings.Count(out, "\n"); n > 120 {
		t.Errorf("the report has %d lines; a failure may print a screen", n)
	}
	logs := regexp.MustCompile(`red runs in (\S+)\n`).FindStringSubmatch(out)[1]
	whole, err := os.ReadFile(filepath.Join(logs, "run2.txt"))
	if err != nil || strings.Count(string(whole), "line\n") != 1000 {
		t.Errorf("the output of run 2 has %d lines of the failure (%v); want all", strings.Count(string(whole), "line\n"), err)
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestGreen(t *testing.T) {
	code, out, complaints := flake(t, write(t, sample), "-n", "1", "-forms", "quiet", "-run", "TestQuick", "./b")
	if code != 0 || complaints != "" || !strings.Contains(out, "no test failed in 1 runs") || strings.Contains(out, "TestSlow") {
		t.Errorf("code %d, stderr %q,\n%s\nwant 0, and TestQuick alone", code, complaints, out)
	}
}

func TestComplaints(t *testing.T) {
	for want, args := range map[string][]string{
		`"calm" is no form`:             {"-forms", "quiet,calm"},
		"-n is 0":                       {"-n", "0"},
		"go test -run=^$ ./nonsense":    {"./nonsense"},
		"flag provided but not defined": {"-nonsense"},
	} {
		code, out, complaints := flake(t, write(t, sample), args...)
		if code != 2 || out != "" || !strings.Contains(complaints, want) {
			t.Errorf("%q: code %d, stdout %q, stderr %q; want 2 and %s", args, code, out, complaints, want)
		}
	}
	// What does not compile is told once.
	broken := write(t, map[string]string{"go.mod": "module broken\n", "a_test.go": "package a\nvar x int = \"\"\n"})
	if code, _, complaints := flake(t, broken); code != 2 || !strings.Contains(complaints, "cannot use") {
		t.Errorf("what does not compile: code %d, stderr %q; want 2 and the compiler's words", code, complaints)
	}
}

func TestForms(t *testing.T) {
	c, err := parse([]string{"-run", "X", "-forms", "race+one", "-timeout", "3s", "./a"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	f := c.forms[0]
	if want := []string{"test", "-json", "-count=1", "-shuffle=5", "-timeout=3s", "-race", "-run=X", "./a"}; !slices.Equal(f.args(c, 5), want) {
		t.Errorf("args are %q; want %q", f.args(c, 5), want)
	}
	if !slices.Equal(f.env(), []string{"GOMAXPROCS=1"}) {
		t.Errorf("env is %q", f.env())
	}
}

// TestSpin: the loops run, and stop leaves none behind.
func TestSpin(t *testing.T) {
	cores, goroutines := runtime.GOMAXPROCS(0), runtime.NumGoroutine()
	stop := spin(2)
	for last := spins.Load(); spins.Load() < last+1<<20; {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n != goroutines+2 {
		t.Errorf("%d goroutines; want 2 more than %d", n, goroutines)
	}
	stop()
	after := spins.Load()
	time.Sleep(10 * time.Millisecond)
	if n := spins.Load(); n != after {
		t.Errorf("%d rounds after stop", n-after)
	}
	if n := runtime.GOMAXPROCS(0); n != cores {
		t.Errorf("GOMAXPROCS is %d afterwards; want %d", n, cores)
	}
}
