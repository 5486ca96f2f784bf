package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openEnded returns what in f serves HTTP for as long as a client likes to keep a
// connection: the functions of net/http that take no timeouts, and servers without.
func openEnded(f *ast.File) (complaints []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || !isName(sel.X, "http") {
				return true
			}
			switch sel.Sel.Name {
			case "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS":
				complaints = append(complaints, "http."+sel.Sel.Name+" has no timeouts; use an http.Server")
			}
		case *ast.CompositeLit:
			sel, ok := n.Type.(*ast.SelectorExpr)
			if !ok || !isName(sel.X, "http") || sel.Sel.Name != "Server" {
				return true
			}
			set := map[string]bool{}
			for _, e := range n.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if key, ok := kv.Key.(*ast.Ident); ok {
						set[key.Name] = true
					}
				}
			}
			for _, field := range []string{"ReadHeaderTimeout", "IdleTimeout"} {
				if !set[field] {
					complaints = append(complaints, "an http.Server without "+field)
				}
			}
		}
		return true
	})
	return complaints
}

func isName(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// TestServersHaveTimeouts: programs that readers copy, on the pages and in examples/,
// let no client hold a connection by saying nothing.
func TestServersHaveTimeouts(t *testing.T) {
	servers := 0
	check := func(where string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && isName(sel.X, "http") && sel.Sel.Name == "Server" {
				servers++
			}
			return true
		})
		for _, complaint := range openEnded(f) {
			t.Errorf("%s: %s", where, complaint)
		}
	}
	for _, m := range pages(t) {
		for _, b := range m.blocks {
			if !isGo(b) || !m.published() {
				continue
			}
			if f, err := parseSnippet(b.text); err == nil { // TestSnippets complains
				check(m.path, f)
			}
		}
	}
	err := filepath.WalkDir(root+"/examples", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		check(name, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if servers < 10 {
		t.Errorf("found %d servers; something is wrong", servers)
	}
}

func TestOpenEnded(t *testing.T) {
	for text, want := range map[string]string{
		"http.ListenAndServe(a, h)":                              "http.ListenAndServe has no timeouts",
		"log.Fatal(http.Serve(ln, h))":                           "http.Serve has no timeouts",
		"s := &http.Server{Addr: a, IdleTimeout: t}":             "without ReadHeaderTimeout",
		"s := http.Server{ReadHeaderTimeout: t}":                 "without IdleTimeout",
		"s := http.Server{ReadHeaderTimeout: t, IdleTimeout: t}": "",
		"s.ListenAndServe()":                                     "",
	} {
		f, err := parseSnippet(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(openEnded(f), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: complaints are %q; want %q", text, got, want)
		}
	}
}
