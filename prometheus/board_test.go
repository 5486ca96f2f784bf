package redporchprom_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

var (
	metricName = regexp.MustCompile(`redporch_[a-z0-9_]+`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
	selector   = regexp.MustCompile(`([a-z_]+)(?:=~|!=|!~|=)"`)
)

type board struct {
	Panels []struct {
		ID      int
		Title   string
		Type    string
		GridPos struct{ H, W, X, Y int }
		Targets []struct{ Expr, LegendFormat string }
	}
	Templating struct {
		List []struct {
			Name  string
			Query any
		}
	}
}

// ofTheScrape are labels that Prometheus adds.
var ofTheScrape = []string{"job", "instance", "le"}

// TestBoard: every query of the Grafana board asks for metrics and labels that the
// collector exports, and every metric is on the board.
func TestBoard(t *testing.T) {
	a := newApp(t)
	a.use()
	families := a.gather()
	labels := func(f *dto.MetricFamily) (names []string) {
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		return names
	}
	// series maps what queries may say to the labels it has.
	series := map[string][]string{}
	for name, f := range families {
		if f.GetType() == dto.MetricType_HISTOGRAM {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				series[name+suffix] = labels(f)
			}
			continue
		}
		series[name] = labels(f)
	}

	text, err := os.ReadFile("../deploy/grafana/redporch.json")
	if err != nil {
		t.Fatal(err)
	}
	var b board
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	ids := map[int]bool{}
	queries := 0
	for i, p := range b.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id %d of another", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, q := range b.Panels[:i] {
			g, h := p.GridPos, q.GridPos
			if g.X < h.X+h.W && h.X < g.X+g.W && g.Y < h.Y+h.H && h.Y < g.Y+g.H {
				t.Errorf("panels %q and %q overlap", p.Title, q.Title)
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			queries++
			names := metricName.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("panel %q: no metric of redporch in %s", p.Title, target.Expr)
			}
			var used []string // labels
			for _, m := range grouping.FindAllStringSubmatch(target.Expr, -1) {
				used = append(used, strings.Split(strings.ReplaceAll(m[1], " ", ""), ",")...)
			}
			for _, m := range selector.FindAllStringSubmatch(target.Expr, -1) {
				used = append(used, m[1])
			}
			for _, m := range regexp.MustCompile(`{{([a-z_]+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				used = append(used, m[1])
			}
			for _, name := range names {
				has, ok := series[name]
				if !ok {
					t.Errorf("panel %q asks for %s, which the collector does not export", p.Title, name)
					continue
				}
				shown[name] = true
				for _, label := range used {
					if !slices.Contains(has, label) && !slices.Contains(ofTheScrape, label) {
						t.Errorf("panel %q uses the label %s, which %s does not have", p.Title, label, name)
					}
				}
			}
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") || strings.Count(target.Expr, "{") != strings.Count(target.Expr, "}") {
				t.Errorf("panel %q: brackets of %s don't match", p.Title, target.Expr)
			}
		}
	}
	if queries < 15 {
		t.Errorf("the board has %d queries; is it whole?", queries)
	}
	for name, f := range families {
		ok := shown[name]
		if f.GetType() == dto.MetricType_HISTOGRAM {
			ok = shown[name+"_bucket"] || shown[name+"_count"]
		}
		if !ok {
			t.Errorf("%s is exported but not on the board", name)
		}
	}
	for _, v := range b.Templating.List {
		text, _ := json.Marshal(v.Query)
		for _, name := range metricName.FindAllString(string(text), -1) {
			if _, ok := series[name]; !ok {
				t.Errorf("variable %s asks for %s, which the collector does not export", v.Name, name)
			}
		}
	}
}
