package conventions

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// mayImport says which packages of this module each may import. A package's
// tests may import the same, and testPackages.
var mayImport = map[string][]string{
	"internal/wrapped":      nil,
	"internal/roundtrip":    {"internal/wrapped"},
	"internal/redistest":    nil,
	"internal/gobwalk":      nil,
	"internal/conventions":  nil,
	"internal/limitmodel":   {"ratelimit"},
	"internal/sessionmodel": {"session"},
	"session":               {"internal/roundtrip", "internal/gobwalk"},
	"ratelimit":             {"internal/roundtrip"},
	"cacheaside":            {"internal/roundtrip", "internal/gobwalk"},
	"middleware":            {"session", "ratelimit", "cacheaside", "internal/wrapped"},
	"docs":                  {"middleware", "ratelimit"},                          // tests of the pages; the figures
	"examples":              {"session", "ratelimit", "cacheaside", "middleware"}, // what a user may import
}

// forTests are imports that only tests may have, and the packages that may have
// them all the same: redistest is for tests, the examples run without a Redis of
// the reader's, and the figures of docs are runs whose clock is driven.
var forTests = map[string][]string{
	"testing":                           {"internal/redistest", "internal/sessionmodel", "internal/limitmodel"},
	"github.com/alicebob/miniredis/v2":  {"internal/redistest", "docs", "examples"},
	"go.uber.org/goleak":                nil,
	"github.com/anishathalye/porcupine": nil,
}

// testPackages are for _test.go files.
var testPackages = []string{"internal/redistest", "internal/sessionmodel", "internal/limitmodel"}

// withoutHTTP are the packages that decide and leave it to others to translate.
var withoutHTTP = []string{"ratelimit", "cacheaside", "internal/roundtrip"}

// arrows: packages import only what is below them.
func arrows(t *tree) (complaints []string) {
	for _, f := range t.gos {
		pkg := owner(f.dir)
		allowed, known := mayImport[pkg]
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue // the parser has complained
			}
			complain := func(why string) {
				complaints = append(complaints, fmt.Sprintf("%s: imports %s: %s", f.path, imported, why))
			}
			if local, ok := strings.CutPrefix(imported, t.module+"/"); ok {
				switch to := owner(local); {
				case to == pkg:
				case slices.Contains(testPackages, to):
					if !f.test {
						complain(path.Base(to) + " is for _test.go files")
					}
				case !known:
					complain("this package has no arrows yet; add it to mayImport")
				case !slices.Contains(allowed, to):
					complain(fmt.Sprintf("%s may import %s of this module", pkg, orNothing(allowed)))
				}
				continue
			}
			if f.test {
				continue
			}
			for name, except := range forTests {
				if (imported == name || strings.HasPrefix(imported, name+"/")) && !slices.Contains(except, pkg) {
					complain("it is for _test.go files")
				}
			}
			if (imported == "net/http" || strings.HasPrefix(imported, "net/http/")) && slices.Contains(withoutHTTP, pkg) {
				complain(pkg + " does not know HTTP; middleware translates")
			}
		}
	}
	return complaints
}

// owner returns the entry of mayImport that dir falls under, or dir.
func owner(dir string) string {
	for pkg := range mayImport {
		if dir == pkg || strings.HasPrefix(dir, pkg+"/") {
			return pkg
		}
	}
	return dir
}

func orNothing(pkgs []string) string {
	if len(pkgs) == 0 {
		return "nothing"
	}
	return "only " + strings.Join(pkgs, ", ")
}

// replaceDirectives: go.mod has none, since they don't reach a library's users.
func replaceDirectives(t *tree) (complaints []string) {
	for line := range strings.Lines(t.mod) {
		if fields := strings.Fields(line); len(fields) > 0 && (fields[0] == "replace" || slices.Contains(fields, "=>")) {
			complaints = append(complaints, "go.mod: "+strings.TrimSpace(line))
		}
	}
	return complaints
}

var badArrows = []bad{
	{"arrows", `
=== session/a.go
package session
import ("m/ratelimit"; "net/http"; "m/internal/roundtrip")
=== ratelimit/a.go
package ratelimit
import ("net/http/httptest"; "m/middleware"; "testing")
=== cacheaside/sub/a.go
package sub
import ("net/http"; "m/cacheaside"; "github.com/alicebob/miniredis/v2")
=== middleware/a.go
package middleware
import ("net/http"; "m/session"; "m/internal/redistest")
=== examples/go.mod
module m/examples
=== examples/x/a.go
package main
import ("m/internal/roundtrip"; "m/middleware"; "github.com/alicebob/miniredis/v2"; "m/examples/x/y")
=== ratelimit/a_test.go
package ratelimit
import ("testing"; "net/http/httptest"; "m/internal/redistest"; "go.uber.org/goleak"; "m/session")
=== internal/redistest/a.go
package redistest
import ("testing"; "github.com/alicebob/miniredis/v2/server")
=== other/a.go
package other
import "m/session"
=== nested/go.mod
module n
=== nested/a.go
package session
import "testing"
`, []string{
		"cacheaside/sub/a.go: imports github.com/alicebob/miniredis/v2",
		"cacheaside/sub/a.go: imports net/http",
		"examples/x/a.go: imports m/internal/roundtrip: examples may import only session",
		"middleware/a.go: imports m/internal/redistest: redistest is for _test.go",
		"other/a.go: imports m/session: this package has no arrows",
		"ratelimit/a.go: imports m/middleware",
		"ratelimit/a.go: imports net/http/httptest",
		"ratelimit/a.go: imports testing",
		"ratelimit/a_test.go: imports m/session",
		"session/a.go: imports m/ratelimit: session may import only internal/roundtrip",
	}},
	{"replace", "=== go.mod\nmodule m\nreplace a => ../a\nreplace (\n\tb v1 => ../b\n)\nrequire c v1\n",
		[]string{"b v1", "replace (", "replace a"}},
}
