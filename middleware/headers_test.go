package middleware

import (
	"maps"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dunglas/httpsfv"
)

// Header examples of draft-ietf-httpapi-ratelimit-headers, with where they stand.
var draftExamples = []struct {
	source    string
	dialect   Dialect
	unit      string
	partition string
	quotas    []quota
	tightest  int
	want      map[string]string
}{
	{
		source: "-11, 3", dialect: Draft11,
		quotas: []quota{{name: "burst", limit: 100, window: 60, next: -1}, {name: "daily", limit: 1000, window: 86400, next: -1}},
		want:   map[string]string{"RateLimit-Policy": `"burst";q=100;w=60,"daily";q=1000;w=86400`},
	},
	{
		source: "-11, 3.2", dialect: Draft11,
		quotas: []quota{{name: "default", limit: 100, window: 10, next: -1}},
		want:   map[string]string{"RateLimit-Policy": `"default";q=100;w=10`},
	},
	{
		source: "-11, 3.2, second", dialect: Draft11,
		quotas: []quota{{name: "permin", limit: 50, window: 60, next: -1}, {name: "perhr", limit: 1000, window: 3600, next: -1}},
		want:   map[string]string{"RateLimit-Policy": `"permin";q=50;w=60,"perhr";q=1000;w=3600`},
	},
	{
		source: "-11, 3.2, fourth, with a key that is valid base64", dialect: Draft11, unit: "content-bytes", partition: "trial121323",
		quotas: []quota{{name: "peruser", limit: 65535, window: 10, next: -1}},
		want:   map[string]string{"RateLimit-Policy": `"peruser";q=65535;qu="content-bytes";w=10;pk=:dHJpYWwxMjEzMjM=:`},
	},
	{
		source: "-11, 4.2", dialect: Draft11,
		quotas: []quota{{name: "default", remaining: 50, next: 30}},
		want:   map[string]string{"RateLimit": `"default";r=50;t=30`},
	},
	{
		source: "-11, 4.2, second", dialect: Draft11, partition: "trial121323",
		quotas: []quota{{name: "default", remaining: 999, next: -1}},
		want:   map[string]string{"RateLimit": `"default";r=999;pk=:dHJpYWwxMjEzMjM=:`},
	},
	{
		source: "-11, 4.2, third", dialect: Draft11, partition: "App-999",
		quotas: []quota{{name: "default", remaining: 300000000, next: 60}},
		want:   map[string]string{"RateLimit": `"default";r=300000000;t=60;pk=:QXBwLTk5OQ==:`},
	},
	{
		source: "-11, B.1.3", dialect: Draft11,
		quotas: []quota{{name: "basic", limit: 100, remaining: 60, window: 60, next: 58}},
		want:   map[string]string{"RateLimit-Policy": `"basic";q=100;w=60`, "RateLimit": `"basic";r=60;t=58`},
	},
	{
		source: "-11, B.2.1", dialect: Draft11,
		quotas: []quota{{name: "fixedwindow", limit: 100, remaining: 99, window: 60, next: 50}},
		want:   map[string]string{"RateLimit-Policy": `"fixedwindow";q=100;w=60`, "RateLimit": `"fixedwindow";r=99;t=50`},
	},
	{
		source: "-11, B.2.3", dialect: Draft11,
		quotas: []quota{{name: "dynamic", limit: 15, remaining: 0, window: 20, next: 20}},
		want:   map[string]string{"RateLimit-Policy": `"dynamic";q=15;w=20`, "RateLimit": `"dynamic";r=0;t=20`},
	},
	{
		source: "-07, 3.5", dialect: Draft7,
		quotas: []quota{{limit: 100, remaining: 50, window: 10, reset: 5}},
		want:   map[string]string{"RateLimit-Policy": "100;w=10", "RateLimit": "limit=100, remaining=50, reset=5"},
	},
	{
		source: "-07, 3.5, several", dialect: Draft7, tightest: 3,
		quotas: []quota{{limit: 10, remaining: 9, window: 1}, {limit: 50, remaining: 9, window: 60}, {limit: 1000, remaining: 9, window: 3600},
			{limit: 5000, remaining: 100, window: 86400, reset: 36000}},
		want: map[string]string{"RateLimit-Policy": "10;w=1, 50;w=60, 1000;w=3600, 5000;w=86400",
			"RateLimit": "limit=5000, remaining=100, reset=36000"},
	},
	{
		source: "-07, B.2.3", dialect: Draft7,
		quotas: []quota{{limit: 0, remaining: 0, reset: 20}},
		want:   map[string]string{"RateLimit": "limit=0, remaining=0, reset=20"},
	},
	{
		source: "-06, B.1.2", dialect: Draft6,
		quotas: []quota{{limit: 5000, remaining: 100, reset: 36000}},
		want:   map[string]string{"RateLimit-Limit": "5000", "RateLimit-Remaining": "100", "RateLimit-Reset": "36000"},
	},
	{
		source: "-06, B.2.1", dialect: Draft6,
		quotas: []quota{{limit: 100, remaining: 99, window: 60, reset: 50}},
		want: map[string]string{"RateLimit-Policy": "100;w=60",
			"RateLimit-Limit": "100", "RateLimit-Remaining": "99", "RateLimit-Reset": "50"},
	},
	{
		source: "X-RateLimit", dialect: XRateLimit,
		quotas: []quota{{limit: 100, remaining: 99, window: 60, reset: 50}},
		want:   map[string]string{"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "99", "X-RateLimit-Reset": "50"},
	},
	{
		source: "X-RateLimit as GitHub has it", dialect: XRateLimitUnix,
		quotas: []quota{{limit: 5000, remaining: 4987, window: 3600, reset: 100}},
		want:   map[string]string{"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4987", "X-RateLimit-Reset": "1700000100"},
	},
	{
		source: "several dialects at once", dialect: Draft11 | Draft6 | XRateLimit,
		quotas: []quota{{name: "api", limit: 100, remaining: 99, window: 60, next: 50, reset: 55}},
		want: map[string]string{"RateLimit-Policy": `"api";q=100;w=60`, "RateLimit": `"api";r=99;t=50`,
			"RateLimit-Limit": "100", "RateLimit-Remaining": "99", "RateLimit-Reset": "55",
			"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "99", "X-RateLimit-Reset": "55"},
	},
	{
		source: "a window below a second is not told", dialect: Draft11,
		quotas: []quota{{name: "burst", limit: 3, remaining: 2, next: 1}},
		want:   map[string]string{"RateLimit-Policy": `"burst";q=3`, "RateLimit": `"burst";r=2;t=1`},
	},
	{
		source: "integers stay in the range of structured fields", dialect: Draft11,
		quotas: []quota{{name: "vast", limit: math.MaxInt64, remaining: math.MaxInt64, window: math.MaxInt64, next: math.MaxInt64}},
		want: map[string]string{"RateLimit-Policy": `"vast";q=999999999999999;w=999999999999999`,
			"RateLimit": `"vast";r=999999999999999;t=999999999999999`},
	},
	{
		source: "names are escaped", dialect: Draft11,
		quotas: []quota{{name: `a"b\c`, limit: 1, remaining: 1, next: -1}},
		want:   map[string]string{"RateLimit-Policy": `"a\"b\\c";q=1`},
	},
	{source: "none", dialect: NoHeaders | Draft11, quotas: []quota{{name: "a"}}, want: map[string]string{"RateLimit": "", "RateLimit-Policy": ""}},
}

func TestHeaderDialects(t *testing.T) {
	for _, ex := range draftExamples {
		t.Run(ex.source, func(t *testing.T) {
			h := make(http.Header)
			var partition []byte
			if ex.partition != "" {
				partition = []byte(ex.partition)
			}
			for i := range ex.quotas {
				ex.quotas[i].unit = ex.unit
			}
			fieldWriter{dialect: ex.dialect}.write(h, ex.quotas, ex.tightest, partition, time.Unix(1700000000, 0))
			for name, want := range ex.want {
				got := h.Get(name)
				// The drafts write lists with and without a space after the comma.
				if strings.ReplaceAll(got, ", ", ",") != strings.ReplaceAll(want, ", ", ",") {
					t.Errorf("%s: %s\nwant %s", name, got, want)
				}
			}
			wellFormed(t, ex.dialect, h)
		})
	}
}

// wellFormed checks with the structured field library that what is hand-written
// here for speed is what it would have written.
func wellFormed(t *testing.T, d Dialect, h http.Header) {
	t.Helper()
	for _, name := range []string{"Ratelimit", "Ratelimit-Policy"} {
		if len(h[name]) == 0 {
			continue
		}
		var v httpsfv.StructuredFieldValue
		var err error
		if d&Draft7 != 0 && name == "Ratelimit" {
			v, err = httpsfv.UnmarshalDictionary(h[name])
		} else {
			v, err = httpsfv.UnmarshalList(h[name])
		}
		if err != nil {
			t.Errorf("%s: %q is no structured field: %v", name, h[name], err)
			continue
		}
		canonical, err := httpsfv.Marshal(v)
		if got := strings.Join(h[name], ", "); err != nil || got != canonical {
			t.Errorf("%s: %s\nwant %s (%v)", name, got, canonical, err)
		}
	}
}

// TestNestedLimiters: lists grow, single values keep the tightest, whichever of
// the limiters comes first.
func TestNestedLimiters(t *testing.T) {
	now := time.Unix(1700000000, 0)
	loose := quota{name: "loose", limit: 1000, remaining: 900, window: 3600, next: 10, reset: 3000}
	tight := quota{name: "tight", limit: 10, remaining: 1, window: 60, next: 20, reset: 30}
	all := []string{"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"}
	for _, d := range []Dialect{XRateLimit, XRateLimitUnix, Draft6, Draft7, Draft11} {
		written := func(qs ...quota) http.Header {
			h := make(http.Header)
			for _, q := range qs {
				fieldWriter{dialect: d}.write(h, []quota{q}, 0, nil, now)
			}
			wellFormed(t, d, h)
			return h
		}
		a, b, alone := written(loose, tight), written(tight, loose), written(tight)
		for _, name := range append(all, "Ratelimit-Limit", "Ratelimit-Remaining", "Ratelimit-Reset") {
			if !maps.EqualFunc(map[string][]string{name: a[name]}, map[string][]string{name: alone[name]}, equal) || !equal(a[name], b[name]) {
				t.Errorf("dialect %b: %s = %q or %q; want %q in both orders", d, name, a[name], b[name], alone[name])
			}
		}
		switch d {
		case Draft7:
			if !equal(a["Ratelimit"], alone["Ratelimit"]) || !equal(b["Ratelimit"], alone["Ratelimit"]) {
				t.Errorf("RateLimit = %q or %q; want %q", a["Ratelimit"], b["Ratelimit"], alone["Ratelimit"])
			}
		case Draft11:
			if got := strings.Join(a["Ratelimit"], ", "); got != `"loose";r=900;t=10, "tight";r=1;t=20` {
				t.Errorf("RateLimit = %s; want both policies", got)
			}
		}
	}
}

func equal(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

func TestSecondsRoundUp(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want int64
	}{{-1, 0}, {0, 0}, {1, 1}, {time.Second, 1}, {time.Second + 1, 2}, {time.Minute, 60}, {math.MaxInt64, math.MaxInt64 / int64(time.Second)}} {
		if got := seconds(c.d); got != c.want {
			t.Errorf("seconds(%v) = %d; want %d", c.d, got, c.want)
		}
	}
}
