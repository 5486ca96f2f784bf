package tests

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	inlineLink = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?: +"[^"]*")?\)`)
	refLink    = regexp.MustCompile(`(?m)^ {0,3}\[[^\]^]+\]: *(\S+)`)
	htmlLink   = regexp.MustCompile(`(?:src|href)="([^"]+)"`)
	heading    = regexp.MustCompile(`(?m)^ {0,3}#{1,6} +(.+?) *#* *$`)
	htmlAnchor = regexp.MustCompile(`<a [^>]*(?:id|name)="([^"]+)"`)
	codeSpan   = regexp.MustCompile("`+[^`\n]*`+")
	ourPages   = "https://github.com/redporch/redporch/blob/main/"
)

// anchors returns what a page's headings can be linked as on GitHub.
func (m markdown) anchors() map[string]bool {
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(m.text, -1) {
		slug := slugify(h[1])
		name := slug
		for n := 1; found[name]; n++ {
			name = fmt.Sprintf("%s-%d", slug, n)
		}
		found[name] = true
	}
	for _, a := range htmlAnchor.FindAllStringSubmatch(m.text, -1) {
		found[a[1]] = true
	}
	return found
}

// slugify is how GitHub makes an anchor of a heading.
func slugify(text string) string {
	text = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(text, "$1")
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

func (m markdown) links() (urls []string) {
	text := codeSpan.ReplaceAllString(m.text, "code") // "[a](b)" in code is none
	for _, re := range []*regexp.Regexp{inlineLink, refLink, htmlLink} {
		for _, found := range re.FindAllStringSubmatch(text, -1) {
			urls = append(urls, found[1])
		}
	}
	return urls
}

// TestLinks: what a page links to inside the repository is there, anchors too.
func TestLinks(t *testing.T) {
	all := pages(t)
	anchors := map[string]map[string]bool{}
	for _, m := range all {
		anchors[m.path] = m.anchors()
	}
	checked := 0
	for _, m := range all {
		for _, link := range m.links() {
			target, local := strings.CutPrefix(link, ourPages)
			u, err := url.Parse(target)
			if err != nil {
				t.Errorf("%s: link %q: %v", m.path, link, err)
				continue
			}
			if u.IsAbs() {
				continue
			}
			checked++
			to := m.path
			switch {
			case local:
				to = u.Path
			case u.Path != "":
				to = path.Join(path.Dir(m.path), u.Path)
			}
			if strings.HasPrefix(to, "..") || strings.HasPrefix(u.Path, "/") {
				t.Errorf("%s: link %q leads out of the repository", m.path, link)
				continue
			}
			if _, err := os.Stat(path.Join(root, to)); err != nil {
				t.Errorf("%s: link %q: there is no %s", m.path, link, to)
				continue
			}
			if u.Fragment != "" && strings.HasSuffix(to, ".md") && !anchors[to][u.Fragment] {
				t.Errorf("%s: link %q: %s has no such heading", m.path, link, to)
			}
		}
	}
	if checked < 20 {
		t.Errorf("checked %d links; something is wrong", checked)
	}
}

func TestSlugify(t *testing.T) {
	for text, want := range map[string]string{
		"When Redis is down":        "when-redis-is-down",
		"`session.Config`, Keys?":   "sessionconfig-keys",
		"A [link](x.md) & more_one": "a-link--more_one",
	} {
		if got := slugify(text); got != want {
			t.Errorf("slugify(%q) = %q; want %q", text, got, want)
		}
	}
	m := parse("a.md", "# One\n## One\n```\n# No\n```\n[x](b.md#c) `[y](z)` <img src=\"p.png\">\n[r]: q.md\n")
	a := m.anchors()
	if len(a) != 2 || !a["one"] || !a["one-1"] {
		t.Errorf("anchors are %v; want one and one-1", a)
	}
	if got := strings.Join(m.links(), " "); got != "b.md#c q.md p.png" {
		t.Errorf("links are %q; want b.md#c q.md p.png", got)
	}
}

// TestEveryPageIsReachable: docs/README.md leads to every page in docs/.
func TestEveryPageIsReachable(t *testing.T) {
	var index markdown
	all := pages(t)
	for _, m := range all {
		if m.path == "docs/README.md" {
			index = m
		}
	}
	linked := map[string]bool{"docs/README.md": true}
	for _, link := range index.links() {
		link, _, _ = strings.Cut(link, "#")
		linked[path.Join("docs", link)] = true
	}
	for _, m := range all {
		if path.Dir(m.path) == "docs" && !linked[m.path] {
			t.Errorf("%s is not linked from docs/README.md", m.path)
		}
	}
}
