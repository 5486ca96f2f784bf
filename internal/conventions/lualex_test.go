package conventions

import (
	"fmt"
	"slices"
	"strings"
)

// luaToken is a name, number, string or sign of a Lua script. A comment of
// several lines is a token as well; others are left out.
type luaToken struct {
	kind  luaKind
	text  string // of a string: what is between the quotes, escapes as written
	line  int
	lines int // how many lines it spans
}

type luaKind uint8

const (
	luaSign luaKind = iota
	luaName
	luaNumber
	luaString
	luaComment
)

func lexLua(src string) (tokens []luaToken, err error) {
	line := 1
	add := func(kind luaKind, text, whole string) {
		n := strings.Count(whole, "\n")
		tokens = append(tokens, luaToken{kind, text, line, n + 1})
		line += n
	}
	for i := 0; i < len(src); {
		rest := src[i:]
		switch c := src[i]; {
		case c == '\n':
			line++
			i++
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case strings.HasPrefix(rest, "--"):
			if end, _ := longBracket(rest[2:]); end != 0 {
				if end < 0 {
					return nil, fmt.Errorf("line %d: comment without an end", line)
				}
				add(luaComment, rest[:2+end], rest[:2+end]+"\n") // several lines, even on one
				line--
				i += 2 + end
				continue
			}
			end := strings.IndexByte(rest, '\n')
			if end < 0 {
				return tokens, nil
			}
			i += end
		case c == '"' || c == '\'':
			end := 1
			for ; end < len(rest) && rest[end] != c; end++ {
				if rest[end] == '\\' {
					end++
				}
			}
			if end >= len(rest) {
				return nil, fmt.Errorf("line %d: string without an end", line)
			}
			add(luaString, rest[1:end], rest[:end])
			i += end + 1
		case c == '[':
			end, level := longBracket(rest)
			if end < 0 {
				return nil, fmt.Errorf("line %d: string without an end", line)
			}
			if end == 0 {
				add(luaSign, "[", "")
				i++
				continue
			}
			add(luaString, rest[level+2:end-level-2], rest[:end])
			i += end
		case isWord(c):
			end := 1
			// A dot belongs to a number, not to a name; two are a concatenation.
			for end < len(rest) && (isWord(rest[end]) || isDigit(c) && rest[end] == '.' && rest[end-1] != '.' && !strings.HasPrefix(rest[end:], "..")) {
				end++
			}
			kind := luaName
			if isDigit(c) {
				kind = luaNumber
			}
			add(kind, rest[:end], "")
			i += end
		default:
			text := rest[:1]
			for _, sign := range []string{"...", "..", "==", "~=", "<=", ">="} {
				if strings.HasPrefix(rest, sign) {
					text = sign
					break
				}
			}
			add(luaSign, text, "")
			i += len(text)
		}
	}
	return tokens, nil
}

// longBracket returns where a string such as [[…]] or [=[…]=] at the beginning of
// s ends and how many = it has: 0 if there is none, negative if it has no end.
func longBracket(s string) (end, level int) {
	if !strings.HasPrefix(s, "[") {
		return 0, 0
	}
	for level+1 < len(s) && s[level+1] == '=' {
		level++
	}
	if level+1 >= len(s) || s[level+1] != '[' {
		return 0, 0
	}
	closing := "]" + strings.Repeat("=", level) + "]"
	at := strings.Index(s, closing)
	if at < 0 {
		return -1, level
	}
	return at + len(closing), level
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isWord(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// at returns the text of a token, or "" outside the script.
func at(tokens []luaToken, i int) string {
	if i < 0 || i >= len(tokens) {
		return ""
	}
	return tokens[i].text
}

func joinLua(tokens []luaToken) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(t.text)
	}
	return b.String()
}

// depthChange returns 1 for a sign or keyword that opens, -1 for one that closes.
func depthChange(t luaToken) int {
	if t.kind == luaSign && strings.Contains("([{", t.text) {
		return 1
	}
	if t.kind == luaSign && strings.Contains(")]}", t.text) {
		return -1
	}
	return 0
}

// luaClosing returns the index of the bracket that closes the one at open.
func luaClosing(tokens []luaToken, open int) int {
	depth := 0
	for i := open; i < len(tokens); i++ {
		if depth += depthChange(tokens[i]); depth == 0 {
			return i
		}
	}
	return len(tokens)
}

// splitLua splits at the commas outside brackets. There is at least one part.
func splitLua(tokens []luaToken) [][]luaToken {
	parts := [][]luaToken{nil}
	depth := 0
	for _, t := range tokens {
		depth += depthChange(t)
		if depth == 0 && t.kind == luaSign && t.text == "," {
			parts = append(parts, nil)
			continue
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], t)
	}
	return parts
}

// expandCallAlias writes redis.call out again in a script that has
// "local call = redis.call", as those on the fast path do.
func expandCallAlias(tokens []luaToken) []luaToken {
	for i := range tokens {
		if at(tokens, i) != "local" || at(tokens, i+2) != "=" || at(tokens, i+3) != "redis" || at(tokens, i+4) != "." ||
			luaExpressionEnd(tokens, i+3) != i+6 || at(tokens, i+6) == "," {
			continue
		}
		alias, call := tokens[i+1].text, tokens[i+3:i+6]
		expanded := slices.Clone(tokens[:i])
		for j := i + 6; j < len(tokens); j++ {
			if t := tokens[j]; t.kind == luaName && t.text == alias && at(tokens, j-1) != "." {
				for _, c := range call {
					c.line = t.line
					expanded = append(expanded, c)
				}
			} else {
				expanded = append(expanded, t)
			}
		}
		return expandCallAlias(expanded)
	}
	return tokens
}

// luaKeyNames returns the variables of a script that only ever hold KEYS[…]: those
// assigned from it, or from another such variable, and from nothing else. It takes
// variables of one name for one.
func luaKeyNames(tokens []luaToken) map[string]bool {
	fromKeys, fromElsewhere := map[string]bool{}, map[string]bool{}
	aliases := map[string][]string{}
	braces := 0
	for i, t := range tokens {
		if t.kind == luaSign {
			braces += strings.Count(t.text, "{") - strings.Count(t.text, "}")
		}
		switch {
		case t.kind == luaName && t.text == "function":
			open := i + 1
			for open < len(tokens) && tokens[open].text != "(" {
				open++
			}
			for _, param := range splitLua(tokens[min(open+1, len(tokens)):luaClosing(tokens, open)]) {
				fromElsewhere[joinLua(param)] = true
			}
		case t.kind == luaName && t.text == "in":
			overKeys := at(tokens, i+1) == "ipairs" && at(tokens, i+3) == "KEYS" && at(tokens, i+4) == ")"
			for j, name := range luaTargets(tokens, i) {
				if overKeys && j == 1 {
					fromKeys[name] = true
				} else {
					fromElsewhere[name] = true
				}
			}
		case t.kind == luaSign && t.text == "=" && braces == 0:
			from := i + 1
			for _, name := range luaTargets(tokens, i) {
				end := luaExpressionEnd(tokens, from)
				switch {
				case at(tokens, from) == "KEYS" && at(tokens, from+1) == "[" && luaClosing(tokens, from+1) == end-1:
					fromKeys[name] = true
				case end == from+1 && tokens[from].kind == luaName:
					aliases[name] = append(aliases[name], tokens[from].text)
				default:
					fromElsewhere[name] = true
				}
				if from = end; at(tokens, end) == "," {
					from++
				}
			}
		}
	}
	// A name is out if anything it is assigned from is out or not in, until that
	// changes nothing.
	for name := range aliases {
		fromKeys[name] = true
	}
	for changed := true; changed; {
		changed = false
		for name := range fromKeys {
			notKey := func(other string) bool { return !fromKeys[other] }
			if fromElsewhere[name] || slices.ContainsFunc(aliases[name], notKey) {
				delete(fromKeys, name)
				changed = true
			}
		}
	}
	return fromKeys
}

// luaTargets returns what is assigned to before the token at end, "" for what is
// not a plain variable.
func luaTargets(tokens []luaToken, end int) (names []string) {
	for i := end - 1; i >= 0; i-- {
		last := i
		for i >= 0 { // back to where this target begins
			if depthChange(tokens[i]) < 0 {
				for depth := -1; depth != 0 && i > 0; depth += depthChange(tokens[i]) {
					i--
				}
				i--
			} else if at(tokens, i-1) == "." {
				i -= 2
			} else {
				break
			}
		}
		name := ""
		if i == last {
			name = at(tokens, i)
		}
		names = append([]string{name}, names...)
		if i--; at(tokens, i) != "," {
			break
		}
	}
	return names
}

// luaExpressionEnd returns the index after the expression that begins at from: of
// a comma, or of what can't continue it and so begins the next statement.
func luaExpressionEnd(tokens []luaToken, from int) int {
	operand := false // the last token ends an operand
	for i := from; i < len(tokens); i++ {
		t := tokens[i]
		word := t.kind == luaName && t.text != "and" && t.text != "or" && t.text != "not"
		switch {
		case t.kind == luaSign && (t.text == "," || t.text == ";" || depthChange(t) < 0):
			return i
		case depthChange(t) > 0:
			i = luaClosing(tokens, i)
			operand = true
		case operand && word:
			return i
		default:
			operand = word || t.kind == luaNumber || t.kind == luaString
		}
	}
	return len(tokens)
}

var badScripts = []bad{
	{"luaHeader", `
=== a.lua
-- a.lua: good.
--
-- KEYS[1]  string  first
-- KEYS[2..n] zset  others
-- ARGV[1…] int     numbers
-- Returns  int
-- Writes   nothing
local k = KEYS[1] -- ARGV[7] in a comment
for i = 2, #KEYS do redis.call('GET', KEYS[i]) end
return #ARGV
=== b.lua
-- does things
-- KEYS[1]  string  used
-- KEYS[3]  string  not used
-- ARGV[2]  int     only in a string
return redis.call('GET', KEYS[1], KEYS[2], ARGV[1], 'ARGV[2]', KEYS[i])
=== c.lua
return 1
-- c.lua: too late
-- Returns  int
-- Writes   nothing
=== d.lua
-- d.lua: a range that is none.
-- KEYS     all of them
-- Returns  int
-- Writes   nothing
return redis.call('GET', KEYS[1])
`, []string{
		`b.lua: declares ARGV[2]`, `b.lua: declares KEYS[3]`, `b.lua: indexes KEYS with a variable`,
		`b.lua: the first line`, `b.lua: the header has no Returns`, `b.lua: the header has no Writes`,
		`b.lua: uses ARGV[1]`, `b.lua: uses KEYS[2]`,
		`c.lua: the first line`, `c.lua: the header has no Returns`, `c.lua: the header has no Writes`,
		`d.lua: declares a range of KEYS`,
	}},
	{"luaKeys", `
=== a.lua
local key, v, t = KEYS[at + 1], vals[1], {k2 = 1}
local one = KEYS[1]
redis.call('SET', key, v .. ',' .. f(1, 2), 'PX', 1)
if redis.pcall('GET', one) then one = KEYS[2] end
redis.call('MGET', unpack(KEYS))
redis.call("del", KEYS[1], KEYS[2], key)
for i, k in ipairs(KEYS) do redis.call('DEL', k) end
redis.call('TIME') redis.call('PUBLISH', ARGV[1], 'x')
t.x, key = 1, KEYS[3]
local w, last = 5, KEYS[2]
local from = one
if x then from = KEYS[2] end
redis.call('GET', from)
return redis.call('GET', last)
=== b.lua
redis.call('GET', ARGV[1])
redis.call('GET', KEYS[1] .. ':x')
local k = KEYS[1] .. ARGV[1]
redis.call('GET', k)
local m, n = f(KEYS[1])
redis.call('GET', n)
local function g(p) return redis.call('GET', p) end
local both = KEYS[1]
both = 'x'
redis.call('GET', both)
redis.call('RENAME', KEYS[1], 'x')
redis.call(name, KEYS[1])
local both2, call = 1, redis.call
redis.call('DBSIZE')
redis.call('DEL', KEYS[1], unpack(ARGV))
local c = { d = KEYS[1] }
redis.call('GET', d)
for i, e in ipairs(ARGV) do redis.call('DEL', e) end
local h = both redis.call('DEL', h)
local j = true redis.call('DEL', j)
local pc = redis.pcall
pc('DEL', KEYS[1])
pc('GET', 'x')
`, []string{
		"b.lua: line 10: GET on both", "b.lua: line 11: RENAME on x", "b.lua: line 12: the command", "b.lua: line 13: redis.call is not called",
		"b.lua: line 14: DBSIZE without", "b.lua: line 15: DEL on unpack(ARGV)", "b.lua: line 17: GET on d", "b.lua: line 18: DEL on e",
		"b.lua: line 19: DEL on h", "b.lua: line 1: GET on ARGV[1]", "b.lua: line 20: DEL on j",
		"b.lua: line 23: GET on x",
		"b.lua: line 2: GET on KEYS[1]..:x", "b.lua: line 4: GET on k", "b.lua: line 6: GET on n",
		"b.lua: line 7: GET on p",
	}},
	{"luaCode", `
=== a.lua
local a = 'it\'s -- not a comment' .. [[one line]] .. "2" .. 1 .. 2.5
local t = redis.call('TIME')
=== b.lua
#!lua flags=no-writes
=== c.lua
local s = [[
-- lost
]]
--[[ this
stays ]]
return cmsgpack.pack(redis.call('TIME'), redis.call("time"))
=== d.lua
return 'open
=== e.lua
return '\
--' .. [==[
]] x ]==]
`, []string{
		"b.lua: has a #! line", "c.lua: asks for TIME", "c.lua: line 1: a string or comment", "c.lua: line 4: a string or comment",
		"c.lua: line 6: uses cmsgpack", "d.lua: line 1: string without an end", "e.lua: line 1: a string", "e.lua: line 2: a string",
	}},
	{"embedded", `
=== p/a.go
package p
import _ "embed"
//go:embed one.lua
var one string
var (
	//go:embed two.lua
	two string
	//go:embed three.lua
	three string
	a = roundtrip.NewScript(one)
)
=== p/b.go
package p
var b = roundtrip.NewScript(two)
=== p/c_test.go
package p
var c = roundtrip.NewScript(three)
=== p/one.lua
return 1
=== p/two.lua
return 2
=== p/three.lua
return 3
=== p/four.lua
return 4
`, []string{"p/four.lua: is not", "p/three.lua: is not"}},
}
