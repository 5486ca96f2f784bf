package docs

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPrograms compiles every whole program on the pages: a go block that begins
// with "package main". Those that import a library which only the benchmarks know,
// such as another session manager, are compiled there.
func TestPrograms(t *testing.T) {
	homes := map[string]map[string]string{} // module directory → overlay
	where := map[string]string{}            // directory of a program → page and line
	n := 0
	for _, m := range pages(t) {
		for _, b := range m.blocks {
			if !isGo(b) || !strings.HasPrefix(strings.TrimSpace(b.text), "package main") {
				continue
			}
			n++
			home := root
			if !importable(t, root, b.text) {
				home = root + "/benchmarks"
			}
			abs, err := filepath.Abs(home)
			if err != nil {
				t.Fatal(err)
			}
			// The overlay lets the go command see directories that are not there.
			dir := fmt.Sprintf("program%d", n)
			file := filepath.Join(t.TempDir(), "main.go")
			// Not as main packages, which would all be linked.
			text := strings.Replace(b.text, "package main", "package "+dir, 1)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if homes[home] == nil {
				homes[home] = map[string]string{}
			}
			homes[home][filepath.Join(abs, dir, "main.go")] = file
			where[dir] = fmt.Sprintf("%s:%d", m.path, b.line)
		}
	}
	if n < 3 {
		t.Fatalf("found %d programs; something is wrong", n)
	}
	for home, files := range homes {
		overlay, err := json.Marshal(map[string]any{"Replace": files})
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "overlay.json")
		if err := os.WriteFile(name, overlay, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"build", "-overlay=" + name}
		for file := range files {
			args = append(args, "./"+filepath.Base(filepath.Dir(file)))
		}
		slices.Sort(args[2:])
		cmd := exec.Command("go", args...)
		cmd.Dir = home
		if out, err := cmd.CombinedOutput(); err != nil {
			text := string(out)
			for dir, page := range where {
				text = regexp.MustCompile(`\b`+dir+`\b`).ReplaceAllString(text, dir+" ("+page+")")
			}
			t.Errorf("go build in %s: %v\n%s", home, err, text)
		}
	}
}

func isGo(b block) bool { return b.info == "go" || strings.HasPrefix(b.info, "go ") }

// importable reports whether the module at home knows everything that text imports.
func importable(t *testing.T, home, text string) bool {
	t.Helper()
	mod, err := os.ReadFile(home + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), "", text, parser.ImportsOnly)
	if err != nil {
		return true // the compiler will say it better
	}
	for _, spec := range f.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") || strings.HasPrefix(name, "github.com/redporch/redporch") {
			continue
		}
		known := false
		for line := range strings.Lines(string(mod)) {
			f := strings.Fields(strings.TrimPrefix(line, "require "))
			known = known || len(f) > 1 && (name == f[0] || strings.HasPrefix(name, f[0]+"/"))
		}
		if !known {
			return false
		}
	}
	return true
}

// api is what the packages export: names, and fields of structs.
type api struct {
	names  map[string]bool            // "session.New"
	fields map[string]map[string]bool // "session.Config" → fields
}

// packages maps what code calls a package to its directory.
var packages = map[string]string{
	"session": "session", "ratelimit": "ratelimit", "cacheaside": "cacheaside", "middleware": "middleware",
	"redporchotel": "otel", "redporchprom": "prometheus",
}

func exported(t *testing.T) api {
	t.Helper()
	a := api{map[string]bool{}, map[string]map[string]bool{}}
	for pkg, dir := range packages {
		names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(names) == 0 {
			t.Fatalf("no files in %s (%v)", dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			a.collect(pkg, f)
		}
	}
	return a
}

func (a api) collect(pkg string, f *ast.File) {
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				a.names[pkg+"."+d.Name.Name] = true
			} else {
				typ := d.Recv.List[0].Type
				if star, ok := typ.(*ast.StarExpr); ok {
					typ = star.X
				}
				switch x := typ.(type) {
				case *ast.IndexExpr:
					typ = x.X
				case *ast.IndexListExpr:
					typ = x.X
				}
				if id, ok := typ.(*ast.Ident); ok {
					a.member(pkg+"."+id.Name, d.Name.Name)
				}
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					name := pkg + "." + s.Name.Name
					a.names[name] = true
					switch x := s.Type.(type) {
					case *ast.StructType:
						for _, f := range x.Fields.List {
							for _, id := range f.Names {
								a.member(name, id.Name)
							}
							if f.Names == nil {
								if id, ok := f.Type.(*ast.Ident); ok {
									a.member(name, id.Name)
								}
							}
						}
					case *ast.InterfaceType:
						for _, f := range x.Methods.List {
							for _, id := range f.Names {
								a.member(name, id.Name)
							}
						}
					}
				case *ast.ValueSpec:
					for _, id := range s.Names {
						a.names[pkg+"."+id.Name] = true
					}
				}
			}
		}
	}
}

func (a api) member(typ, name string) {
	if a.fields[typ] == nil {
		a.fields[typ] = map[string]bool{}
	}
	a.fields[typ][name] = true
}

// TestSnippets: go blocks that are no whole programs parse, and what they name in
// our packages exists: functions, types, constants, and fields in literals.
func TestSnippets(t *testing.T) {
	a := exported(t)
	n := 0
	for _, m := range pages(t) {
		for _, b := range m.blocks {
			if !isGo(b) || m.path == "CHANGELOG.md" {
				continue
			}
			n++
			f, err := parseSnippet(b.text)
			if err != nil {
				t.Errorf("%s:%d: %v", m.path, b.line, err)
				continue
			}
			for _, complaint := range a.unknown(f) {
				t.Errorf("%s:%d: %s", m.path, b.line, complaint)
			}
		}
	}
	if n < 5 {
		t.Errorf("found %d snippets; something is wrong", n)
	}
}

// parseSnippet parses a file, declarations, statements, or imports and statements.
func parseSnippet(text string) (*ast.File, error) {
	imports := regexp.MustCompile(`(?ms)^import (\([^)]*\)|\S* ?"[^"]*")\n`).FindString(text)
	rest := strings.Replace(text, imports, "", 1)
	var first error
	for _, source := range []string{
		text,
		"package p\n" + text,
		"package p\n" + imports + "\nfunc _() {\n" + rest + "\n}",
		"package p\nvar _ = f(\n" + strings.TrimRight(rest, "\n, ") + ",\n)",
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "", source, 0)
		if err == nil {
			return f, nil
		}
		if first == nil || strings.Contains(source, "func _()") {
			first = err
		}
	}
	return nil, first
}

// unknown returns what f uses of our packages and is not there.
func (a api) unknown(f *ast.File) (complaints []string) {
	local := map[string]bool{} // an import of another package under the same name, or a variable
	for _, spec := range f.Imports {
		path := strings.Trim(spec.Path.Value, `"`)
		if !strings.HasPrefix(path, "github.com/redporch/redporch/") {
			name := path[strings.LastIndex(path, "/")+1:]
			if spec.Name != nil {
				name = spec.Name.Name
			}
			local[name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					local[id.Name] = true
				}
			}
		case *ast.SelectorExpr:
			if id, ok := n.X.(*ast.Ident); ok && packages[id.Name] != "" && !local[id.Name] && !a.names[id.Name+"."+n.Sel.Name] {
				complaints = append(complaints, "there is no "+id.Name+"."+n.Sel.Name)
			}
		case *ast.CompositeLit:
			typ := n.Type
			if x, ok := typ.(*ast.IndexExpr); ok {
				typ = x.X
			}
			sel, ok := typ.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if !ok || local[id.Name] {
				return true
			}
			name := id.Name + "." + sel.Sel.Name
			for _, e := range n.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				if key, ok := kv.Key.(*ast.Ident); ok && a.fields[name] != nil && !a.fields[name][key.Name] {
					complaints = append(complaints, name+" has no field "+key.Name)
				}
			}
		}
		return true
	})
	return complaints
}

// named finds session.New, session.Config.Keys and the like in prose.
var named = regexp.MustCompile("`[^`\n]*`")
var qualified = regexp.MustCompile(`\b(session|ratelimit|cacheaside|middleware|redporchotel|redporchprom)\.([A-Z]\w*)(?:\.([A-Z]\w*))?`)

// TestNamesInProse: what pages name in code spans exists.
func TestNamesInProse(t *testing.T) {
	a := exported(t)
	n := 0
	for _, m := range pages(t) {
		if !m.published() {
			continue
		}
		for _, span := range named.FindAllString(m.text, -1) {
			for _, found := range qualified.FindAllStringSubmatch(span, -1) {
				n++
				name := found[1] + "." + found[2]
				if name == "middleware.GetClientIPAddr" { // of chi
					continue
				}
				if !a.names[name] {
					t.Errorf("%s: %s: there is no %s", m.path, span, name)
				} else if found[3] != "" && !a.fields[name][found[3]] {
					t.Errorf("%s: %s: %s has no %s", m.path, span, name, found[3])
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("found %d names; something is wrong", n)
	}
}

func TestUnknown(t *testing.T) {
	a := exported(t)
	f, err := parseSnippet("import \"github.com/redporch/redporch/session\"\nx, err := session.New(rdb, session.Config{Keys: k, Colour: red})\nmiddleware.Nonsense(x)\nsessions.Nonsense()\n")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(a.unknown(f), "; ")
	for _, want := range []string{"session.Config has no field Colour", "there is no middleware.Nonsense"} {
		if !strings.Contains(got, want) {
			t.Errorf("unknown = %q; want %q in it", got, want)
		}
	}
	if strings.Count(got, ";") != 1 {
		t.Errorf("unknown = %q; want two complaints", got)
	}
	if _, err := parseSnippet("this is not Go"); err == nil {
		t.Error("what is not Go parses")
	}
}
