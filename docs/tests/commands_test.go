package tests

import (
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

var (
	makeTarget = regexp.MustCompile(`(?m)^([a-z-]+):.*##`)
	goCommand  = regexp.MustCompile(`^(?:cd (\S+) && )?(?:[A-Z_]+=\S+ )*go (run|test|build|vet|doc)\b(?: -C (\S+))?(.*)`)
	bashScript = regexp.MustCompile(`^bash (\S+)`)
)

// TestCommands: the packages, scripts and make targets that commands on the pages
// name are there.
func TestCommands(t *testing.T) {
	mk, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(string(mk), -1) {
		targets[m[1]] = true
	}
	n := 0
	check := func(where, command string) {
		command = strings.TrimPrefix(strings.TrimSpace(command), "$ ")
		command, _, _ = strings.Cut(command, " #")
		exists := func(dir, name string) {
			n++
			name = strings.TrimSuffix(strings.TrimSuffix(name, "..."), "/")
			if _, err := os.Stat(path.Join(root, dir, name)); err != nil {
				t.Errorf("%s: %s: there is no %s", where, command, path.Join(dir, name))
			}
		}
		if m := goCommand.FindStringSubmatch(command); m != nil {
			for _, arg := range strings.Fields(m[4]) {
				if strings.HasPrefix(arg, "./") || arg == "." {
					exists(path.Join(m[1], m[3]), arg)
					if m[2] == "run" {
						break // the others are the program's
					}
				}
			}
		}
		if m := bashScript.FindStringSubmatch(command); m != nil && !strings.HasPrefix(m[1], "-") {
			exists("", m[1])
		}
		if target, ok := strings.CutPrefix(command, "make "); ok {
			n++
			if !targets[target] {
				t.Errorf("%s: there is no make target %s", where, target)
			}
		}
	}
	for _, m := range pages(t) {
		for _, b := range m.blocks {
			if isGo(b) || b.info == "diff" {
				continue
			}
			for line := range strings.Lines(b.text) {
				check(m.path, line)
			}
		}
		for _, span := range named.FindAllString(m.text, -1) {
			check(m.path, strings.Trim(span, "`"))
		}
	}
	if n < 5 {
		t.Errorf("checked %d commands; something is wrong", n)
	}
}
