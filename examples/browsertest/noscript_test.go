package browsertest

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// All forms work in a browser that runs no scripts.
func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, b *browser, env []string) {
		base := startServer(t, env...)
		d := b.device(t, "no script", base)
		if _, err := chromedp.Call(d.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
			t.Fatal(err)
		}
		want := func(sel, text string) {
			t.Helper()
			if got := d.text(sel); got != text {
				t.Errorf("%s = %q; want %q", sel, got, text)
			}
		}
		d.open("/")
		if evaluate[bool](d, `document.documentElement.classList.contains('js')`) {
			t.Fatal("scripts run")
		}
		if evaluate[string](d, `getComputedStyle(document.querySelector('#try-ten')).display`) != "none" {
			t.Error("a button that needs scripts is shown")
		}
		d.follow("#login-ada")
		want(".flash", "Signed in as Ada Lovelace.")
		want("#user", "Ada Lovelace")
		d.follow("#load")
		want("#source", "loader")
		d.do("type a city", sendKeys("#city", "Lima"))
		d.follow("#update")
		want(".flash", "Saved Lima.")
		want("#profile-city", "Lima")
		d.follow("#invalidate")
		want(".flash", "Removed from every cache.")
		d.follow("#stampede")
		if got := d.text(".flash"); !strings.HasPrefix(got, "100 callers, 1 call of the loader, ") {
			t.Errorf("flash = %q; want one call for 100 callers", got)
		}
		d.follow("#try-one")
		want("#verdict", "allowed")
		want("#meter-text", "1 of 20 used")
		d.follow("#revoke-others")
		want(".flash", "There was no other device.")
		d.follow("#mode-down")
		want("#redis-text", "Connections are refused, as if the server had crashed.")
		if d.text("#session-unavailable") == "" {
			t.Error("the page does not say that nobody can be recognised")
		}
		d.follow("#mode-working")
		for d.text("#user") == "" { // until a breaker has probed
			d.open("/")
		}
		d.follow("#logout")
		want("#user", "")
	})
}
