package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/redporch/redporch/middleware"
)

// clientOf returns the address that ClientAddr finds for a request from peer with
// the given header lines, and the key of ClientIP for it.
func clientOf(cfg middleware.ClientAddrConfig, peer string, header ...string) (addr, key string) {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = peer
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	cfg.Logger = discard()
	middleware.ClientAddr(cfg)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if a := middleware.ClientAddrOf(r); a.IsValid() {
			addr = a.String()
		}
		key = middleware.ClientIP()(r)
	})).ServeHTTP(httptest.NewRecorder(), r)
	return addr, key
}

const (
	xff = "X-Forwarded-For"
	fwd = "Forwarded"
)

// spoofing lists requests and the client each comes from. 10/8 and fd00::/8 are
// trusted proxies; 6.6.6.6 is what an attacker claims to be.
var spoofing = []struct {
	name, header, peer string
	lines              []string
	want               string
}{
	{"no header", "", "203.0.113.9:1", nil, "203.0.113.9"},
	{"direct with forged header", "", "203.0.113.9:1", []string{xff, "6.6.6.6"}, "203.0.113.9"},
	{"direct, forged to look proxied", "", "203.0.113.9:1", []string{xff, "6.6.6.6, 10.0.0.1"}, "203.0.113.9"},
	{"one proxy", "", "10.0.0.1:1", []string{xff, "203.0.113.9"}, "203.0.113.9"},
	{"one proxy, forged on the left", "", "10.0.0.1:1", []string{xff, "6.6.6.6, 203.0.113.9"}, "203.0.113.9"},
	{"two proxies", "", "10.0.0.1:1", []string{xff, "203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
	{"two proxies, forged proxy on the left", "", "10.0.0.1:1", []string{xff, "6.6.6.6, 10.9.9.9, 203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
	{"two lines are one list", "", "10.0.0.1:1", []string{xff, "6.6.6.6", xff, "203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
	{"client's own line does not win", "", "10.0.0.1:1", []string{xff, "203.0.113.9", xff, "198.51.100.7"}, "198.51.100.7"},
	{"no spaces", "", "10.0.0.1:1", []string{xff, "6.6.6.6,203.0.113.9,10.0.0.2"}, "203.0.113.9"},
	{"tabs and empty elements", "", "10.0.0.1:1", []string{xff, "6.6.6.6,\t203.0.113.9 ,, 10.0.0.2,"}, "203.0.113.9"},
	{"garbage stops at the last hop verified", "", "10.0.0.1:1", []string{xff, "6.6.6.6, garbage, 10.0.0.2"}, "10.0.0.2"},
	{"unknown stops", "", "10.0.0.1:1", []string{xff, "6.6.6.6, unknown"}, "10.0.0.1"},
	{"garbage that begins like an address", "", "10.0.0.1:1", []string{xff, "6.6.6.6x"}, "10.0.0.1"},
	{"all trusted: the leftmost", "", "10.0.0.1:1", []string{xff, "10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
	{"header empty", "", "10.0.0.1:1", []string{xff, ""}, "10.0.0.1"},
	{"header missing", "", "10.0.0.1:1", nil, "10.0.0.1"},
	{"IPv4-mapped trusted peer", "", "[::ffff:10.0.0.1]:1", []string{xff, "203.0.113.9"}, "203.0.113.9"},
	{"IPv4-mapped trusted hop", "", "10.0.0.1:1", []string{xff, "203.0.113.9, ::ffff:10.0.0.5"}, "203.0.113.9"},
	{"IPv4-mapped client", "", "10.0.0.1:1", []string{xff, "::ffff:203.0.113.9"}, "203.0.113.9"},
	{"mapped by bits, not by notation", "", "10.0.0.1:1", []string{xff, "2001:db8::1.2.3.4"}, "2001:db8::102:304"},
	{"port on IPv4", "", "10.0.0.1:1", []string{xff, "203.0.113.9:4711"}, "203.0.113.9"},
	{"port on IPv6", "", "10.0.0.1:1", []string{xff, "[2001:db8::9]:4711"}, "2001:db8::9"},
	{"brackets without port", "", "10.0.0.1:1", []string{xff, "[2001:db8::9]"}, "2001:db8::9"},
	{"zone is dropped", "", "10.0.0.1:1", []string{xff, "fe80::1%eth0"}, "fe80::1"},
	{"peer with zone", "", "[fe80::1%eth0]:1", []string{xff, "6.6.6.6"}, "fe80::1"},
	{"trusted IPv6 peer", "", "[fd00::1]:1", []string{xff, "2001:db8::9"}, "2001:db8::9"},
	{"IPv4 in brackets is garbage", "", "10.0.0.1:1", []string{xff, "[203.0.113.9]"}, "10.0.0.1"},
	{"leading zeros are garbage", "", "10.0.0.1:1", []string{xff, "203.0.113.09"}, "10.0.0.1"},
	{"peer without port", "", "203.0.113.9", []string{xff, "6.6.6.6"}, "203.0.113.9"},
	{"Unix socket is not trusted by itself", "", "@", []string{xff, "6.6.6.6"}, ""},
	{"other header is not read", "", "10.0.0.1:1", []string{"X-Real-Ip", "6.6.6.6", fwd, "for=6.6.6.6"}, "10.0.0.1"},

	{"Forwarded", fwd, "10.0.0.1:1", []string{fwd, "for=203.0.113.9"}, "203.0.113.9"},
	{"Forwarded, direct", fwd, "203.0.113.9:1", []string{fwd, "for=6.6.6.6"}, "203.0.113.9"},
	{"Forwarded, the RFC's own", fwd, "10.0.0.1:1", []string{fwd, `for=192.0.2.43, for="[2001:db8:cafe::17]:4711"`}, "2001:db8:cafe::17"},
	{"Forwarded with parameters", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6, For=203.0.113.9;Proto=http;by=10.0.0.2, for=10.0.0.2`}, "203.0.113.9"},
	{"Forwarded, two lines", fwd, "10.0.0.1:1", []string{fwd, "for=6.6.6.6", fwd, "for=203.0.113.9"}, "203.0.113.9"},
	{"Forwarded obfuscated stops", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6, for=_hidden, for="10.0.0.2:_x"`}, "10.0.0.2"},
	{"Forwarded unknown stops", fwd, "10.0.0.1:1", []string{fwd, "for=6.6.6.6, for=unknown"}, "10.0.0.1"},
	{"Forwarded element without for stops", fwd, "10.0.0.1:1", []string{fwd, "for=6.6.6.6, proto=https"}, "10.0.0.1"},
	{"Forwarded, quote opened by the client", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6;x=", for=203.0.113.9`}, "10.0.0.1"},
	{"Forwarded, quote closed by the proxy's", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6;x=", for="[2001:db8::9]"`}, "10.0.0.1"},
	{"Forwarded, client's line malformed, proxy's not", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6;x="`, fwd, "for=203.0.113.9"}, "203.0.113.9"},
	{"Forwarded, escaped quote", fwd, "10.0.0.1:1", []string{fwd, `for=6.6.6.6;x="a\", for=1.1.1.1", for="203.0.113.9"`}, "203.0.113.9"},
	{"Forwarded, for twice in one element", fwd, "10.0.0.1:1", []string{fwd, "for=203.0.113.9;for=6.6.6.6"}, "10.0.0.1"},
	{"Forwarded, IPv6 without quotes", fwd, "10.0.0.1:1", []string{fwd, "for=[2001:db8::9]:80"}, "2001:db8::9"},
	{"Forwarded, no XFF read", fwd, "10.0.0.1:1", []string{xff, "6.6.6.6"}, "10.0.0.1"},

	{"X-Real-IP from a proxy", "X-Real-IP", "10.0.0.1:1", []string{"X-Real-Ip", "203.0.113.9"}, "203.0.113.9"},
	{"X-Real-IP, direct", "X-Real-IP", "203.0.113.9:1", []string{"X-Real-Ip", "6.6.6.6"}, "203.0.113.9"},
	{"X-Real-IP twice: the last", "X-Real-IP", "10.0.0.1:1", []string{"X-Real-Ip", "6.6.6.6", "X-Real-Ip", "203.0.113.9"}, "203.0.113.9"},
	{"X-Real-IP garbage", "X-Real-IP", "10.0.0.1:1", []string{"X-Real-Ip", "6.6.6.6, 7.7.7.7"}, "10.0.0.1"},
}

func TestClientAddrSpoofing(t *testing.T) {
	for _, c := range spoofing {
		t.Run(c.name, func(t *testing.T) {
			cfg := middleware.ClientAddrConfig{Header: c.header, Trusted: middleware.Prefixes("10.0.0.0/8", "fd00::/8")}
			if got, _ := clientOf(cfg, c.peer, c.lines...); got != c.want {
				t.Errorf("client of peer %s with %q = %q; want %q", c.peer, c.lines, got, c.want)
			}
			// Without a named trust no header may ever matter.
			bare, _ := clientOf(middleware.ClientAddrConfig{Header: c.header}, c.peer)
			if got, _ := clientOf(middleware.ClientAddrConfig{Header: c.header}, c.peer, c.lines...); got != bare {
				t.Errorf("client of peer %s with %q and no trust = %q; want the peer %q", c.peer, c.lines, got, bare)
			}
		})
	}
}

func TestClientAddrUnixSocket(t *testing.T) {
	cfg := middleware.ClientAddrConfig{TrustUnixSocket: true, Trusted: middleware.Prefixes("10.0.0.0/8")}
	if got, _ := clientOf(cfg, "@", xff, "6.6.6.6, 203.0.113.9, 10.0.0.2"); got != "203.0.113.9" {
		t.Errorf("client behind a trusted Unix socket = %q; want 203.0.113.9", got)
	}
	if got, key := clientOf(cfg, "@"); got != "" || key != "" {
		t.Errorf("client behind a Unix socket without a header = %q, key %q; want none", got, key)
	}
}

func TestClientAddrMaxHops(t *testing.T) {
	cfg := middleware.ClientAddrConfig{MaxHops: 2, Trusted: middleware.Prefixes("10.0.0.0/8")}
	if got, _ := clientOf(cfg, "10.0.0.1:1", xff, "203.0.113.9, 10.0.0.4, 10.0.0.3"); got != "10.0.0.4" {
		t.Errorf("client beyond MaxHops = %q; want the last hop looked at, 10.0.0.4", got)
	}
}

func TestClientAddrResolve(t *testing.T) {
	cfg := middleware.ClientAddrConfig{Resolve: func(*http.Request) netip.Addr { return netip.MustParseAddr("::ffff:203.0.113.9") }}
	if got, key := clientOf(cfg, "10.0.0.1:1", xff, "6.6.6.6"); got != "203.0.113.9" || key != "ip:203.0.113.9" {
		t.Errorf("client by Resolve = %q, key %q; want 203.0.113.9 and ip:203.0.113.9", got, key)
	}
}

func TestClientAddrTrustedMappedPrefix(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}
	cfg := middleware.ClientAddrConfig{Trusted: trusted}
	if got, _ := clientOf(cfg, "10.0.0.1:1", xff, "203.0.113.9"); got != "203.0.113.9" {
		t.Errorf("client with an IPv4-mapped trusted prefix = %q; want 203.0.113.9", got)
	}
	if trusted[0] != netip.MustParsePrefix("::ffff:10.0.0.0/104") {
		t.Errorf("the caller's slice was changed to %v", trusted[0])
	}
}

func TestClientIPKey(t *testing.T) {
	for _, c := range []struct{ peer, want string }{
		{"203.0.113.9:1", "ip:203.0.113.9"},
		{"[2001:db8:1:2:3:4:5:6]:1", "ip:2001:db8:1:2::/64"},
		{"[2001:db8:1:2:ffff::1]:1", "ip:2001:db8:1:2::/64"},
		{"[2001:db8:1:3::1]:1", "ip:2001:db8:1:3::/64"},
		{"[::ffff:203.0.113.9]:1", "ip:203.0.113.9"},
		{"", ""},
	} {
		if _, got := clientOf(middleware.ClientAddrConfig{}, c.peer); got != c.want {
			t.Errorf("ClientIP of %q = %q; want %q", c.peer, got, c.want)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "[2001:db8:1:2::1]:1"
	if got := middleware.ClientNetwork(24, 48)(r); got != "ip:2001:db8:1::/48" {
		t.Errorf("ClientNetwork(24, 48) = %q; want ip:2001:db8:1::/48", got)
	}
	r.RemoteAddr = "203.0.113.9:1"
	if got := middleware.ClientNetwork(24, 48)(r); got != "ip:203.0.113.0/24" {
		t.Errorf("ClientNetwork(24, 48) = %q; want ip:203.0.113.0/24", got)
	}
	if got := middleware.ClientNetwork(32, 128)(r); got != "ip:203.0.113.9" {
		t.Errorf("ClientNetwork(32, 128) = %q; want ip:203.0.113.9", got)
	}
}

// FuzzClientAddr holds what no header may change: whatever it says, the client is
// the peer unless the peer is trusted; and what a client writes to the left of what
// the last proxy appended changes nothing.
func FuzzClientAddr(f *testing.F) {
	for _, c := range spoofing {
		for i := 0; i+1 < len(c.lines); i += 2 {
			f.Add(c.lines[i+1], c.header == fwd)
		}
	}
	f.Add(`for="\`, true)
	f.Add(`for=`+strings.Repeat("[", 100), true)
	f.Fuzz(func(t *testing.T, forged string, forwarded bool) {
		header, honest := xff, "203.0.113.9"
		if forwarded {
			header, honest = fwd, "for=203.0.113.9"
		}
		cfg := middleware.ClientAddrConfig{Header: header, Trusted: middleware.Prefixes("10.0.0.0/8")}
		if got, _ := clientOf(cfg, "198.51.100.7:1", header, forged); got != "198.51.100.7" {
			t.Errorf("direct client with %q = %q; want the peer", forged, got)
		}
		if got, _ := clientOf(cfg, "10.0.0.1:1", header, forged, header, honest); got != "203.0.113.9" {
			t.Errorf("client with forged line %q = %q; want 203.0.113.9", forged, got)
		}
		// Appended to the same line: the client may at most spoil the line, and
		// then is taken for the proxy, never for somebody of its choice.
		got, _ := clientOf(cfg, "10.0.0.1:1", header, forged+", "+honest)
		if got != "203.0.113.9" && (got != "10.0.0.1" || !forwarded) {
			t.Errorf("client with forged list %q = %q; want 203.0.113.9", forged, got)
		}
		a, _ := clientOf(cfg, "10.0.0.1:1", header, forged)
		if a != "" {
			if addr, err := netip.ParseAddr(a); err != nil || addr.Is4In6() || addr.Zone() != "" {
				t.Errorf("client with %q = %q; want a plain address", forged, a)
			}
		}
	})
}
