package session

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/gorilla/sessions"
)

const (
	// maxCookieAge is the longest Max-Age that browsers honour: 400 days
	// (RFC 6265bis, section 5.5).
	maxCookieAge = 400 * 24 * 60 * 60
	// maxCookieBytes is the size of name and value that every browser stores
	// (RFC 6265bis, section 5.6).
	maxCookieBytes = 4096
	// maxAttributeBytes is the size of an attribute's value beyond which browsers ignore it
	// (RFC 6265bis, section 5.6).
	maxAttributeBytes = 1024
	// maxCandidates is how many cookies of one name are tried: a subdomain or an
	// earlier path may have set others that the browser sends first. It is the number
	// that browsers keep for a domain at least (RFC 6265, section 6.1).
	maxCandidates = 50
)

// HostName returns the cookie name "__Host-" + name. Browsers accept such a
// cookie only if it is Secure, for the whole host (Path=/) and for no other
// (without Domain), so that no subdomain can plant one.
func HostName(name string) string { return "__Host-" + name }

// cookieValues calls yield with the value of each cookie called name, in the
// order of the request, until yield returns false. It reads the header as
// http.Request.CookiesNamed does, without allocating.
func cookieValues(h http.Header, name string, yield func(value string) bool) {
	if name == "" {
		return
	}
	for _, line := range h["Cookie"] {
		for len(line) > 0 {
			var part string
			part, line, _ = strings.Cut(line, ";")
			part = textproto.TrimString(part)
			if !strings.HasPrefix(part, name) {
				continue
			}
			n, value, _ := strings.Cut(part, "=")
			if textproto.TrimString(n) != name {
				continue
			}
			if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			if !validCookieValue(value) {
				continue
			}
			if !yield(value) {
				return
			}
		}
	}
}

func validCookieValue(s string) bool { return only(s, inCookie) }

const (
	inCookie uint8 = 1 << iota // what net/http reads in a cookie's value
	unquoted                   // what it writes there as it is
)

// classes has the classes of each byte: going through a token byte by byte costs a
// third of the time with it.
var classes = func() (t [256]uint8) {
	for c := byte(0x20); c < 0x7f; c++ {
		if c != '"' && c != ';' && c != '\\' {
			t[c] |= inCookie
		}
		if l := c | 0x20; 'a' <= l && l <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' {
			t[c] |= unquoted
		}
	}
	return t
}()

// only reports whether all bytes of s are of the class.
func only(s string, class uint8) bool {
	all := class
	for i := range len(s) {
		all &= classes[s[i]]
	}
	return all != 0
}

// checkCookie reports everything that would make browsers refuse a cookie, or
// ignore what its name promises. Prefixes are compared as browsers do, without
// regard to case.
func checkCookie(name, value string, o *sessions.Options) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrCookie}, args...)...))
	}
	has := func(prefix string) bool {
		return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
	}
	host := has("__Host-") || has("__Host-Http-")
	if host && (!o.Secure || o.Path != "/" || o.Domain != "") {
		bad("a __Host- name needs Secure, Path=/ and no Domain")
	}
	if (has("__Secure-") || has("__Http-")) && !o.Secure {
		bad("a __Secure- or __Http- name needs Secure")
	}
	if (has("__Http-") || has("__Host-Http-")) && !o.HttpOnly {
		bad("a __Http- or __Host-Http- name needs HttpOnly")
	}
	if o.SameSite == http.SameSiteNoneMode && !o.Secure {
		bad("SameSite=None needs Secure")
	}
	if o.Partitioned && !o.Secure {
		bad("Partitioned needs Secure")
	}
	if o.Partitioned && o.SameSite != http.SameSiteNoneMode {
		bad("Partitioned needs SameSite=None, as it is for other sites' pages only")
	}
	// A name that net/http does not send is saved without a cookie, as gorilla does.
	c := http.Cookie{Name: "s", Value: value, Path: o.Path, Domain: o.Domain}
	if err := c.Valid(); err != nil { // net/http would leave it out, or a part of it
		bad("%w", err)
	}
	if o.Path != "" && o.Path[0] != '/' {
		bad("Path %.80q does not begin with /, so browsers would ignore it", o.Path)
	}
	if len(o.Path) > maxAttributeBytes || len(o.Domain) > maxAttributeBytes {
		bad("Path or Domain is longer than %d bytes, so browsers would ignore it", maxAttributeBytes)
	}
	if o.SameSite < 0 || o.SameSite > http.SameSiteNoneMode {
		bad("SameSite is %d; use one of http.SameSite's constants", o.SameSite)
	}
	if len(name)+len(value) > maxCookieBytes {
		bad("name and value are longer than %d bytes", maxCookieBytes)
	}
	return errors.Join(errs...)
}

// attributes are what follows the value in a Set-Cookie line, as net/http wrote them
// the last time. They are the same for all cookies of a session's name that end with the
// browser, so that a line is put together in a quarter of the time.
type attributes struct {
	name string
	opts sessions.Options
	text string
}

// cookieLine returns the Set-Cookie line, "" for a name that net/http does not send,
// such as "my session".
func (st *Store) cookieLine(name, value string, o *sessions.Options) string {
	known := o.MaxAge == 0 && only(value, unquoted)
	if a := st.attributes.Load(); known && a != nil && a.name == name && a.opts == *o {
		return name + "=" + value + a.text
	}
	line := sessions.NewCookie(name, value, o).String()
	if text, ok := strings.CutPrefix(line, name+"="+value); ok && known {
		st.attributes.Store(&attributes{name: name, opts: *o, text: text})
	}
	return line
}

// writeCookie puts the cookie into w's headers, in place of an earlier one of the
// same name, domain and path, which browsers would store it over. A line for another domain
// or path stays: an app that moves its cookie deletes the old one that way. It reports
// whether it wrote one.
func (st *Store) writeCookie(w http.ResponseWriter, name, value string, o *sessions.Options, maxAge int) bool {
	if w == nil {
		return false
	}
	opts := *o
	opts.MaxAge = min(maxAge, maxCookieAge)
	line := st.cookieLine(name, value, &opts)
	if line == "" {
		return false
	}
	h := w.Header()
	values := new([2]string) // of both headers, in one allocation
	values[0] = line
	if before := h["Set-Cookie"]; len(before) == 0 {
		h["Set-Cookie"] = values[:1:1]
	} else {
		kept := make([]string, 0, len(before)+1)
		for _, l := range before {
			if n, _, _ := strings.Cut(l, "="); n != name || !samePlace(l, line) {
				kept = append(kept, l)
			}
		}
		h["Set-Cookie"] = append(kept, line)
	}
	if h.Get("Cache-Control") == "" {
		values[1] = "no-store" // a cache must not hand it to others
		h["Cache-Control"] = values[1:]
	}
	return true
}

// samePlace reports whether two Set-Cookie lines have the same domain and path.
func samePlace(a, b string) bool {
	x, err := http.ParseSetCookie(a)
	y, err2 := http.ParseSetCookie(b)
	if err != nil || err2 != nil {
		return true
	}
	return x.Path == y.Path && strings.EqualFold(strings.TrimPrefix(x.Domain, "."), strings.TrimPrefix(y.Domain, "."))
}

// seconds is time.Duration(n) * time.Second that does not overflow.
func seconds(n int) time.Duration {
	if n > int(maxLife/time.Second) {
		return maxLife
	}
	return time.Duration(n) * time.Second
}
