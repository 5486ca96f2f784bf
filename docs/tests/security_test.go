package tests

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	shownBy  = regexp.MustCompile("(?:([a-z]+(?:/[a-z]+)*) )?`(Test[A-Za-z0-9_]+)(?:/[a-z0-9_]+)?`")
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(t \*testing\.T\)`)
)

// TestSecurityNamesTests: every test that the security pages name is there, in the package that
// they name.
func TestSecurityNamesTests(t *testing.T) {
	have := map[string]map[string]bool{} // by the first folder, or internal and the second
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		for ; dir != "."; dir = filepath.ToSlash(filepath.Dir(dir)) {
			if have[dir] == nil {
				have[dir] = map[string]bool{}
			}
			for _, m := range testFunc.FindAllSubmatch(text, -1) {
				have[dir][string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, page := range []string{"SECURITY.md", "docs/security.md"} {
		text, err := os.ReadFile(root + "/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			pkg := "" // a list of tests names it once
			for _, m := range shownBy.FindAllStringSubmatch(line, -1) {
				if m[1] != "" {
					pkg = m[1]
				}
				named++
				if !have[pkg][m[2]] {
					t.Errorf("%s:%d: package %q has no %s", page, n+1, pkg, m[2])
				}
			}
		}
	}
	if named < 40 {
		t.Errorf("the pages name %d tests; are they read rightly?", named)
	}
}

// TestSessionRequirements: the table has every requirement of chapter V7 of the OWASP ASVS
// 5.0, or says that it is the application's, each with a test or the reason why there is none.
func TestSessionRequirements(t *testing.T) {
	text, err := os.ReadFile(root + "/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	cells := map[string]string{} // requirement → what shows it
	for line := range strings.Lines(string(text)) {
		row := strings.Split(line, "|")
		if len(row) != 5 {
			continue
		}
		for _, id := range regexp.MustCompile(`\b7\.\d\.\d\b`).FindAllString(row[1], -1) {
			cells[id] = row[3]
		}
	}
	for _, id := range strings.Fields("7.1.1 7.1.2 7.1.3 7.2.1 7.2.2 7.2.3 7.2.4 7.3.1 7.3.2 7.4.1 7.4.2 7.4.3 7.4.4 7.4.5 7.5.1 7.5.2 7.5.3 7.6.1 7.6.2") {
		by, ok := cells[id]
		if !ok {
			t.Errorf("SECURITY.md has no row for %s", id)
		} else if !shownBy.MatchString(by) && !strings.Contains(by, "by reading: ") && !strings.Contains(by, "the application's") {
			t.Errorf("%s: shown by %q; want a test, what to read, or that it is the application's", id, strings.TrimSpace(by))
		}
	}
}
