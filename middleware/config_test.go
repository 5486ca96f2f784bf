package middleware_test

import (
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// TestConfigurationsRefused: what can't work is found when the program starts.
func TestConfigurationsRefused(t *testing.T) {
	_, rdb := redistest.Mini(t)
	l := newLimiter(t, rdb, ratelimit.Config{}, limits()...)
	private, cdn := middleware.Prefixes("10.0.0.0/8"), middleware.Prefixes("173.245.48.0/20")
	for name, f := range map[string]func(){
		"request id in no header": func() { middleware.RequestID(middleware.RequestIDConfig{Header: "X Id"}) },
		"unit outside ASCII": func() {
			middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{QuotaUnit: "größe"})
		},
		"unknown dialect":      func() { middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Headers: 128}) },
		"address in no header": func() { middleware.ClientAddr(middleware.ClientAddrConfig{Header: "X:Y"}) },
		"CDN's header from nginx": func() {
			middleware.ClientAddr(middleware.ClientAddrConfig{Header: "CF-Connecting-IP", Trusted: private})
		},
		"HeaderFrom with a list":    func() { middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: private, HeaderFrom: cdn}) },
		"Hops and Trusted":          func() { middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: private, Hops: 1}) },
		"Hops and a single address": func() { middleware.ClientAddr(middleware.ClientAddrConfig{Header: "X-Real-IP", Hops: 1}) },
		"Hops below zero":           func() { middleware.ClientAddr(middleware.ClientAddrConfig{Hops: -1}) },
		"prefix that is none":       func() { middleware.Prefixes("10.0.0/8") },
		"HeaderFrom that is no prefix": func() {
			middleware.ClientAddr(middleware.ClientAddrConfig{HeaderFrom: make([]netip.Prefix, 1), Header: "X-Real-IP"})
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was accepted", name)
				}
			}()
			f()
		}()
	}
	var id string
	h := middleware.RequestID(middleware.RequestIDConfig{Generate: func() string { return "" }})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { id = middleware.RequestIDOf(r) }))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if len(id) != 26 {
		t.Errorf("id in place of none = %q; want 26 characters", id)
	}
	if found := codes(t, rdb, middleware.CheckConfig{MaxSkew: math.MaxInt64}); len(found) != 0 {
		t.Errorf("with any skew allowed found %q", found)
	}
	for _, none := range []redis.UniversalClient{nil, (*redis.Client)(nil), (*redis.ClusterClient)(nil)} {
		if _, err := middleware.Check(t.Context(), none, middleware.CheckConfig{Timeout: time.Minute}); err == nil {
			t.Errorf("Check of %T(nil) = nil; want an error", none)
		}
	}
	if _, err := middleware.ParsePrefixes("10.0.0.1", "2001:db8::1", "x"); err == nil {
		t.Error(`ParsePrefixes("x") = nil; want an error`)
	}
}

// TestHeaderFrom: the header of a CDN is believed from the CDN's hop alone.
func TestHeaderFrom(t *testing.T) {
	cdn, nginx := middleware.Prefixes("173.245.48.0/20"), middleware.Prefixes("10.0.0.0/8")
	both := append(append([]netip.Prefix(nil), cdn...), nginx...)
	cf := "CF-Connecting-IP"
	for _, c := range []struct {
		name, peer string
		cfg        middleware.ClientAddrConfig
		header     []string
		want       string
	}{
		{"CDN, nginx", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: nginx, HeaderFrom: cdn}, []string{cf, "203.0.113.9", "X-Forwarded-For", "203.0.113.9, 173.245.48.7"}, "203.0.113.9"},
		{"CDN, nginx, one list", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: both}, []string{cf, "203.0.113.9", "X-Forwarded-For", "203.0.113.9, 173.245.48.7"}, "203.0.113.9"},
		{"CDN alone", "173.245.48.7:1", middleware.ClientAddrConfig{Header: cf, Trusted: cdn}, []string{cf, "203.0.113.9"}, "203.0.113.9"},
		{"past the CDN, to nginx", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: nginx, HeaderFrom: cdn}, []string{cf, "1.2.3.4", "X-Forwarded-For", "198.51.100.66"}, "198.51.100.66"},
		{"past the CDN, to nginx, one list", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: both}, []string{cf, "1.2.3.4", "X-Forwarded-For", "198.51.100.66"}, "198.51.100.66"},
		{"past the CDN, a CDN's address invented", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: nginx, HeaderFrom: cdn}, []string{cf, "1.2.3.4", "X-Forwarded-For", "173.245.48.7, 198.51.100.66"}, "198.51.100.66"},
		{"past the CDN, no list", "10.0.0.2:1", middleware.ClientAddrConfig{Header: cf, Trusted: nginx, HeaderFrom: cdn}, []string{cf, "1.2.3.4"}, "10.0.0.2"},
		{"past all", "198.51.100.66:1", middleware.ClientAddrConfig{Header: cf, Trusted: nginx, HeaderFrom: cdn}, []string{cf, "1.2.3.4"}, "198.51.100.66"},
		{"tunnel", "127.0.0.1:1", middleware.ClientAddrConfig{Header: cf, HeaderFrom: middleware.Prefixes("127.0.0.1")}, []string{cf, "203.0.113.9"}, "203.0.113.9"},
		{"nginx's own", "10.0.0.2:1", middleware.ClientAddrConfig{Header: "X-Real-IP", Trusted: nginx}, []string{"X-Real-IP", "203.0.113.9"}, "203.0.113.9"},
		{"CloudFront", "173.245.48.7:1", middleware.ClientAddrConfig{Header: "CloudFront-Viewer-Address", Trusted: cdn}, []string{"CloudFront-Viewer-Address", "2001:db8::9:51234"}, "2001:db8::9"},
		{"bare port", "10.0.0.2:1", middleware.ClientAddrConfig{Trusted: nginx}, []string{"X-Forwarded-For", "2001:db8:0:0:0:0:0:9:51234"}, "2001:db8::9"},
		{"one hop", "10.0.0.2:1", middleware.ClientAddrConfig{Hops: 1}, []string{"X-Forwarded-For", "6.6.6.6, 203.0.113.9"}, "203.0.113.9"},
		{"two hops", "10.0.0.2:1", middleware.ClientAddrConfig{Hops: 2}, []string{"X-Forwarded-For", "6.6.6.6", "X-Forwarded-For", "203.0.113.9, 10.0.0.9"}, "203.0.113.9"},
		{"more hops than there are", "10.0.0.2:1", middleware.ClientAddrConfig{Hops: 3}, []string{"X-Forwarded-For", "6.6.6.6, 203.0.113.9"}, "10.0.0.2"},
		{"hop of junk", "10.0.0.2:1", middleware.ClientAddrConfig{Hops: 1}, []string{"X-Forwarded-For", "6.6.6.6, x"}, "10.0.0.2"},
	} {
		var got string
		ask(middleware.ClientAddr(c.cfg)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = middleware.ClientAddrOf(r).String() })), c.peer, c.header...)
		if got != c.want {
			t.Errorf("%s = %s; want %s", c.name, got, c.want)
		}
	}
}

// TestTranslatedAddresses: a client of IPv4 has its own account, by whatever
// translator it comes, and none of those in Trusted.
func TestTranslatedAddresses(t *testing.T) {
	for peer, want := range map[string]string{
		"[64:ff9b::c000:201]:1":                "ip:192.0.2.1",
		"[64:ff9b::cb00:7109]:1":               "ip:203.0.113.9",
		"[2002:cb00:7109::1]:1":                "ip:203.0.113.9",
		"[2002:cb00:7109:ffff::1]:1":           "ip:203.0.113.9",
		"[2001:0:5ef5:79fd:0:59d:34ff:8ef6]:1": "ip:203.0.113.9",
		"[2002:a00:1::1]:1":                    "ip:2002:a00:1::/64", // 10.0.0.1
		"[64:ff9b::7f00:1]:1":                  "ip:64:ff9b::/64",
		"[2001:db8::1]:1":                      "ip:2001:db8::/64",
		"[::ffff:203.0.113.9]:1":               "ip:6.6.6.6", // trusted
	} {
		var got string
		var addr netip.Addr
		ask(middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("10.0.0.0/8", "203.0.113.9")})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			got, addr = middleware.ClientIP()(r), middleware.ClientAddrOf(r)
		})), peer, "X-Forwarded-For", "6.6.6.6")
		if got != want {
			t.Errorf("%s = %s (%s); want %s", peer, got, addr, want)
		}
	}
}
