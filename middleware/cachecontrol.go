package middleware

import (
	"net/http"
	"strings"
)

// markPrivate keeps caches from giving one user's response to another: it gets Vary:
// Cookie and Cache-Control: private, or no-store beside a cookie (RFC 9111, section
// 7.3). Fields for certain caches (RFC 9213) that say otherwise are taken out, since
// those caches heed them alone. It reports whether the response was declared public.
func markPrivate(header http.Header, cookie bool) (public bool) {
	varied := false
	for _, line := range header["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			name = trimOWS(name)
			varied = varied || name == "*" || strings.EqualFold(name, "Cookie")
		}
	}
	values := []string{"Cookie", "private"} // one allocation for the common case
	if cookie {
		values[1] = "no-store"
	}
	if old := header["Vary"]; len(old) == 0 {
		header["Vary"] = values[0:1:1]
	} else if !varied {
		header["Vary"] = append(old, "Cookie")
	}

	for name, lines := range header {
		if targeted(name) {
			if _, private, _ := cacheDirectives(lines); !private {
				delete(header, name)
				public = true
			}
		}
	}
	old := header["Cache-Control"]
	if len(old) == 0 {
		header["Cache-Control"] = values[1:2:2]
		return public
	}
	kept, private, shared := cacheDirectives(old)
	public = public || shared
	switch {
	case cookie:
		header["Cache-Control"] = values[1:2:2]
	case shared || !private:
		if !private {
			kept = append(kept, "private")
		}
		header["Cache-Control"] = []string{strings.Join(kept, ", ")}
	}
	return public
}

// targeted reports whether caches of some kind heed the field name instead of
// Cache-Control: those of RFC 9213 and what was there before it.
func targeted(name string) bool {
	return name == "Surrogate-Control" || name == "X-Accel-Expires" || strings.HasSuffix(name, "-Cache-Control")
}

// storable reports whether a shared cache might store the response.
func storable(header http.Header) bool {
	for name, lines := range header {
		if targeted(name) {
			if _, private, _ := cacheDirectives(lines); !private {
				return true
			}
		}
	}
	_, private, _ := cacheDirectives(header["Cache-Control"])
	return !private
}

// cacheDirectives returns the directives of Cache-Control (RFC 9111, section 5.2)
// without those that let shared caches store, which shared reports, and whether
// there is one that keeps all of them from it. A private or no-cache with an argument
// does not: it is about the named fields alone. The field is no structured one, and
// names are in any case, so httpsfv does not read it.
func cacheDirectives(lines []string) (kept []string, private, shared bool) {
	for _, line := range lines {
		for line != "" {
			n := directiveLen(line)
			d := trimOWS(line[:n])
			line = strings.TrimPrefix(line[n:], ",")
			name, _, qualified := strings.Cut(strings.ToLower(d), "=")
			switch name = trimOWS(name); name {
			case "":
				continue
			case "public", "s-maxage":
				shared = true
				continue
			case "private":
				if qualified {
					continue // a plain one is added
				}
				private = true
			case "no-store":
				private = true
			}
			kept = append(kept, d)
		}
	}
	return kept, private, shared
}

// directiveLen returns where the first comma outside of quotes is.
func directiveLen(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			quoted = !quoted
		case '\\':
			if quoted {
				i++
			}
		case ',':
			if !quoted {
				return i
			}
		}
	}
	return len(s)
}
