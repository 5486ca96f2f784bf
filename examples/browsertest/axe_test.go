package browsertest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/chromedp/chromedp"
)

const axeVersion = "4.14.1"

// axeSource returns the source of axe-core, which npm installs into the user's
// cache directory the first time.
var axeSource = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "redporch-browsertest", "axe-core-"+axeVersion)
	file := filepath.Join(dir, "node_modules", "axe-core", "axe.min.js")
	if _, err := os.Stat(file); err != nil {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		cmd := exec.Command("npm", "install", "--prefix", dir, "--no-save", "--no-audit", "--no-fund", "axe-core@"+axeVersion)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("axe-core is needed and npm could not install it: %w\n%s", err, out)
		}
	}
	src, err := os.ReadFile(file)
	return string(src), err
})

type axeFinding struct {
	ID, Impact, Help string
	Nodes            []struct{ HTML, FailureSummary string }
}

// axe fails the test for each finding of impact serious or critical. The script
// comes by the debugger's protocol, which the page's CSP does not concern.
func (d *device) axe(what string) {
	d.t.Helper()
	src, err := axeSource()
	if err != nil {
		if os.Getenv("REDISTEST") != "all" {
			d.t.Skip(err)
		}
		d.t.Fatal(err)
	}
	d.do("load axe-core", chromedp.Evaluate[chromedp.Void](src+"\n;0"))
	report := evaluate[string](d, `axe.run(document).then(r => JSON.stringify({violations: r.violations, passes: r.passes.length}))`)
	var r struct {
		Violations []axeFinding
		Passes     int
	}
	if err := json.Unmarshal([]byte(report), &r); err != nil {
		d.t.Fatal(err)
	}
	if r.Passes < 20 {
		d.t.Errorf("%s: axe-core passed %d rules; want many, or it did not look", what, r.Passes)
	}
	for _, v := range r.Violations {
		var where strings.Builder
		for _, n := range v.Nodes {
			fmt.Fprintf(&where, "\n  %s\n  %s", n.HTML, n.FailureSummary)
		}
		if v.Impact == "serious" || v.Impact == "critical" {
			d.t.Errorf("%s: %s (%s): %s%s", what, v.ID, v.Impact, v.Help, where.String())
		} else {
			d.t.Logf("%s: %s (%s): %s%s", what, v.ID, v.Impact, v.Help, where.String())
		}
	}
}
