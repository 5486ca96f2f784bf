// Package tests holds tests of the Markdown pages: what they say about the code is
// true, and what they link to is there.
package tests

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the module's.
const root = "../.."

// markdown is a page: its path from the root, its text, and its fenced blocks.
type markdown struct {
	path   string
	text   string // fenced blocks blanked out, line for line
	blocks []block
}

type block struct {
	info string // what follows the fence, such as "go"
	line int    // of the fence, from 1
	text string
}

var fence = regexp.MustCompile("^ *(```+|~~~+) *([^`]*)$")

func parse(path, text string) (m markdown) {
	m.path = path
	var out strings.Builder
	var open string
	var b block
	number := 0
	for line := range strings.Lines(text) {
		number++
		f := fence.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case open == "" && f != nil:
			open = f[1]
			b = block{info: strings.TrimSpace(f[2]), line: number}
			out.WriteString("\n")
		case open != "" && f != nil && strings.HasPrefix(f[1], open) && f[2] == "":
			m.blocks = append(m.blocks, b)
			open = ""
			out.WriteString("\n")
		case open != "":
			b.text += line
			out.WriteString("\n")
		default:
			out.WriteString(line)
		}
	}
	if open != "" {
		m.blocks = append(m.blocks, b)
	}
	m.text = out.String()
	return m
}

// pages returns all Markdown pages of the repository, nested modules included.
func pages(t *testing.T) (ms []markdown) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") && name != ".github") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".md" && name != "llms.txt" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		ms = append(ms, parse(filepath.ToSlash(rel), string(bytes.ReplaceAll(text, []byte("\r"), nil))))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ms) < 5 {
		t.Fatalf("found %d pages under %s; something is wrong", len(ms), root)
	}
	return ms
}

func TestParse(t *testing.T) {
	m := parse("a.md", "one\n```go\nx()\n```\ntwo\n````\n```\n````\n")
	if len(m.blocks) != 2 || m.blocks[0] != (block{"go", 2, "x()\n"}) || m.blocks[1].text != "```\n" {
		t.Errorf("blocks are %+v; want x() in go at line 2, and a fence in a fence", m.blocks)
	}
	if want := "one\n\n\n\ntwo\n\n\n\n"; m.text != want {
		t.Errorf("text is %q; want %q", m.text, want)
	}
}

// published reports whether users read the page to learn about the library.
func (m markdown) published() bool {
	return m.path == "README.md" || m.path == "llms.txt" || strings.HasPrefix(m.path, "docs/")
}
