package main

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"go.yaml.in/yaml/v3"
)

// scrapes holds what was scraped, as much of a Prometheus as its query engine
// needs.
type scrapes struct {
	storage.LabelQuerier // is not asked
	series               map[string]*series
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// add keeps a scrape, with the label that Prometheus adds.
func (db *scrapes) add(at time.Time, v model.Vector) {
	for _, s := range v {
		pairs := map[string]string{"job": "app"}
		for k, v := range s.Metric {
			pairs[string(k)] = string(v)
		}
		l := labels.FromMap(pairs)
		if db.series[l.String()] == nil {
			db.series[l.String()] = &series{labels: l}
		}
		one := db.series[l.String()]
		one.samples = append(one.samples, sample{t: at.UnixMilli(), f: float64(s.Value)})
	}
}

func (db *scrapes) Querier(int64, int64) (storage.Querier, error) { return db, nil }

func (db *scrapes) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{}
	for _, name := range slices.Sorted(maps.Keys(db.series)) {
		s := db.series[name]
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			set.rest = append(set.rest, s)
		}
	}
	return set
}

type seriesSet struct {
	now  *series
	rest []*series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.now, s.rest = s.rest[0], s.rest[1:]
	return true
}
func (s *seriesSet) At() storage.Series                { return storage.NewListSeries(s.now.labels, s.now.samples) }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// sample is a number at a time.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// TestBoard runs every query of the Grafana board, and the alerts of
// docs/observability.md, with Prometheus' engine on what a server in use has
// served. Each query of the board has numbers to show.
func TestBoard(t *testing.T) {
	s := start(t, map[string]string{"METRICS_ADDR": "127.0.0.1:0", "REDIS_TIMEOUT": "1s"})
	db := &scrapes{LabelQuerier: storage.NoopQuerier(), series: map[string]*series{}}
	now := time.Now()
	for range 3 { // rates need two scrapes with something between
		s.use()
		db.add(now, s.settled())
		now = now.Add(15 * time.Second) // as if that long had passed
	}
	now = now.Add(-15 * time.Second)

	p := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: p})
	ask := func(expr string) (promql.Vector, error) {
		q, err := engine.NewInstantQuery(t.Context(), db, nil, expr, now)
		if err != nil {
			return nil, err
		}
		defer q.Close()
		v, err := q.Exec(t.Context()).Vector()
		return slices.Clone(v), err
	}

	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	read(t, "../../deploy/grafana/redporch.json", func(b []byte) error { return json.Unmarshal(b, &board) })
	queries := 0
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			queries++
			// What Grafana puts in: all jobs, and four scrapes' time.
			v, err := ask(strings.NewReplacer("$job", ".*", "$__rate_interval", "1m").Replace(target.Expr))
			if err != nil {
				t.Errorf("panel %q: %s: %v", panel.Title, target.Expr, err)
				continue
			}
			if !slices.ContainsFunc(v, func(s promql.Sample) bool { return !math.IsNaN(s.F) }) {
				t.Errorf("panel %q shows nothing: %s = %v", panel.Title, target.Expr, v)
			}
		}
	}
	if queries < 15 {
		t.Errorf("the board has %d queries; is it whole?", queries)
	}

	// The alerts: each can be asked. Redis was away, and one limit was used up, in the last
	// five minutes, so those that look back on them fire, and no other.
	fire := []string{"SessionsFail", "ServerErrors", "DecisionsWithoutRedis", "ManyDenials"}
	var alerts []struct{ Alert, Expr string }
	read(t, "../../docs/observability.md", func(b []byte) error {
		_, text, _ := strings.Cut(string(b), "```yaml\n")
		text, _, _ = strings.Cut(text, "```")
		return yaml.Unmarshal([]byte(text), &alerts)
	})
	if len(alerts) == 0 {
		t.Error("docs/observability.md has no alerts")
	}
	for _, a := range alerts {
		v, err := ask(a.Expr)
		if err != nil {
			t.Errorf("alert %s: %s: %v", a.Alert, a.Expr, err)
		}
		if fires := len(v) > 0; fires != slices.Contains(fire, a.Alert) {
			t.Errorf("alert %s fires: %v, with %v", a.Alert, fires, v)
		}
	}
}

func read(t *testing.T, file string, decode func([]byte) error) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = decode(b)
	}
	if err != nil {
		t.Fatal(file, err)
	}
}
