package tests

import (
	"bufio"
	"context"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// TestRedisConfigs starts a server with each file in deploy/redis; Check finds
// nothing wrong with it for what it is for, and does for what it is not.
func TestRedisConfigs(t *testing.T) {
	for name, c := range map[string]struct {
		right, wrong middleware.CheckConfig
		because      middleware.Code
	}{
		"sessions.conf": {middleware.CheckConfig{NoCache: true}, middleware.CheckConfig{}, middleware.WarnNoEvictionPolicy},
		"cache.conf":    {middleware.CheckConfig{OnlyCache: true}, middleware.CheckConfig{}, middleware.WarnEvictsSessions},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := os.Open(root + "/deploy/redis/" + name)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var opts []redistest.Option
			for lines := bufio.NewScanner(file); lines.Scan(); {
				f := strings.Fields(lines.Text())
				if len(f) == 0 || f[0] == "#" || strings.HasPrefix(f[0], "#") {
					continue
				}
				for i := range f {
					f[i] = strings.Trim(f[i], `"`)
				}
				opts = append(opts, redistest.Set(f[0], f[1:]...))
			}
			server := redistest.Start(t, opts...)
			rdb := server.Client(nil)
			findings, err := middleware.Check(context.Background(), rdb, c.right)
			if err != nil || len(findings) > 0 {
				t.Errorf("Check(%+v) = %v, %v; want nothing", c.right, findings, err)
			}
			findings, err = middleware.Check(context.Background(), rdb, c.wrong)
			found := false
			for _, f := range findings {
				found = found || f.Code == c.because
			}
			if err != nil || !found {
				t.Errorf("Check(%+v) = %v, %v; want %s", c.wrong, findings, err, c.because)
			}
		})
	}
}

// TestComposeTrustsTheProxyOnly: the servers in compose.yaml believe what the proxy says
// of a client's address, and nobody else: not the gateway of their network either,
// from which requests to the published ports come.
func TestComposeTrustsTheProxyOnly(t *testing.T) {
	text, err := os.ReadFile(root + "/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	value := func(pattern string) string {
		t.Helper()
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1)
		if len(found) != 1 {
			t.Fatalf("compose.yaml matches %s %d times; want once", pattern, len(found))
		}
		return found[0][1]
	}
	proxy, gateway := value(`ipv4_address: (\S+)`), value(`gateway: (\S+)`)
	subnet, others := netip.MustParsePrefix(value(`subnet: (\S+)`)), netip.MustParsePrefix(value(`ip_range: (\S+)`))
	if p := netip.MustParseAddr(proxy); !subnet.Contains(p) || others.Contains(p) {
		t.Errorf("the proxy's %s is not of %s, or of those that others get, %s", p, subnet, others)
	}
	resolve := middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes(value(`TRUSTED_PROXIES: (\S+)`))})
	for from, want := range map[string]string{proxy: "192.0.2.7", gateway: gateway, others.Addr().Next().String(): others.Addr().Next().String()} {
		r, _ := http.NewRequest("GET", "/", nil)
		r.RemoteAddr = from + ":40000"
		r.Header.Set("X-Forwarded-For", "192.0.2.7")
		var got string
		resolve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = middleware.ClientAddrOf(r).String() })).ServeHTTP(nil, r)
		if got != want {
			t.Errorf("a request from %s that says it is for 192.0.2.7 comes from %s; want %s", from, got, want)
		}
	}
}
