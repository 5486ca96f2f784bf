package conventions

import (
	"fmt"
	"go/ast"
	"regexp"
	"slices"
)

// public are the packages that users see.
var public = []string{"session", "ratelimit", "cacheaside", "middleware"}

// filledIn matches the names of structs whose fields are options.
var filledIn = regexp.MustCompile(`(Config|Options|Hooks)$`)

// docs: what users see has a doc comment.
func docs(t *tree) (complaints []string) {
	for _, f := range t.gos {
		if f.test || !slices.Contains(public, f.dir) {
			continue
		}
		missing := func(name string) { complaints = append(complaints, f.path+": "+name+" has no doc comment") }
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if name, ok := exportedFunc(d); ok && d.Doc == nil && (d.Recv == nil || !slices.Contains(wellKnown, d.Name.Name)) {
					missing(name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if !s.Name.IsExported() {
							continue
						}
						if s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
							missing(s.Name.Name)
						}
						for _, name := range undocumentedMembers(s) {
							missing(s.Name.Name + "." + name)
						}
					case *ast.ValueSpec:
						for _, name := range s.Names {
							// In a group one comment may speak for all.
							if name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
								missing(name.Name)
							}
						}
					}
				}
			}
		}
	}
	return complaints
}

// exportedFunc returns a function's name as users write it, and whether they can.
func exportedFunc(d *ast.FuncDecl) (string, bool) {
	if d.Recv == nil {
		return d.Name.Name, d.Name.IsExported()
	}
	typ := d.Recv.List[0].Type
	if p, ok := typ.(*ast.StarExpr); ok {
		typ = p.X
	}
	switch generic := typ.(type) {
	case *ast.IndexExpr:
		typ = generic.X
	case *ast.IndexListExpr:
		typ = generic.X
	}
	recv := typ.(*ast.Ident)
	return recv.Name + "." + d.Name.Name, recv.IsExported() && d.Name.IsExported()
}

// wellKnown are methods that mean the same on every type.
var wellKnown = []string{"Error", "Unwrap", "String"}

// undocumentedMembers returns the exported fields of a struct that users fill in,
// or methods of an interface, that have no comment above or beside them.
func undocumentedMembers(s *ast.TypeSpec) (names []string) {
	var members *ast.FieldList
	switch t := s.Type.(type) {
	case *ast.StructType:
		if !filledIn.MatchString(s.Name.Name) {
			return nil
		}
		members = t.Fields
	case *ast.InterfaceType:
		if t.Methods.NumFields() == 1 {
			return nil // the type's comment speaks for it
		}
		members = t.Methods
	default:
		return nil
	}
	for _, m := range members.List {
		for _, name := range m.Names {
			if name.IsExported() && m.Doc == nil && m.Comment == nil {
				names = append(names, name.Name)
			}
		}
	}
	return names
}

// packageComments: each package has one, so that readers find the promise in one
// place.
func packageComments(t *tree) (complaints []string) {
	counts := map[string]int{}
	for _, f := range t.gos {
		if f.test {
			continue
		}
		counts[f.dir] += 0
		if f.Doc != nil {
			counts[f.dir]++
		}
	}
	for dir, n := range counts {
		if n != 1 {
			complaints = append(complaints, fmt.Sprintf("%s: %d package comments; want 1", dir, n))
		}
	}
	return complaints
}

var badDocs = []bad{
	{"docs", `
=== session/a.go
package session
func F() {}
// G is documented.
func G() {}
func h() {}
type TConfig struct {
	A int
	B int // beside
	// Above.
	C, D int
	e int
}
// M is documented.
func (*TConfig) M() {}
func (TConfig) N() {}
func (TConfig) String() string {}
// R is a result.
type R struct { A int }
type u[K any] struct{ X int }
func (*u[K]) O() {}
// I is documented.
type I interface { P(); q() }
// J is documented.
type J interface { R() }
const (
	// V is documented.
	V = 1
	W = 2
	Y = 3 // beside
)
// All of them.
var ( Z = 1; AA = 2 )
// A group's comment is not a type's.
type ( BB int )
// P is generic.
type P[K any] struct{}
func (p *P[K]) Q() {}
=== session/a_test.go
package session
func Test() {}
=== other/a.go
package other
func F() {}
`, []string{
		"session/a.go: BB has", "session/a.go: F has", "session/a.go: I.P has", "session/a.go: P.Q has",
		"session/a.go: TConfig has", "session/a.go: TConfig.A has", "session/a.go: TConfig.N has", "session/a.go: W has",
	}},
	{"packages", `
=== a/a.go
// Package a is documented.
package a
=== a/b.go
package a
=== b/a.go
package b
=== c/a.go
// Package c is documented.
package c
=== c/b.go
// Package c is documented twice.
package c
=== c/a_test.go
// Package c_test may be.
package c_test
`, []string{"b: 0 package comments", "c: 2 package comments"}},
}
