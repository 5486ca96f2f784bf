package browsertest

import (
	"strings"
	"testing"
	"time"
)

func TestRateLimit(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, b *browser, env []string) {
		base := startServer(t, env...)
		d := b.device(t, "browser", base)
		d.openLive()
		d.click("#try-one")
		d.wait("one used", `document.querySelector('#meter').value === 1`)
		d.wait("allowed", `document.querySelector('#verdict').textContent.startsWith('allowed by Redis')`)
		fields := d.text("#headers dl")
		for _, want := range []string{"200 OK", "RateLimit-Policy", "X-RateLimit-Remaining"} {
			if !strings.Contains(fields, want) {
				t.Errorf("fields = %s; want %s", fields, want)
			}
		}
		for range 3 {
			d.click("#try-ten")
		}
		d.wait("the meter full", `document.querySelector('#meter').value === 20`)
		d.wait("a denial", `document.querySelector('#verdict').textContent.startsWith('429 denied')`)
		d.wait("Retry-After", `document.querySelector('#headers').textContent.includes('Retry-After')`)
		dots := `[...document.querySelectorAll('.lane')].every(l => l.querySelector('.ok') && l.querySelector('.bad') && /\d+ allowed, [1-9]\d* denied/.test(l.textContent))`
		for range 20 { // units come back while a busy machine sends the first thirty
			if evaluate[bool](d, dots) {
				break
			}
			d.click("#try-ten")
		}
		d.wait("the dots of all algorithms", dots)
		d.wait("the countdown", `/again in \d+\.\d s/.test(document.querySelector('#countdown').textContent)`)
		d.wait("the recovery", `document.querySelector('#countdown').textContent === 'all free' && document.querySelector('#meter').value === 0`)

		d.do("choose", selectOption("#algorithm", "token-bucket"))
		d.click("#try-hold")
		d.wait("several requests", `/^([5-9]|\d\d) of 20/.test(document.querySelector('#meter-text').textContent) || document.querySelector('#lane-token-bucket .ok')`)
		d.wait("the chosen lane", `document.querySelector('#lane-token-bucket').classList.contains('chosen')`)
		d.click("#try-hold")
		if got := evaluate[string](d, `document.querySelector('#try-hold').getAttribute('aria-pressed')`); got != "false" {
			t.Errorf("hold is pressed = %s after the second click; want false", got)
		}
		d.wait("charts", `document.querySelector('#chart-decisions rect') && document.querySelector('#chart-p50 polyline')`)
	})
}

func TestProfile(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, b *browser, env []string) {
		base := startServer(t, env...)
		d := b.device(t, "browser", base)
		d.openLive()
		d.click("#load")
		d.wait("a load", `document.querySelector('#source').textContent === 'loader'`)
		d.wait("the countdown", `/fresh for \d+ s/.test(document.querySelector('#ttl').textContent)`)
		d.click("#load")
		d.wait("a hit", `['l1', 'redis'].includes(document.querySelector('#source').textContent)`)
		d.do("type a city", sendKeys("#city", "Kyiv"))
		d.click("#update")
		d.wait("the update", `document.querySelector('#profile-city').textContent === 'Kyiv'`)
		d.wait("its note", `document.querySelector('#profile-note').textContent === 'Saved Kyiv.'`)
		d.click("#invalidate")
		d.wait("the invalidation", `document.querySelector('#ttl').textContent === 'not in the cache'`)
		d.click("#stampede")
		d.wait("one call for 100", `document.querySelector('#profile-note').textContent.startsWith('100 callers, 1 call of the loader')`)
		d.wait("the hit rate", `/\d %/.test(document.querySelector('#hit-rate').textContent)`)
	})
}

func TestBreakRedis(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, b *browser, env []string) {
		base := startServer(t, env...)
		d := b.device(t, "browser", base)
		d.openLive()
		d.follow("#login-ada")
		d.wait("signed in", `document.querySelector('#user')`)
		d.do("choose", selectOption("#failure", "open"))
		for _, mode := range []string{"down", "lost", "stalled"} {
			d.click("#mode-" + mode)
			d.wait(mode, `document.body.dataset.mode === '`+mode+`' && document.body.dataset.state === 'down'`)
			d.wait("the session's policy", `document.querySelector('#session-unavailable')`)
			d.wait("the other policies", `['limit', 'profile', 'live'].every(id => getComputedStyle(document.querySelector('#' + id + ' .policy[data-for=down]')).display === 'block')`)
			d.click("#try-one")
			d.wait("fail open", `document.querySelector('#verdict').textContent.startsWith('allowed uncounted')`)
			d.do("choose", selectOption("#failure", "closed"))
			d.click("#try-one")
			d.wait("fail closed", `document.querySelector('#verdict').textContent.startsWith('503 denied')`)
			d.do("choose", selectOption("#failure", "open"))
			d.click("#load")
			d.wait("the loader", `document.querySelector('#source').textContent === 'loader'`)

			d.click("#mode-working")
			took := d.wait("the recovery", `document.body.dataset.state === 'ok' && document.querySelector('#user')`)
			t.Logf("%s: recovered %v after the mending", mode, took.Round(time.Millisecond))
			// Asked again until the breaker's probe has succeeded.
			for start := time.Now(); !strings.HasPrefix(d.text("#verdict"), "allowed by Redis"); time.Sleep(200 * time.Millisecond) {
				if time.Since(start) > patience {
					t.Fatalf("%s: the limiter says %q; want it to ask Redis again", mode, d.text("#verdict"))
				}
				d.click("#try-one")
			}
		}
		d.click("#mode-slow")
		d.wait("slow", `getComputedStyle(document.querySelector('#limit .policy[data-for=slow]')).display === 'block'`)
		d.click("#mode-working")
		d.wait("mended", `document.body.dataset.mode === 'working'`)
	})
}
