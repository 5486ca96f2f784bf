package middleware

import (
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ClientAddrConfig says whom to believe about where a request comes from. The
// zero value believes nobody: the client is the TCP peer, http.Request.RemoteAddr.
type ClientAddrConfig struct {
	// Trusted names the proxies whose word counts, as prefixes of their own
	// addresses, such as 10.0.0.0/8. A header is read only if the TCP peer is in
	// one of them. The function Prefixes makes such a list.
	Trusted []netip.Prefix

	// TrustUnixSocket trusts a peer that has no address since it is connected
	// through a Unix socket.
	TrustUnixSocket bool

	// Header names the request header the trusted proxies write. Empty means
	// X-Forwarded-For. X-Forwarded-For and Forwarded (RFC 7239) are lists, which
	// are walked from right to left; every other name is taken as a header with a
	// single address that the proxy overwrites, such as X-Real-IP or
	// CF-Connecting-IP. True-Client-IP and Fastly-Client-IP are passed through
	// from the client by default at their vendors: configure the proxy first.
	Header string

	// MaxHops bounds how many entries of a list are looked at. Zero means 32.
	MaxHops int

	// Resolve, when set, replaces all of the above: it returns the client's
	// address, or the zero Addr if it is not known. Use it with a router that has
	// its own resolver, such as chi's middleware.GetClientIPAddr.
	Resolve func(r *http.Request) netip.Addr

	// Logger gets the warnings. Nil means slog.Default().
	Logger *slog.Logger
}

// ClientAddr finds out the address of the client of each request, once, for
// [ClientAddrOf], [ClientIP] and AccessLog.
//
// The TCP peer counts as the last hop. All lines of the list header are one
// list, walked from right to left, past addresses that are trusted; the first
// that is not is the client. Whatever stands left of it was written by the client
// and is not looked at. The walk stops at an entry that is no address: then the
// client is the last hop that was verified. IPv4-mapped addresses become IPv4,
// zones are dropped, ports are allowed.
//
// ClientAddr panics if a prefix is invalid, since that is a mistake in the
// program.
func ClientAddr(cfg ClientAddrConfig) Middleware {
	res := newResolver(cfg)
	return func(next http.Handler) http.Handler {
		return newLayer(kindClientAddr, next, cfg.Logger, func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			addr := res.resolve(r)
			v.mu.Lock()
			v.addr = addr
			v.mu.Unlock()
			next.ServeHTTP(w, r)
		})
	}
}

// ClientAddrOf returns the address of r's client as ClientAddr has resolved it,
// or the TCP peer's if ClientAddr is not in the chain. It is the zero Addr, for
// which IsValid is false, if the address is not known.
func ClientAddrOf(r *http.Request) netip.Addr {
	addr, _ := clientAddr(r)
	return addr
}

// clientAddr also tells whether ClientAddr has seen the request.
func clientAddr(r *http.Request) (addr netip.Addr, resolved bool) {
	if v := visitOf(r); v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.passed&kindClientAddr != 0 {
			return v.addr, true
		}
	}
	return parseAddr(r.RemoteAddr), false
}

// Prefixes parses CIDR prefixes and single addresses for
// [ClientAddrConfig.Trusted]. It panics if one is malformed, so that a typo in a
// program is found when it starts; use netip.ParsePrefix for what users configure.
func Prefixes(cidrs ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(cidrs))
	for i, s := range cidrs {
		if !strings.Contains(s, "/") {
			addr := netip.MustParseAddr(s)
			out[i] = netip.PrefixFrom(addr, addr.BitLen())
			continue
		}
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

type resolver struct {
	cfg    ClientAddrConfig
	header string
	list   func(lines []string, yield func(netip.Addr) bool)
}

func newResolver(cfg ClientAddrConfig) *resolver {
	cfg.Trusted = slices.Clone(cfg.Trusted)
	for i, p := range cfg.Trusted {
		if !p.IsValid() {
			panic("middleware: ClientAddrConfig.Trusted has an invalid prefix; use netip.MustParsePrefix or middleware.Prefixes")
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			cfg.Trusted[i] = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
	}
	if cfg.MaxHops < 0 {
		panic("middleware: ClientAddrConfig.MaxHops is negative; use zero for 32")
	}
	if cfg.MaxHops == 0 {
		cfg.MaxHops = 32
	}
	res := &resolver{cfg: cfg, header: http.CanonicalHeaderKey(cfg.Header)}
	switch res.header {
	case "":
		res.header = "X-Forwarded-For"
		res.list = walkXFF
	case "X-Forwarded-For":
		res.list = walkXFF
	case "Forwarded":
		res.list = walkForwarded
	}
	return res
}

func (res *resolver) resolve(r *http.Request) netip.Addr {
	if res.cfg.Resolve != nil {
		return plain(res.cfg.Resolve(r))
	}
	peer := parseAddr(r.RemoteAddr)
	if !res.trusts(peer) {
		if len(res.cfg.Trusted) == 0 && !res.cfg.TrustUnixSocket {
			warnForwarded(res.cfg.Logger, r)
		}
		return peer
	}
	lines := r.Header[res.header]
	if res.list == nil { // a single address: the last line is the proxy's
		if len(lines) == 0 {
			return peer
		}
		if addr := parseAddr(strings.TrimSpace(lines[len(lines)-1])); addr.IsValid() {
			return addr
		}
		return peer
	}
	client, hops := peer, 0
	res.list(lines, func(addr netip.Addr) bool {
		if hops++; hops > res.cfg.MaxHops || !addr.IsValid() {
			return false
		}
		client = addr
		return res.trusts(addr)
	})
	return client
}

func (res *resolver) trusts(addr netip.Addr) bool {
	if !addr.IsValid() {
		return res.cfg.TrustUnixSocket
	}
	for _, p := range res.cfg.Trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// walkXFF yields the entries of X-Forwarded-For from right to left; an entry
// that is no address as the zero Addr.
func walkXFF(lines []string, yield func(netip.Addr) bool) {
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; {
			entry := rest
			if c := strings.LastIndexByte(rest, ','); c >= 0 {
				entry, rest = rest[c+1:], rest[:c]
			} else {
				more = false
			}
			// Empty elements are legal in lists and mean nothing (RFC 9110,
			// section 5.6.1).
			if entry = trimOWS(entry); entry == "" {
				continue
			}
			if !yield(parseAddr(entry)) {
				return
			}
		}
	}
}

// walkForwarded yields the "for" parameters of Forwarded (RFC 7239) from right
// to left. Each line must be well-formed as a whole, since it can only be read
// from the left: a client could otherwise open a quoted string that swallows
// what a proxy appended.
func walkForwarded(lines []string, yield func(netip.Addr) bool) {
	var elements []netip.Addr
	for i := len(lines) - 1; i >= 0; i-- {
		var ok bool
		if elements, ok = parseForwarded(elements[:0], lines[i]); !ok {
			yield(netip.Addr{})
			return
		}
		for j := len(elements) - 1; j >= 0; j-- {
			if !yield(elements[j]) {
				return
			}
		}
	}
}

// parseForwarded appends the address of each element of one Forwarded line,
// the zero Addr for an element without one: "unknown", an obfuscated identifier,
// or no "for" at all. It reports false if the line is malformed.
func parseForwarded(out []netip.Addr, s string) ([]netip.Addr, bool) {
	for {
		var addr netip.Addr
		var pairs, fors int
		for { // one element: pairs separated by semicolons
			s = strings.TrimLeft(s, " \t")
			name := s[:tokenLen(s)]
			if name != "" {
				s = s[len(name):]
				if s == "" || s[0] != '=' {
					return out, false
				}
				value, rest, ok := forwardedValue(s[1:])
				if !ok {
					return out, false
				}
				s = rest
				pairs++
				if strings.EqualFold(name, "for") {
					if fors++; fors > 1 { // each parameter at most once
						return out, false
					}
					addr = parseAddr(value)
				}
			}
			s = strings.TrimLeft(s, " \t")
			if s == "" || s[0] != ';' {
				break
			}
			s = s[1:]
		}
		if pairs > 0 {
			out = append(out, addr)
		}
		if s == "" {
			return out, true
		}
		if s[0] != ',' {
			return out, false
		}
		s = s[1:]
	}
}

// forwardedValue reads a token or a quoted string.
func forwardedValue(s string) (value, rest string, ok bool) {
	if s == "" || s[0] != '"' {
		n := tokenLen(s)
		// An unquoted address with colons or brackets is no token, but a
		// frequent mistake that can't be misread.
		for n < len(s) && (s[n] == ':' || s[n] == '[' || s[n] == ']') {
			n++
			n += tokenLen(s[n:])
		}
		return s[:n], s[n:], n > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// tokenLen returns the length of the token (RFC 9110, section 5.6.2) that s
// begins with.
func tokenLen(s string) int {
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return i
	}
	return len(s)
}

func trimOWS(s string) string { return strings.Trim(s, " \t") }

// parseAddr reads an address with or without port, zone or brackets: the forms
// that net/http and proxies write. It returns the zero Addr for anything else.
func parseAddr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	if s[0] == '[' {
		end := strings.IndexByte(s, ']')
		if end < 0 || end+1 < len(s) && !isPort(s[end+1:]) {
			return netip.Addr{}
		}
		addr, err := netip.ParseAddr(s[1:end])
		if err != nil || addr.Is4() {
			return netip.Addr{}
		}
		return plain(addr)
	}
	if c := strings.IndexByte(s, ':'); c >= 0 && strings.LastIndexByte(s, ':') == c { // IPv4 with a port
		if !isPort(s[c:]) {
			return netip.Addr{}
		}
		s = s[:c]
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return plain(addr)
}

// isPort reports whether s is a colon and a port number; RFC 7239 allows an
// obfuscated one.
func isPort(s string) bool {
	if len(s) < 2 || len(s) > 64 || s[0] != ':' {
		return false
	}
	if s[1] == '_' {
		return tokenLen(s[1:]) == len(s)-1
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) <= 6
}

// plain makes equal what is one host: IPv4-mapped addresses become IPv4, and
// zones, which mean something on one machine only, are dropped.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// forwardingHeaders are what proxies write, by which one that nobody trusts is
// noticed.
var forwardingHeaders = []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "True-Client-Ip", "Fly-Client-Ip", "Fastly-Client-Ip"}

func warnForwarded(logger *slog.Logger, r *http.Request) {
	for _, name := range forwardingHeaders {
		if _, ok := r.Header[name]; ok {
			warn(logger, WarnUntrustedForwarding, name,
				"request brings "+name+", but no proxy is trusted, so the client is taken to be the TCP peer; "+
					"behind a proxy name its addresses in ClientAddrConfig.Trusted, otherwise somebody is trying to forge an address")
			return
		}
	}
}
