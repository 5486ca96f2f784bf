package tests

import (
	"bufio"
	"context"
	"os"
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
