package main

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// A figure is two panels over one axis of time: the calls, and what the algorithm
// counts. It is SVG written by hand: bars, steps and words. The background is white
// on purpose: a page's dark theme does not reach into an image.

// Lengths are in pixels. The scales (two for a second, and what the panels' heights
// make of their axes) are exact in binary, so that the text is the same everywhere.
const (
	left, right = 56, 24
	perSecond   = 2
	plotWidth   = perSecond * int(length/time.Second)
	width       = left + plotWidth + right
	callsY      = 76 // top of the upper panel
	callsHeight = 90
	usedY       = callsY + callsHeight + 50
	usedHeight  = 150
	height      = usedY + usedHeight + 46
	barOf       = 5 * time.Second
)

// Colours are told apart by people who don't see red or green as well (Okabe and
// Ito).
const (
	admittedColor = "#0072b2"
	deniedColor   = "#e69f00"
	countedColor  = "#009e73"
	besideColor   = "#222"
	limitColor    = "#d55e00"
)

type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

func (d *drawing) text(x, y float64, anchor, more, s string) {
	d.add(`<text x="%g" y="%g" text-anchor="%s"%s>%s</text>`, x, y, anchor, more, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, style string) {
	d.add(`<line x1="%g" y1="%g" x2="%g" y2="%g" %s/>`, x1, y1, x2, y2, style)
}

func x(at time.Duration) float64 { return left + at.Seconds()*perSecond }

// draw returns the picture of a run.
func (f figure) draw(r run) string {
	var d drawing
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="12" fill="#222">`, width, height, width, height)
	d.add("<title>%s</title>", html.EscapeString(f.title))
	d.add("<desc>%s</desc>", html.EscapeString(f.says(r)))
	d.add(`<rect width="100%%" height="100%%" rx="6" fill="#fff"/>`)
	d.text(left, 24, "start", ` font-size="15" font-weight="600"`, f.title)
	for i, ph := range f.traffic {
		if i%2 == 1 { // every other phase is shaded
			d.add(`<rect x="%g" y="%d" width="%g" height="%d" fill="#f0f0f0"/>`, x(ph.from), callsY, x(ph.to)-x(ph.from), usedY+usedHeight-callsY)
		}
	}
	for at := time.Duration(0); at <= length; at += time.Minute {
		d.line(x(at), callsY, x(at), usedY+usedHeight, `stroke="#ddd"`)
		d.text(x(at), usedY+usedHeight+18, "middle", "", clock(at))
	}
	d.text(left+float64(plotWidth)/2, usedY+usedHeight+36, "middle", "", "time, minutes")
	f.drawCalls(&d, r)
	f.drawUsed(&d, r)
	d.add("</svg>")
	return d.String()
}

// axis draws a panel's horizontal lines and returns its scale.
func axis(d *drawing, top, height int, high, step int64, label string) func(int64) float64 {
	y := func(v int64) float64 { return float64(top) + float64(height)*float64(high-v)/float64(high) }
	for v := int64(0); v <= high; v += step {
		d.line(left, y(v), left+float64(plotWidth), y(v), `stroke="#ddd"`)
		d.text(left-6, y(v)+4, "end", "", fmt.Sprint(v))
	}
	middle := float64(top) + float64(height)/2
	d.add(`<text transform="translate(16 %g) rotate(-90)" text-anchor="middle">%s</text>`, middle, label)
	return y
}

// drawCalls draws a bar for each five seconds, denied calls on top of admitted ones.
func (f figure) drawCalls(d *drawing, r run) {
	legend := float64(left)
	for _, e := range []struct{ color, name string }{{admittedColor, "admitted"}, {deniedColor, "denied"}} {
		d.add(`<rect x="%g" y="39" width="10" height="10" fill="%s"/>`, legend, e.color)
		d.text(legend+15, 48, "start", "", e.name)
		legend += 85
	}
	for _, ph := range f.traffic {
		d.text((x(ph.from)+x(ph.to))/2, callsY-6, "middle", ` font-size="11" fill="#555"`, ph.name)
	}
	y := axis(d, callsY, callsHeight, f.callsTop, max(1, f.callsTop/4), "calls in 5 s")
	for from := time.Duration(0); from < length; from += barOf {
		var admitted, all int64
		for _, c := range r.calls {
			if c.at >= from && c.at < from+barOf {
				all++
				if c.admitted {
					admitted++
				}
			}
		}
		bar := func(low, high int64, color string) {
			if high > low {
				d.add(`<rect x="%g" y="%g" width="9" height="%g" fill="%s"/>`, x(from)+0.5, y(high), y(low)-y(high), color)
			}
		}
		bar(0, admitted, admittedColor)
		bar(admitted, all, deniedColor)
	}
}

// drawUsed draws what the algorithm counts, its limit, and what to compare with.
func (f figure) drawUsed(d *drawing, r run) {
	const counted, beside, limited, ends = `stroke="` + countedColor + `" stroke-width="2.5" fill="none"`,
		`stroke="` + besideColor + `" stroke-width="1.2" stroke-dasharray="4 3" fill="none"`,
		`stroke="` + limitColor + `" stroke-width="1.2"`,
		`stroke="#777" stroke-dasharray="1 3"`
	legend := float64(left)
	entry := func(style, name string) {
		d.line(legend, usedY-16, legend+22, usedY-16, style)
		d.text(legend+28, usedY-12, "start", "", name)
		legend += 50 + 6.5*float64(len(name))
	}
	entry(counted, f.counts)
	entry(beside, f.beside)
	entry(limited, fmt.Sprintf("%s %d", f.bound, r.policy.Limit()))
	if f.windows {
		entry(ends, "window ends")
	}
	y := axis(d, usedY, usedHeight, f.top, f.top/4, "used of the limit")
	if f.windows {
		for _, end := range r.windowEnds() {
			d.line(x(end), usedY, x(end), usedY+usedHeight, ends)
		}
	}
	d.line(left, y(r.policy.Limit()), left+float64(plotWidth), y(r.policy.Limit()), limited)
	steps := func(style string, value func(state) int64) {
		var path strings.Builder
		fmt.Fprintf(&path, "M%g %g", x(0), y(value(r.states[0])))
		last := value(r.states[0])
		for _, s := range r.states {
			if v := value(s); v != last {
				fmt.Fprintf(&path, "H%gV%g", x(s.at), y(v))
				last = v
			}
		}
		fmt.Fprintf(&path, "H%g", x(length))
		d.add(`<path d="%s" %s/>`, path.String(), style)
	}
	steps(counted, func(s state) int64 { return s.used })
	steps(beside, func(s state) int64 {
		if f.beside == lastMinute {
			return r.lastMinute(s.at)
		}
		return r.wouldHold(s.at)
	})
}

// windowEnds returns the ends of the fixed windows that anything was used in.
func (r run) windowEnds() (ends []time.Duration) {
	for _, s := range r.states {
		if end := s.at + s.reset; s.used > 0 && end <= length && (ends == nil || ends[len(ends)-1] != end) {
			ends = append(ends, end)
		}
	}
	return ends
}
