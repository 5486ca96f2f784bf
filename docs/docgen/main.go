// Command docgen writes docs/options.md: every option of the public packages with
// its doc comment, so that the page can't tell anything else than the code:
//
//	go run -C docs ./docgen
package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"log"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// packages are documented in this order. Those of nested modules are called
// otherwise than their directory.
var packages = []string{"session", "ratelimit", "cacheaside", "middleware", "otel", "prometheus"}

// optional matches the structs that users fill in.
var optional = regexp.MustCompile(`^([A-Z]\w*)?(Config|Cookie|Funcs|Hooks)$`)

const page = "options.md" // in docs

func main() {
	text, err := options(os.DirFS(".."))
	if err == nil {
		err = os.WriteFile(page, text, 0o644)
	}
	if err != nil {
		log.Fatal("docgen: ", err)
	}
}

// options returns the page for the module in fsys.
func options(fsys fs.FS) ([]byte, error) {
	var out bytes.Buffer
	fmt.Fprintln(&out, "# Options\n\nEvery option of every package. The zero value of each is the safe or usual choice, booleans name the departure from it, and constructors report all that is wrong at once. This page is generated from the doc comments by `go run -C docs ./docgen`; a test fails when it is out of date.")
	fmt.Fprintln(&out)
	var body bytes.Buffer
	for _, dir := range packages {
		if err := onePackage(&out, &body, fsys, dir); err != nil {
			return nil, err
		}
	}
	return append(out.Bytes(), body.Bytes()...), nil
}

// onePackage writes a line with links to index, and the options to out.
func onePackage(index, out *bytes.Buffer, fsys fs.FS, dir string) error {
	names, err := fs.Glob(fsys, path.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	pkg := &source{fset: fset, defaults: map[string]string{}}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		pkg.name = f.Name.Name
		pkg.collect(f)
	}
	if len(pkg.structs) == 0 {
		return fmt.Errorf("no options in %s", dir)
	}
	// Config first, as it is what users meet first; then by name.
	slices.SortFunc(pkg.structs, func(a, b option) int {
		if (a.spec.Name.Name == "Config") != (b.spec.Name.Name == "Config") {
			if a.spec.Name.Name == "Config" {
				return -1
			}
			return 1
		}
		return strings.Compare(a.spec.Name.Name, b.spec.Name.Name)
	})
	fmt.Fprintf(out, "\n## %s\n", dir)
	var links []string
	for _, o := range pkg.structs {
		pkg.write(out, o)
		name := o.spec.Name.Name
		links = append(links, fmt.Sprintf("[%s](#%s)", name, strings.ToLower(pkg.name+name)))
	}
	fmt.Fprintf(index, "- [%s](#%[1]s): %s\n", dir, strings.Join(links, ", "))
	return nil
}

type option struct {
	spec *ast.TypeSpec
	doc  *ast.CommentGroup
}

// source is what is known of one package.
type source struct {
	name     string
	fset     *token.FileSet
	structs  []option
	defaults map[string]string // constant → expression
}

func (s *source) collect(f *ast.File) {
	for _, decl := range f.Decls {
		d, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if _, ok := spec.Type.(*ast.StructType); ok && optional.MatchString(spec.Name.Name) {
					doc := spec.Doc
					if doc == nil {
						doc = d.Doc
					}
					s.structs = append(s.structs, option{spec, doc})
				}
			case *ast.ValueSpec:
				for i, name := range spec.Names {
					if d.Tok == token.CONST && strings.HasPrefix(name.Name, "Default") && i < len(spec.Values) {
						s.defaults[name.Name] = s.text(spec.Values[i])
					}
				}
			}
		}
	}
}

func (s *source) write(out *bytes.Buffer, o option) {
	fmt.Fprintf(out, "\n### %s.%s\n\n%s", s.name, o.spec.Name.Name, s.prose(o.doc))
	fmt.Fprintln(out)
	for _, field := range o.spec.Type.(*ast.StructType).Fields.List {
		doc := field.Doc
		if doc == nil {
			doc = field.Comment
		}
		for _, name := range field.Names {
			if !name.IsExported() {
				continue
			}
			typ := strings.Join(strings.Fields(s.text(field.Type)), " ")
			body := strings.TrimSpace(s.prose(doc))
			fmt.Fprintf(out, "- **%s** `%s`  \n  %s\n", name.Name, typ, strings.ReplaceAll(body, "\n", "\n  "))
		}
	}
}

var (
	docLink     = regexp.MustCompile(`\[([A-Za-z][\w.]*)\]`)
	defaultName = regexp.MustCompile(`\bDefault[A-Z]\w*`)
)

// prose turns a comment into Markdown: a line for each paragraph, code indented,
// and the values of defaults beside their names.
func (s *source) prose(doc *ast.CommentGroup) string {
	if doc == nil {
		return ""
	}
	var out strings.Builder
	for paragraph := range strings.SplitSeq(strings.TrimSpace(doc.Text()), "\n\n") {
		if strings.HasPrefix(paragraph, "\t") {
			fmt.Fprintf(&out, "```go\n%s\n```\n\n", strings.ReplaceAll(strings.TrimPrefix(paragraph, "\t"), "\n\t", "\n"))
			continue
		}
		paragraph = strings.ReplaceAll(paragraph, "\n", " ")
		paragraph = docLink.ReplaceAllString(paragraph, "`$1`")
		paragraph = defaultName.ReplaceAllStringFunc(paragraph, func(name string) string {
			if value, ok := s.defaults[name]; ok {
				return "`" + name + "` (" + human(value) + ")"
			}
			return name
		})
		out.WriteString(paragraph + "\n\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

var (
	duration = regexp.MustCompile(`^(?:(\d+) \* )?time\.(Millisecond|Second|Minute|Hour)$`)
	bytesOf  = regexp.MustCompile(`^(\d+) << ([12]0)$`)
	integer  = regexp.MustCompile(`^[\d_]+$`)
)

// human writes the expression of a constant as people do: "30 minutes", "64 KiB",
// "10,000".
func human(expr string) string {
	if m := duration.FindStringSubmatch(expr); m != nil {
		n, unit := cmp.Or(m[1], "1"), strings.ToLower(m[2])
		if n != "1" {
			unit += "s"
		}
		return n + " " + unit
	}
	if m := bytesOf.FindStringSubmatch(expr); m != nil {
		return m[1] + map[string]string{"10": " KiB", "20": " MiB"}[m[2]]
	}
	if integer.MatchString(expr) {
		digits := strings.ReplaceAll(expr, "_", "")
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	}
	return expr
}

func (s *source) text(node ast.Node) string {
	var b bytes.Buffer
	if err := format.Node(&b, s.fset, node); err != nil {
		return fmt.Sprint(err)
	}
	return b.String()
}
