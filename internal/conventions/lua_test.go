package conventions

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
)

// header returns the comment lines that a script begins with.
func (f luaFile) header() (lines []string) {
	for line := range strings.Lines(f.text) {
		if !strings.HasPrefix(line, "--") {
			break
		}
		lines = append(lines, strings.TrimSpace(strings.TrimPrefix(line, "--")))
	}
	return lines
}

// declaration matches "KEYS[1]  string  meaning". The index is a number, or a
// range such as 1..n or 4…, or missing, which is a range as well.
var declaration = regexp.MustCompile(`^(KEYS|ARGV)(?:\[([^\]]*)\])?\s+\S`)

// luaHeader: a script says what it is for, what it takes, returns and writes, and
// takes what it says.
func luaHeader(f luaFile) (complaints []string) {
	lines := f.header()
	if title := path.Base(f.path) + ": "; len(lines) == 0 || !strings.HasPrefix(lines[0], title) {
		complaints = append(complaints, fmt.Sprintf("the first line is not %q and a purpose", "-- "+title))
	}
	for _, section := range []string{"Returns", "Writes"} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, section+" ") }) {
			complaints = append(complaints, "the header has no "+section)
		}
	}
	tokens, err := lexLua(f.text)
	if err != nil {
		return append(complaints, err.Error())
	}
	for _, array := range []string{"KEYS", "ARGV"} {
		declared, declaredRange := map[string]bool{}, false
		for _, l := range lines {
			if m := declaration.FindStringSubmatch(l); m != nil && m[1] == array {
				if isNumber(m[2]) {
					declared[m[2]] = true
				} else {
					declaredRange = true
				}
			}
		}
		used, usedRange := map[string]bool{}, false
		for i, tok := range tokens {
			if tok.text != array || tok.kind != luaName {
				continue
			}
			if at(tokens, i+1) == "[" && isNumber(at(tokens, i+2)) && at(tokens, i+3) == "]" {
				used[at(tokens, i+2)] = true
			} else {
				usedRange = true
			}
		}
		for n := range used {
			if !declared[n] && !declaredRange {
				complaints = append(complaints, fmt.Sprintf("uses %s[%s], which the header does not declare", array, n))
			}
		}
		for n := range declared {
			if !used[n] {
				complaints = append(complaints, fmt.Sprintf("declares %s[%s], which it does not use", array, n))
			}
		}
		if usedRange && !declaredRange {
			complaints = append(complaints, fmt.Sprintf("indexes %s with a variable; the header declares no range such as %s[1..n]", array, array))
		}
		if declaredRange && !usedRange {
			complaints = append(complaints, fmt.Sprintf("declares a range of %s and indexes none with a variable", array))
		}
	}
	return complaints
}

// Commands of which not exactly the first argument is a key.
var (
	luaKeyless = []string{"TIME", "PUBLISH"}
	luaAllKeys = []string{"DEL", "UNLINK", "EXISTS", "TOUCH", "MGET", "RENAME", "RENAMENX", "SUNION", "SINTER", "SDIFF",
		"SUNIONSTORE", "SINTERSTORE", "SDIFFSTORE", "PFCOUNT", "PFMERGE"}
)

// luaKeys: each key that a script passes to Redis is KEYS[…], or a local that is
// only ever assigned from it. A cluster routes by the keys it is told.
func luaKeys(f luaFile) (complaints []string) {
	tokens, err := lexLua(f.text)
	if err != nil {
		return []string{err.Error()}
	}
	tokens = expandCallAlias(tokens)
	keyNames := luaKeyNames(tokens)
	isKey := func(arg []luaToken) bool {
		text := joinLua(arg)
		if text == "unpack(KEYS)" || len(arg) > 3 && text[:5] == "KEYS[" && luaClosing(arg, 1) == len(arg)-1 {
			return true
		}
		return len(arg) == 1 && keyNames[text]
	}
	for i, tok := range tokens {
		if tok.text != "redis" || at(tokens, i+1) != "." {
			continue
		}
		call := at(tokens, i+2)
		if call != "call" && call != "pcall" {
			continue
		}
		if at(tokens, i+3) != "(" {
			complaints = append(complaints, fmt.Sprintf("line %d: redis.%s is not called on the spot", tok.line, call))
			continue
		}
		args := splitLua(tokens[i+4 : luaClosing(tokens, i+3)])
		if len(args[0]) != 1 || args[0][0].kind != luaString {
			complaints = append(complaints, fmt.Sprintf("line %d: the command is not a literal string", tok.line))
			continue
		}
		name := strings.ToUpper(args[0][0].text)
		keys := args[1:]
		switch {
		case slices.Contains(luaKeyless, name):
			continue
		case len(keys) == 0:
			complaints = append(complaints, fmt.Sprintf("line %d: %s without a key", tok.line, name))
		case !slices.Contains(luaAllKeys, name):
			keys = keys[:1]
		}
		for _, key := range keys {
			if !isKey(key) {
				complaints = append(complaints, fmt.Sprintf("line %d: %s on %s, which is not KEYS[…] or a local that is only assigned from it",
					tok.line, name, joinLua(key)))
			}
		}
	}
	return complaints
}

// luaCode: nothing that Redis 6.2, a cluster or miniredis lacks, and nothing that
// taking out comment lines would change.
func luaCode(f luaFile) (complaints []string) {
	if strings.HasPrefix(f.text, "#!") {
		complaints = append(complaints, "has a #! line, which Redis 6.2 does not know")
	}
	tokens, err := lexLua(f.text)
	if err != nil {
		return append(complaints, err.Error())
	}
	times := 0
	for i, tok := range tokens {
		switch {
		case tok.lines > 1:
			complaints = append(complaints, fmt.Sprintf("line %d: a string or comment of several lines does not survive roundtrip.NewScript", tok.line))
		case tok.kind == luaName && slices.Contains([]string{"cmsgpack", "bit", "struct"}, tok.text) && at(tokens, i+1) == ".":
			complaints = append(complaints, fmt.Sprintf("line %d: uses %s, which miniredis lacks", tok.line, tok.text))
		case tok.kind == luaString && strings.EqualFold(tok.text, "TIME") && at(tokens, i-1) == "(":
			times++
		}
	}
	if times > 1 {
		complaints = append(complaints, "asks for TIME more than once; before Redis 7.2 the answers differ")
	}
	return complaints
}

// embedded: each script is embedded into a variable that roundtrip.NewScript gets, or
// that is put into one as a part.
func embedded(t *tree) (complaints []string) {
	loaded := map[string]bool{} // path of a script
	for _, f := range t.gos {
		if f.test {
			continue
		}
		vars := map[string]string{} // variable → path
		for _, decl := range f.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.VAR {
				continue
			}
			for _, spec := range d.Specs {
				s := spec.(*ast.ValueSpec)
				for _, doc := range []*ast.CommentGroup{d.Doc, s.Doc} {
					if doc == nil || doc == d.Doc && d.Lparen.IsValid() {
						continue
					}
					for _, c := range doc.List {
						if name, ok := strings.CutPrefix(c.Text, "//go:embed "); ok {
							vars[s.Names[0].Name] = path.Join(f.dir, strings.TrimSpace(name))
						}
					}
				}
			}
		}
		for _, g := range t.gos {
			if g.dir != f.dir || g.test {
				continue
			}
			ast.Inspect(g.File, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				// A script may have parts, which a strings.Replacer puts into it.
				fun, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || fun.Sel.Name != "NewScript" && fun.Sel.Name != "NewReplacer" {
					return true
				}
				for _, arg := range call.Args {
					ast.Inspect(arg, func(n ast.Node) bool {
						if arg, isIdent := n.(*ast.Ident); isIdent {
							loaded[vars[arg.Name]] = true
						}
						return true
					})
				}
				return true
			})
		}
	}
	for _, f := range t.luas {
		if !loaded[f.path] {
			complaints = append(complaints, f.path+": is not embedded into a variable that roundtrip.NewScript gets")
		}
	}
	return complaints
}
