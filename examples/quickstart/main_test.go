package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// localhostJar takes plain HTTP for secure, as browsers and curl do for localhost.
type localhostJar struct{ http.CookieJar }

func secure(u *url.URL) *url.URL {
	s := *u
	s.Scheme = "https"
	return &s
}

func (j localhostJar) SetCookies(u *url.URL, c []*http.Cookie) { j.CookieJar.SetCookies(secure(u), c) }
func (j localhostJar) Cookies(u *url.URL) []*http.Cookie       { return j.CookieJar.Cookies(secure(u)) }

// The program, with only its two addresses changed, answers as the README says.
func TestTranscript(t *testing.T) {
	m := miniredis.RunT(t)
	m.ClockTTL(true)
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	program := string(source)
	replace := func(old, new string) {
		t.Helper()
		if strings.Count(program, old) != 1 {
			t.Fatalf("main.go does not have %s once; this test replaces it", old)
		}
		program = strings.Replace(program, old, new, 1)
	}
	replace(`"localhost:6379"`, `"`+m.Addr()+`"`)
	// The program listens where it is told and says nothing of it: give it a
	// listener that reports its port.
	replace(`srv.ListenAndServe()`, `listenAndServe(srv)`)
	dir, err := os.MkdirTemp(".", "_transcript") // inside the module, ignored by go list
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("main.go", program)
	write("listen.go", `package main

import ("fmt"; "net"; "net/http")

func listenAndServe(srv *http.Server) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil { return err }
	fmt.Println(ln.Addr())
	return srv.Serve(ln)
}
`)
	bin := filepath.Join(t.TempDir(), "quickstart")
	if out, err := exec.Command("go", "build", "-o", bin, "./"+dir).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin)
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the program did not start: %v", err)
	}

	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: localhostJar{jar}, Timeout: 10 * time.Second}
	for i, want := range []string{
		"visit 1 from London, by loader\n",
		"visit 2 from London, by redis\n", // or by l1, if invalidations were listened to when the first was loaded
		"visit 3 from London, by l1\n",
		"Too Many Requests",
	} {
		res, err := client.Get("http://" + strings.TrimSpace(addr) + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		got := string(body) + http.StatusText(res.StatusCode)
		if i == 1 {
			got = strings.Replace(got, "by l1\n", "by redis\n", 1)
		}
		if !strings.Contains(got, want) {
			t.Errorf("request %d = %s; want %s", i+1, got, want)
		}
	}
}
