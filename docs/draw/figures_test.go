package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redporch/redporch/ratelimit"
)

const docs = "../"

var playAll = sync.OnceValues(func() (map[string]run, error) {
	runs := map[string]run{}
	for _, f := range figures {
		r, err := play(f.policy, f.traffic)
		if err != nil {
			return nil, err
		}
		runs[f.name] = r
	}
	return runs, nil
})

// played returns the run of a figure. The tests share it.
func played(t *testing.T, name string) run {
	t.Helper()
	runs, err := playAll()
	if err != nil {
		t.Fatal(err)
	}
	r, ok := runs[name]
	if !ok || len(r.calls) < 100 || len(r.states) < 300 {
		t.Fatalf("%s: a run of %d calls and %d states; want hundreds", name, len(r.calls), len(r.states))
	}
	return r
}

func TestFiguresAreUpToDate(t *testing.T) {
	for _, f := range figures {
		want := f.draw(played(t, f.name))
		got, err := os.ReadFile(path.Join(docs, dir, f.name+".svg"))
		if err != nil || string(got) != want {
			t.Errorf("%s/%s.svg is out of date (%v); run: go run -C docs ./draw", dir, f.name, err)
		}
		for d := xml.NewDecoder(strings.NewReader(want)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s.svg: %v", f.name, err)
			}
		}
	}
	committed, err := os.ReadDir(path.Join(docs, dir))
	if err != nil || len(committed) != len(figures) {
		t.Errorf("%s has %d files (%v); want %d", dir, len(committed), err, len(figures))
	}
}

// TestFiguresFit: nothing is drawn over the top of its panel.
func TestFiguresFit(t *testing.T) {
	for _, f := range figures {
		r := played(t, f.name)
		for _, s := range r.states {
			if most := max(s.used, r.lastMinute(s.at)); f.beside == lastMinute && most > f.top {
				t.Errorf("%s: %d at %v; the axis ends at %d", f.name, most, s.at, f.top)
			}
			if most := max(s.used, r.wouldHold(s.at)); f.beside != lastMinute && most > f.top {
				t.Errorf("%s: %d at %v; the axis ends at %d", f.name, most, s.at, f.top)
			}
		}
		bars := map[time.Duration]int64{}
		for _, c := range r.calls {
			bars[c.at/barOf]++
		}
		for at, n := range bars {
			if n > f.callsTop {
				t.Errorf("%s: %d calls from %v on; the axis ends at %d", f.name, n, at*barOf, f.callsTop)
			}
		}
	}
}

// page returns the page that shows the figures, without its line breaks.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(docs + "ratelimit.md")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

// TestPage: docs/ratelimit.md shows each figure, with a text for those who can't see
// it, and says beside it what the run shows.
func TestPage(t *testing.T) {
	text := page(t)
	for _, f := range figures {
		image := regexp.MustCompile(`!\[` + regexp.QuoteMeta(f.title) + `\. [^\]]+\]\(figures/` + f.name + `\.svg\)`)
		if !image.MatchString(text) {
			t.Errorf("docs/ratelimit.md has no image that matches %s", image)
		}
		if says := f.says(played(t, f.name)); !strings.Contains(text, says) {
			t.Errorf("docs/ratelimit.md does not say of %s:\n%s", f.name, says)
		}
	}
}

// TestSteady: no limit denies what stays below it.
func TestSteady(t *testing.T) {
	for _, f := range figures {
		first := f.traffic[0].name
		if r := played(t, f.name); r.denied(first) > 0 || r.admitted(first) < 30 {
			t.Errorf("%s: %q has %d calls admitted, %d denied; want all of 30 or more admitted", f.name, first, r.admitted(first), r.denied(first))
		}
	}
}

// TestDenied: calls are denied when the limit is used, and only then.
func TestDenied(t *testing.T) {
	for _, f := range figures {
		r := played(t, f.name)
		if peak := r.peak(); peak != f.policy.Limit() {
			t.Errorf("%s: %d used at most; want the limit, %d", f.name, peak, f.policy.Limit())
		}
		used := map[time.Duration]int64{} // after the call
		for _, s := range r.states {
			used[s.at] = s.used
		}
		denied := 0
		for _, c := range r.calls {
			if !c.admitted {
				denied++
				if used[c.at] != f.policy.Limit() {
					t.Errorf("%s: %v: denied with %d used", f.name, c.at, used[c.at])
				}
			}
		}
		if denied == 0 {
			t.Errorf("%s: no call is denied; the figure shows nothing", f.name)
		}
	}
}

func TestFixedWindow(t *testing.T) {
	r := played(t, "fixed-window")
	if most := r.most(); most < 2*limit*95/100 || most > 2*limit {
		t.Errorf("at most %d within a minute; want nearly twice the limit, and no more", most)
	}
	// Windows as they should be: each starts with the first call after the last.
	var ends []time.Duration
	var used int64
	for _, c := range r.calls {
		if ends == nil || c.at >= ends[len(ends)-1] {
			ends, used = append(ends, c.at+span), 0
		}
		if c.admitted != (used < limit) {
			t.Errorf("%v: admitted is %v with %d used in the window", c.at, c.admitted, used)
		}
		if c.admitted {
			used++
		}
	}
	for ends[len(ends)-1] > length {
		ends = ends[:len(ends)-1]
	}
	if got := r.windowEnds(); len(got) < 4 || !slices.Equal(got, ends) {
		t.Errorf("windows end at %v; want %v", got, ends)
	}
}

func TestSlidingLog(t *testing.T) {
	r := played(t, "sliding-log")
	if most := r.most(); most != limit {
		t.Errorf("at most %d within a minute; want the limit, %d", most, limit)
	}
	for i, s := range r.states {
		last := i+1 == len(r.states) || r.states[i+1].at > s.at
		if n := r.lastMinute(s.at); last && n != s.used {
			t.Errorf("%v: %d entries; %d calls were admitted in the last minute", s.at, s.used, n)
		}
	}
}

func TestSlidingWindow(t *testing.T) {
	r := played(t, "sliding-window")
	if most := r.most(); most <= limit || most >= 2*limit {
		t.Errorf("at most %d within a minute; want over the limit, as the page says, and below twice of it", most)
	}
	// What it counts is what two counters by the minute make of the calls.
	for i, s := range r.states {
		if i+1 < len(r.states) && r.states[i+1].at == s.at {
			continue // more calls come at this time
		}
		var older, newer int64
		for _, c := range r.calls {
			switch minute := s.at / span; {
			case !c.admitted || c.at > s.at:
			case c.at/span == minute:
				newer++
			case c.at/span == minute-1:
				older++
			}
		}
		left := span - s.at%span
		want := newer + (older*int64(left)+int64(span)-1)/int64(span)
		if s.used != want {
			t.Errorf("%v: %d counted; want %d + %d weighted by %v of a minute: %d", s.at, s.used, newer, older, left, want)
		}
	}
}

// TestSlidingWindowAtWorst: the page says that a sliding window may admit nearly
// twice the limit in a window. It does if the older counter fills at the end of its
// minute and calls keep coming.
func TestSlidingWindowAtWorst(t *testing.T) {
	r, err := play(ratelimit.SlidingWindow("calls", limit, span), []phase{
		{"at the end of a minute", 52 * time.Second, time.Minute, tick, 0},
		{"then without a pause", time.Minute, 2 * time.Minute, tick, 0},
	})
	if err != nil {
		t.Fatal(err)
	}
	says := fmt.Sprintf("When the limit is used up within the last eight seconds of a minute and calls keep coming, it is %d", r.most())
	if text := page(t); !strings.Contains(text, says) {
		t.Errorf("docs/ratelimit.md does not say:\n%s", says)
	}
	if most := r.most(); most < 2*limit*9/10 || most >= 2*limit {
		t.Errorf("at most %d within a minute; want nearly twice the limit", most)
	}
	// Spread: what comes after the older counter is full comes by its fading.
	for _, c := range r.calls {
		if c.at < time.Minute {
			continue
		}
		if n, most := r.lastMinute(c.at)-r.lastMinute(time.Minute-tick), int64((c.at-time.Minute)/time.Second)+1; c.at < 110*time.Second && n > most {
			t.Errorf("%v: %d admitted since the first minute's end; want %d at most", c.at, n, most)
		}
	}
}

func TestTokenBucket(t *testing.T) {
	r := played(t, "token-bucket")
	if most := r.most(); most <= limit || most > limit+burst {
		t.Errorf("at most %d within a minute; want over the rate, and no more than rate and burst", most)
	}
	// The bucket by the calls: eighths of a token come in with each tick.
	const whole = int64(time.Second / tick)
	level, next, last := burst*whole, 0, time.Duration(0)
	for _, s := range r.states {
		level = min(burst*whole, level+int64((s.at-last)/tick))
		last = s.at
		if next < len(r.calls) && r.calls[next].at == s.at {
			if c := r.calls[next]; c.admitted != (level >= whole) {
				t.Errorf("%v: admitted is %v with %d eighths in the bucket", c.at, c.admitted, level)
			}
			if r.calls[next].admitted {
				level -= whole
			}
			next++
		}
		if want := burst - level/whole; s.used != want {
			t.Errorf("%v: %d tokens missing; want %d", s.at, s.used, want)
		}
	}
	if next != len(r.calls) {
		t.Errorf("looked at %d of %d calls", next, len(r.calls))
	}
	// The bucket is empty from 20 seconds after the overload began.
	for from := r.first(overload) + 20*time.Second; from < 330*time.Second; from += time.Second {
		n := 0
		for _, c := range r.calls {
			if c.admitted && c.at >= from && c.at < from+time.Second {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d admitted in the second from %v on; want 1", n, from)
		}
	}
}

func TestConcurrency(t *testing.T) {
	r := played(t, "concurrency")
	held := func(at time.Duration) (n int64) {
		for _, c := range r.calls {
			if c.admitted && c.at <= at && at < c.at+min(c.hold, span) {
				n++
			}
		}
		return n
	}
	for i, s := range r.states {
		last := i+1 == len(r.states) || r.states[i+1].at > s.at
		if n := held(s.at); last && n != s.used {
			t.Errorf("%v: %d units held; want %d by the calls", s.at, s.used, n)
		}
	}
	if r.denied(slow)+r.denied(quick) == 0 || r.denied(die) > 0 || r.denied(after) == 0 {
		t.Errorf("denied: %d while work is slow and %d after, %d of those that die, %d after them; want some, none, some",
			r.denied(slow), r.denied(quick), r.denied(die), r.denied(after))
	}
	// The leases of the dead end by themselves; what comes then is admitted.
	for _, c := range r.calls {
		if c.at >= r.first(die)+span && !c.admitted {
			t.Errorf("%v: denied after the first lease of the dead had ended", c.at)
		}
	}
}

func TestMost(t *testing.T) {
	r := run{}
	for _, at := range []int{0, 1, 59, 60, 61, 200} {
		r.calls = append(r.calls, call{at: time.Duration(at) * time.Second, admitted: at != 59})
	}
	for at, want := range map[int]int64{0: 1, 58: 2, 59: 2, 60: 2, 61: 2, 119: 2, 120: 1, 200: 1} {
		if got := r.lastMinute(time.Duration(at) * time.Second); got != want {
			t.Errorf("lastMinute(%d s) = %d; want %d", at, got, want)
		}
	}
	if got := r.most(); got != 2 {
		t.Errorf("most() = %d; want 2", got)
	}
}

func TestClock(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0:00", 65 * time.Second: "1:05", 6 * time.Minute: "6:00"} {
		if got := clock(d); got != want {
			t.Errorf("clock(%v) = %q; want %q", d, got, want)
		}
	}
}
