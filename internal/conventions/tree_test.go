package conventions

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// tree is the source of a module, without the nested modules that mayImport does not
// name.
type tree struct {
	module string
	mod    string // go.mod
	gos    []goFile
	luas   []luaFile
}

type goFile struct {
	path, dir string // relative to the module's root, "." for itself
	test      bool
	*ast.File
}

type luaFile struct{ path, text string }

func load(fsys fs.FS) (*tree, error) {
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, err
	}
	t := &tree{mod: string(mod)}
	t.module, _, _ = strings.Cut(strings.TrimPrefix(t.mod, "module "), "\n")
	fset := token.NewFileSet()
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			_, err := fs.Stat(fsys, path.Join(name, "go.mod"))
			_, ours := mayImport[name]
			if err == nil && !ours || strings.ContainsAny(d.Name()[:1], "._") || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		ext := path.Ext(name)
		if ext != ".go" && ext != ".lua" {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if ext == ".lua" {
			t.luas = append(t.luas, luaFile{name, string(text)})
			return nil
		}
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		t.gos = append(t.gos, goFile{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), f})
		return err
	})
	return t, err
}

var rules = map[string]func(*tree) []string{
	"arrows":    arrows,
	"docs":      docs,
	"packages":  packageComments,
	"replace":   replaceDirectives,
	"luaHeader": each(luaHeader),
	"luaKeys":   each(luaKeys),
	"luaCode":   each(luaCode),
	"embedded":  embedded,
}

// each makes a rule for one script a rule for all.
func each(rule func(luaFile) []string) func(*tree) []string {
	return func(t *tree) (complaints []string) {
		for _, f := range t.luas {
			for _, c := range rule(f) {
				complaints = append(complaints, f.path+": "+c)
			}
		}
		return complaints
	}
}

// TestHouseRules applies every rule to this module.
func TestHouseRules(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above this directory")
		}
		root = filepath.Dir(root)
	}
	tree, err := load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.gos) < 10 || len(tree.luas) < 1 {
		t.Fatalf("found %d Go files and %d Lua scripts under %s; something is wrong", len(tree.gos), len(tree.luas), root)
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, c := range rule(tree) {
				t.Error(c)
			}
		})
	}
}

// bad is a small module and what one rule must say about it: each text of want in
// the complaint of the same number, and no other complaints.
type bad struct {
	rule  string
	files string // "=== name" begins each file
	want  []string
}

func (b bad) run(t *testing.T) {
	t.Helper()
	fsys := fstest.MapFS{"go.mod": {Data: []byte("module m\n")}}
	for part := range strings.SplitSeq(b.files, "=== ") {
		if name, text, ok := strings.Cut(part, "\n"); ok && name != "" {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	tree, err := load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	got := rules[b.rule](tree)
	slices.Sort(got)
	ok := len(got) == len(b.want)
	for i := range min(len(got), len(b.want)) {
		ok = ok && strings.Contains(got[i], b.want[i])
	}
	if !ok {
		t.Errorf("rule %s on\n%s\ncomplains %q; want %q", b.rule, b.files, got, b.want)
	}
}

func TestRulesBite(t *testing.T) {
	bitten := map[string]bool{}
	for i, b := range slices.Concat(badArrows, badDocs, badScripts) {
		t.Run(fmt.Sprintf("%s/%d", b.rule, i), b.run)
		bitten[b.rule] = bitten[b.rule] || len(b.want) > 0
	}
	for name := range rules {
		if !bitten[name] {
			t.Errorf("rule %s is never seen to bite", name)
		}
	}
}
