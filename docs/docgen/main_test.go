package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func TestOptionsPageIsUpToDate(t *testing.T) {
	root := os.DirFS("../..")
	want, err := options(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../" + page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date; run: go run -C docs ./docgen", page)
	}
}

func TestOptions(t *testing.T) {
	fsys := fstest.MapFS{}
	for _, dir := range packages {
		fsys[dir+"/a.go"] = &fstest.MapFile{Data: []byte("package " + dir + "\n// Config is empty.\ntype Config struct{}\n")}
	}
	fsys["session/a.go"] = &fstest.MapFile{Data: []byte(`package session
// Defaults.
const DefaultLife = 3 * time.Hour
// AHooks is second.
type AHooks struct {
	F func(int) error // beside
}
// Config is first, see [New].
//
//	code()
type Config struct {
	// Life is how long.
	// Zero means DefaultLife.
	Life, Death time.Duration
	hidden int
}
// Result is no option.
type Result struct { N int }
`)}
	text, err := options(fsys)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for _, want := range []string{
		"- [session](#session): [Config](#sessionconfig), [AHooks](#sessionahooks)\n",
		"### session.Config\n\nConfig is first, see `New`.\n\n```go\ncode()\n```\n",
		"- **Life** `time.Duration`  \n  Life is how long. Zero means `DefaultLife` (3 hours).\n- **Death** `time.Duration`",
		"### session.AHooks\n\nAHooks is second.\n\n- **F** `func(int) error`  \n  beside\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("options lack\n%s\nin\n%s", want, got)
		}
	}
	for _, not := range []string{"hidden", "Result"} {
		if strings.Contains(got, not) {
			t.Errorf("options hold %q in\n%s", not, got)
		}
	}
	if strings.Index(got, "session.AHooks") < strings.Index(got, "session.Config") {
		t.Error("Config is not first")
	}

	for expr, want := range map[string]string{
		"time.Second": "1 second", "250 * time.Millisecond": "250 milliseconds", "64 << 10": "64 KiB", "1 << 20": "1 MiB",
		"10_000": "10,000", "16384": "16,384", "64": "64", "0.25": "0.25", `"a:"`: `"a:"`,
	} {
		if got := human(expr); got != want {
			t.Errorf("human(%s) = %s; want %s", expr, got, want)
		}
	}

	delete(fsys, "otel/a.go")
	if _, err := options(fsys); err == nil {
		t.Error("options of a package that is gone: no error")
	}
}
