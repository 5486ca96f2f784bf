package tests

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// program is a whole program on a page.
type program struct {
	where string
	file  *ast.File
}

// TestPrograms type-checks every whole program on the pages as the compiler would: a
// go block that begins with "package main". Those that import a library which only
// the benchmarks know, such as another session manager, are checked there.
func TestPrograms(t *testing.T) {
	fset := token.NewFileSet()
	homes := map[string][]program{} // by module directory
	n := 0
	for _, m := range pages(t) {
		for _, b := range m.blocks {
			if !isGo(b) || !strings.HasPrefix(strings.TrimSpace(b.text), "package main") {
				continue
			}
			n++
			where := fmt.Sprintf("%s:%d", m.path, b.line)
			f, err := parser.ParseFile(fset, where, b.text, 0)
			if err != nil {
				t.Error(err)
				continue
			}
			home := root
			if !importable(t, root, f) {
				home = root + "/benchmarks"
			}
			homes[home] = append(homes[home], program{where, f})
		}
	}
	if n < 3 {
		t.Fatalf("found %d programs; something is wrong", n)
	}
	for home, programs := range homes {
		for _, err := range check(t, fset, home, programs) {
			t.Errorf("%v", err)
		}
	}
}

// check returns what the compiler would say to programs in the module at home. It is
// done here since compiling them one by one takes ten times as long.
func check(t *testing.T, fset *token.FileSet, home string, programs []program) (errs []error) {
	t.Helper()
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}
	for _, p := range programs {
		for _, spec := range p.file.Imports {
			if name := strings.Trim(spec.Path.Value, `"`); !slices.Contains(args, name) {
				args = append(args, name)
			}
		}
	}
	list := exec.Command("go", args...)
	list.Dir = home
	var stderr strings.Builder
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v\n%s", home, err, stderr.String())
	}
	exports := map[string]string{} // package → file with what it exports
	for line := range strings.Lines(string(out)) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[name] = file
	}
	packages := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, p := range programs {
		conf := types.Config{Importer: packages, Error: func(err error) { errs = append(errs, err) }}
		conf.Check("main", fset, []*ast.File{p.file}, nil)
	}
	return errs
}

func TestProgramsAreReallyChecked(t *testing.T) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "page.md:1", `package main
import ("fmt"; "os"; "github.com/redporch/redporch/ratelimit")
func main() {
	x := ratelimit.New(nil, ratelimit.Config{Colour: 1})
	fmt.Println("hello")
}
`, 0)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, err := range check(t, fset, root, []program{{"page.md:1", f}}) {
		texts = append(texts, err.Error())
	}
	got := strings.Join(texts, "; ")
	for _, want := range []string{"unknown field Colour", "returns 2 values", "declared and not used: x", `"os" imported and not used`} {
		if !strings.Contains(got, want) {
			t.Errorf("complaints are %q; want %q among them", got, want)
		}
	}
}

func isGo(b block) bool { return b.info == "go" || strings.HasPrefix(b.info, "go ") }

// importable reports whether the module at home knows everything that f imports.
func importable(t *testing.T, home string, f *ast.File) bool {
	t.Helper()
	mod, err := os.ReadFile(home + "/go.mod")
	if err != nil {
		t.Fatal(err)
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

// leftOut is a line that says that something is left out there.
var leftOut = regexp.MustCompile(`(?m)^\s*…$`)

// parseSnippet parses a file, declarations, statements, or imports and statements.
func parseSnippet(text string) (*ast.File, error) {
	text = leftOut.ReplaceAllString(text, "")
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
