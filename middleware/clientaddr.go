package middleware

import (
	"fmt"
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

	// HeaderFrom names who writes Header, if it is not the proxy that connects here: of
	// CDN → nginx → app the addresses of the CDN, while Trusted has nginx's. The hops are
	// followed along X-Forwarded-For, and Header is believed only where one of HeaderFrom
	// is reached; whoever comes to nginx past the CDN is taken for what X-Forwarded-For
	// says. For the headers of CDNs, CF-Connecting-IP, True-Client-IP, Fastly-Client-IP,
	// X-Azure-ClientIP and CloudFront-Viewer-Address, empty means those of Trusted that
	// are public, since a proxy in front of the app passes on what anybody sent.
	HeaderFrom []netip.Prefix

	// Hops, for proxies whose addresses are not known, says how many there are: the
	// client is the entry of the list at that place from the right, what the outermost
	// proxy wrote. Whoever can reach the app past them can then name any address. A list
	// that is shorter, or no address there, gives the TCP peer. Not with Trusted.
	Hops int

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
// ClientAddr panics if a prefix or header name is invalid or cfg contradicts itself,
// since that is a mistake in the program.
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
// program is found when it starts; use [ParsePrefixes] for what users configure.
func Prefixes(cidrs ...string) []netip.Prefix {
	out, err := ParsePrefixes(cidrs...)
	if err != nil {
		panic(err.Error())
	}
	return out
}

// ParsePrefixes is Prefixes with an error for the first that is malformed.
func ParsePrefixes(cidrs ...string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, len(cidrs))
	for i, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		if !strings.Contains(s, "/") {
			var addr netip.Addr
			addr, err = netip.ParseAddr(s)
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("middleware: %q is neither an address nor a prefix such as 10.0.0.0/8: %w", s, err)
		}
		out[i] = p
	}
	return out, nil
}

type resolver struct {
	cfg    ClientAddrConfig
	header string
	from   []netip.Prefix // who writes a header with a single address; empty: the trusted peer
	list   func(lines []string, yield func(netip.Addr) bool)
}

func newResolver(cfg ClientAddrConfig) *resolver {
	cfg.Trusted, cfg.HeaderFrom = unmapped(cfg.Trusted), unmapped(cfg.HeaderFrom)
	if cfg.MaxHops < 0 || cfg.Hops < 0 {
		panic("middleware: ClientAddrConfig.MaxHops or Hops is negative; use zero for the default")
	}
	if cfg.MaxHops == 0 {
		cfg.MaxHops = 32
	}
	if tokenLen(cfg.Header) != len(cfg.Header) {
		panic("middleware: ClientAddrConfig.Header is no name of a header: " + cfg.Header)
	}
	res := &resolver{cfg: cfg, header: http.CanonicalHeaderKey(cfg.Header), from: cfg.HeaderFrom}
	switch res.header {
	case "":
		res.header = "X-Forwarded-For"
		res.list = walkXFF
	case "X-Forwarded-For":
		res.list = walkXFF
	case "Forwarded":
		res.list = walkForwarded
	case "Cf-Connecting-Ip", "True-Client-Ip", "Fastly-Client-Ip", "X-Azure-Clientip", "Cloudfront-Viewer-Address":
		if len(res.from) == 0 && len(cfg.Trusted) > 0 {
			for _, p := range cfg.Trusted {
				if public(p.Addr()) {
					res.from = append(res.from, p)
				}
			}
			if len(res.from) == 0 {
				panic("middleware: ClientAddrConfig.Header is one of a CDN, and Trusted has no public address: a proxy passes on what anybody sent; name the CDN's addresses in HeaderFrom")
			}
		}
	}
	if res.list != nil && len(cfg.HeaderFrom) > 0 {
		panic("middleware: ClientAddrConfig.HeaderFrom is for a Header with a single address; put all proxies of a list into Trusted")
	}
	if cfg.Hops > 0 && (res.list == nil || len(cfg.Trusted) > 0) {
		panic("middleware: ClientAddrConfig.Hops counts entries of a list, and trusts by number; use it without Trusted and with X-Forwarded-For or Forwarded")
	}
	return res
}

// unmapped copies prefixes, those of IPv4-mapped addresses as IPv4.
func unmapped(prefixes []netip.Prefix) []netip.Prefix {
	prefixes = slices.Clone(prefixes)
	for i, p := range prefixes {
		if !p.IsValid() {
			panic("middleware: ClientAddrConfig.Trusted or HeaderFrom has an invalid prefix; use netip.MustParsePrefix or middleware.Prefixes")
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			prefixes[i] = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
	}
	return prefixes
}

// public reports whether addr is one that the internet routes.
func public(addr netip.Addr) bool {
	return addr.IsGlobalUnicast() && !addr.IsPrivate() && !netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(addr)
}

func (res *resolver) resolve(r *http.Request) netip.Addr {
	if res.cfg.Resolve != nil {
		return plain(res.cfg.Resolve(r))
	}
	peer := parseAddr(r.RemoteAddr)
	if n := res.cfg.Hops; n > 0 {
		client := peer
		res.list(r.Header[res.header], func(addr netip.Addr) bool {
			if n--; n == 0 && addr.IsValid() {
				client = addr
			}
			return n > 0
		})
		return client
	}
	if !res.trusts(peer) && !contains(res.from, peer) {
		if len(res.cfg.Trusted) == 0 && !res.cfg.TrustUnixSocket {
			warnForwarded(res.cfg.Logger, r)
		}
		return peer
	}
	if res.list != nil {
		client, _ := res.walk(peer, r.Header[res.header])
		return client
	}
	if len(res.from) > 0 && !contains(res.from, peer) {
		if client, reached := res.walk(peer, r.Header["X-Forwarded-For"]); !reached {
			return client
		}
	}
	lines := r.Header[res.header] // a single address: the last line is the proxy's
	if len(lines) == 0 {
		return peer
	}
	value := trimOWS(lines[len(lines)-1])
	if res.header == "Cloudfront-Viewer-Address" { // always with a port, and never in brackets
		if i := strings.LastIndexByte(value, ':'); i >= 0 && isPort(value[i:]) {
			value = value[:i]
		}
	}
	if addr := parseAddr(value); addr.IsValid() {
		return addr
	}
	return peer
}

// walk follows the hops of a list from peer, past those that are trusted. It reports
// whether one of those was reached that write the header.
func (res *resolver) walk(peer netip.Addr, lines []string) (client netip.Addr, reached bool) {
	client, hops := peer, 0
	list := res.list
	if list == nil {
		list = walkXFF
	}
	list(lines, func(addr netip.Addr) bool {
		if hops++; hops > res.cfg.MaxHops || !addr.IsValid() {
			return false
		}
		client = addr
		reached = contains(res.from, addr)
		return !reached && res.trusts(addr)
	})
	return client, reached
}

func (res *resolver) trusts(addr netip.Addr) bool {
	if !addr.IsValid() {
		return res.cfg.TrustUnixSocket
	}
	return contains(res.cfg.Trusted, addr)
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
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
	if strings.Count(s, ":") == 8 && !strings.Contains(s, "::") { // all of IPv6, and a port without brackets
		i := strings.LastIndexByte(s, ':')
		if !isPort(s[i:]) {
			return netip.Addr{}
		}
		s = s[:i]
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

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052, and RFC 7755 for servers
	teredo    = netip.MustParsePrefix("2001::/32")    // RFC 4380
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056
)

// translated returns the IPv4 address of a client whose IPv6 address is one that a
// translator or relay made of it, for its account: the /64 network of such an address
// belongs to everybody or to one of many that the client has. It is never used to decide
// whom to trust, since a client chooses what it embeds.
func translated(addr netip.Addr) netip.Addr {
	if !addr.Is6() {
		return addr
	}
	b := addr.As16()
	var v4 [4]byte
	switch {
	case nat64.Contains(addr):
		copy(v4[:], b[12:])
	case sixToFour.Contains(addr):
		copy(v4[:], b[2:])
	case teredo.Contains(addr):
		for i := range v4 {
			v4[i] = ^b[12+i]
		}
	default:
		return addr
	}
	if embedded := netip.AddrFrom4(v4); public(embedded) {
		return embedded
	}
	return addr
}

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
