package gorilla

import (
	"bufio"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestDifference(t *testing.T) {
	read := func(name string) (code []string) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.HasPrefix(line, "//") {
				code = append(code, line)
			}
		}
		return code
	}
	before, after := read("before/main.go"), read("after/main.go")
	only := func(a, b []string) (lines []string) {
		for _, l := range a {
			if !slices.Contains(b, l) {
				lines = append(lines, strings.TrimSpace(l))
			}
		}
		return lines
	}
	if out, in := only(before, after), only(after, before); len(out) != 2 || len(in) != 2 || len(before) != len(after) {
		t.Errorf("before has %q of its own, after %q; want an import and a constructor each", out, in)
	}
}

// start builds and runs one of the two apps until the test ends, and returns its
// URL.
func start(t *testing.T, name, redisURL string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", bin, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	cmd := exec.Command(bin)
	cmd.Env = []string{"REDIS_URL=" + redisURL, "ADDR=127.0.0.1:0"}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("%s says %q, %v; want where it listens", name, line, err)
	}
	return "http://" + addr
}

func TestSessionsLiveOn(t *testing.T) {
	r := redistest.Start(t)
	before := start(t, "before", "unix://"+r.Addr())
	after := start(t, "after", "unix://"+r.Addr())

	// Cookies don't tell ports apart, so one jar plays a browser that is sent to
	// either server, as during a rolling update.
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar, Timeout: 30 * time.Second}
	want := func(what string, res *http.Response, err error, text string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		if got := strings.TrimSpace(string(body)); got != text {
			t.Errorf("%s: %s; want %s", what, got, text)
		}
	}
	get := func(url, text string) { t.Helper(); res, err := browser.Get(url); want("GET "+url, res, err, text) }
	post := func(url, text string) {
		t.Helper()
		res, err := browser.Post(url, "", nil)
		want("POST "+url, res, err, text)
	}

	get(before, "user= visits=1 flashes=[]")
	post(before+"/login/ada", "user=ada visits=2 flashes=[welcome]")
	get(after, "user=ada visits=3 flashes=[]")
	get(after, "user=ada visits=4 flashes=[]")
	get(before, "user=ada visits=5 flashes=[]") // the update is rolled back
	get(after, "user=ada visits=6 flashes=[]")
	post(after+"/logout", "user= visits=1 flashes=[]")
	get(before, "user= visits=2 flashes=[]")

	// And one that began after.
	jar, _ = cookiejar.New(nil)
	browser.Jar = jar
	post(after+"/login/grace", "user=grace visits=1 flashes=[welcome]")
	get(before, "user=grace visits=2 flashes=[]")
	post(before+"/logout", "user= visits=1 flashes=[]")
	get(after, "user= visits=2 flashes=[]")
}
