package main

import (
	"os"
	"strings"
	"testing"
)

// The README prints this program as it is, early.
func TestREADMEPrintsThisProgram(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(source), "package main\n")
	program = "package main\n" + program
	if n := strings.Count(program, "\n"); n > 40 {
		t.Errorf("the program has %d lines; want at most 40", n)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(readme), "```go\n"+program+"```\n")
	if !found {
		t.Error("README.md does not contain main.go as it is; copy it there")
	} else if n := strings.Count(before, "\n"); n > 30 {
		t.Errorf("README.md prints the program at line %d; want line 30 or before", n+2)
	}
}
