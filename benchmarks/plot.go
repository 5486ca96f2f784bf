package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The plots are two panels over the number of callers: throughput, and p50 and
// p99, on logarithmic axes. They are SVG written by hand: no more than lines,
// dots and words.

const (
	panelWidth  = 400.0
	panelHeight = 300.0
	marginLeft  = 62.0
	marginTop   = 52.0
	panelGap    = 72.0
	legendWidth = 170.0
)

// palette is told apart by people who don't see red or green as well (Okabe and
// Ito); redporch has the first.
var palette = []string{"#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#000000", "#8c6d31"}

type point struct{ x, y float64 }

type line struct {
	color  string
	dashed bool
	points []point
}

// plot returns the picture of an op, or "" if it was measured at fewer than two
// numbers of callers.
func plot(o op, results []result) string {
	var callers []float64
	var names []string
	rate, latency := []line{}, []line{}
	for _, r := range results {
		if r.Op == o.name && !slices.Contains(callers, float64(r.Callers)) {
			callers = append(callers, float64(r.Callers))
		}
		if r.Op == o.name && !slices.Contains(names, r.Subject) {
			names = append(names, r.Subject)
		}
	}
	if len(callers) < 2 {
		return ""
	}
	slices.Sort(callers)
	for i, name := range names {
		color := palette[i%len(palette)]
		r, p50, p99 := line{color: color}, line{color: color}, line{color: color, dashed: true}
		for _, x := range callers {
			if res, ok := find(results, o.name, name, int(x)); ok {
				r.points = append(r.points, point{x, 1e9 / res.NsPerOp})
				p50.points = append(p50.points, point{x, res.P50})
				p99.points = append(p99.points, point{x, res.P99})
			}
		}
		rate, latency = append(rate, r), append(latency, p50, p99)
	}
	width := marginLeft*2 + panelWidth*2 + panelGap + legendWidth
	height := marginTop + panelHeight + 56
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="system-ui, sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n")
	text(&b, marginLeft, 20, "start", `font-size="15" font-weight="600"`, o.title)
	panel(&b, marginLeft, "operations a second", callers, rate)
	panel(&b, marginLeft+panelWidth+panelGap, "µs for one call: p50, p99 dashed", callers, latency)
	x := marginLeft + panelWidth*2 + panelGap + 18
	for i, name := range names {
		y := marginTop + 10 + float64(i)*20
		fmt.Fprintf(&b, `<line x1="%.0f" y1="%.0f" x2="%.0f" y2="%.0f" stroke="%s" stroke-width="%s"/>`+"\n", x, y, x+22, y, palette[i%len(palette)], strokeWidth(i))
		text(&b, x+28, y+4, "start", "", name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func strokeWidth(i int) string {
	if i == 0 {
		return "3"
	}
	return "1.5"
}

func text(b *strings.Builder, x, y float64, anchor, more, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="#222" %s>%s</text>`+"\n", x, y, anchor, more, html.EscapeString(s))
}

func panel(b *strings.Builder, left float64, title string, callers []float64, lines []line) {
	low, high := math.Inf(1), math.Inf(-1)
	for _, l := range lines {
		for _, p := range l.points {
			if p.y > 0 {
				low, high = min(low, p.y), max(high, p.y)
			}
		}
	}
	if high < low {
		return
	}
	low, high = math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	if high == low {
		high++
	}
	first, last := math.Log2(callers[0]), math.Log2(callers[len(callers)-1])
	px := func(x float64) float64 { return left + (math.Log2(x)-first)/(last-first)*panelWidth }
	py := func(y float64) float64 { return marginTop + (high-math.Log10(y))/(high-low)*panelHeight }

	text(b, left, marginTop-10, "start", "", title)
	for e := low; e <= high; e++ {
		y := py(math.Pow(10, e))
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ccc"/>`+"\n", left, y, left+panelWidth, y)
		text(b, left-6, y+4, "end", "", magnitude(e))
	}
	for _, x := range callers {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#eee"/>`+"\n", px(x), marginTop, px(x), marginTop+panelHeight)
		text(b, px(x), marginTop+panelHeight+17, "middle", "", fmt.Sprintf("%.0f", x))
	}
	text(b, left+panelWidth/2, marginTop+panelHeight+36, "middle", "", "callers")
	width := func(l line) string {
		if l.color == palette[0] {
			return "3"
		}
		return "1.5"
	}
	// Ours last, on top of the others.
	for _, l := range slices.Backward(lines) {
		var path []string
		for _, p := range l.points {
			if p.y > 0 {
				path = append(path, fmt.Sprintf("%.1f,%.1f", px(p.x), py(p.y)))
			}
		}
		dash := ""
		if l.dashed {
			dash = ` stroke-dasharray="5 4"`
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%s"%s/>`+"\n", strings.Join(path, " "), l.color, width(l), dash)
		for _, p := range path {
			x, y, _ := strings.Cut(p, ",")
			fmt.Fprintf(b, `<circle cx="%s" cy="%s" r="2.5" fill="%s"/>`+"\n", x, y, l.color)
		}
	}
}

func magnitude(e float64) string {
	switch v := math.Pow(10, e); {
	case e >= 6:
		return fmt.Sprintf("%.0f M", v/1e6)
	case e >= 3:
		return fmt.Sprintf("%.0f k", v/1e3)
	case e >= 0:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.*f", int(-e), v)
	}
}
