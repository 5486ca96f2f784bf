package middleware_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestWarningsAreDocumented: each code has its paragraph, and each paragraph its
// code, so that the address in the log leads somewhere.
func TestWarningsAreDocumented(t *testing.T) {
	source, err := os.ReadFile("warnings.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/warnings.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^\tWarn\w+\s+Code = "([a-z-]+)"$`).FindAllStringSubmatch(string(source), -1) {
		codes[m[1]] = true
		if !strings.Contains(string(page), "\n### "+m[1]+"\n") || !strings.Contains(string(page), "| ["+m[1]+"](#"+m[1]+") |") {
			t.Errorf("docs/warnings.md lacks the paragraph or the row of %s", m[1])
		}
	}
	if len(codes) < 12 {
		t.Errorf("found %d codes in warnings.go; want all of them", len(codes))
	}
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)$`).FindAllStringSubmatch(string(page), -1) {
		if !codes[m[1]] {
			t.Errorf("docs/warnings.md describes %s, which is no code", m[1])
		}
	}
}
