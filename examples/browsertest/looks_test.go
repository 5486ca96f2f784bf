package browsertest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

func (d *device) theme(name string) {
	d.t.Helper()
	_, err := chromedp.Call(d.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// screenshot writes the whole page to NAME.png in dir.
func (d *device) screenshot(dir, name string) []byte {
	d.t.Helper()
	png, err := chromedp.Run(d.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		d.t.Fatal(err)
	}
	return png
}

func TestLooks(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	base := startServer(t)
	b := startBrowser(t)
	d, other := b.device(t, "first", base), b.device(t, "second", base)
	other.openLive()
	other.follow("#login-ada")
	d.openLive()
	d.screenshot(dir, "fresh")
	d.follow("#login-ada")
	d.wait("two devices", `document.querySelectorAll('#device-table tbody tr').length === 2`)
	d.click("#load")
	d.wait("the profile", `document.querySelector('#source').textContent === 'loader'`)
	d.click("#load")
	d.click("#stampede")
	d.wait("the stampede", `document.querySelector('#profile-note').textContent.includes('1 call of the loader')`)
	for range 3 {
		d.click("#try-ten")
		d.wait("10 answers", `!document.querySelector('#verdict').textContent.includes('No request')`)
	}
	d.wait("a denial", `document.querySelector('#verdict').textContent.includes('429')`)
	d.wait("charts", `document.querySelectorAll('#chart-decisions rect').length >= 2`)
	for _, width := range []int64{1400, 360} {
		for _, theme := range []string{"light", "dark"} {
			d.theme(theme)
			d.do("resize", chromedp.EmulateViewport(width, 900))
			d.screenshot(dir, fmt.Sprintf("%d-%s", width, theme))
			if over := evaluate[int](d, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
				t.Errorf("at %d px the page is %d px too wide", width, over)
			}
		}
	}
}
