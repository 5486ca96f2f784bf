package browsertest

import (
	"bytes"
	"fmt"
	"image/png"
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
	shot, err := chromedp.Run(d.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), shot, 0o644); err != nil {
		d.t.Fatal(err)
	}
	return shot
}

// TestLooks takes pictures of a page in use, at two widths and in two themes, and
// lets axe-core look at each. SCREENSHOTS names a directory to keep them in;
// UPDATE_DEMO=1 writes the README's picture.
func TestLooks(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	base := startServer(t)
	b := startBrowser(t)
	d, other := b.device(t, "first", base), b.device(t, "second", base)
	other.openLive()
	other.axe("a fresh page")
	other.follow("#login-ada")
	d.openLive()
	d.follow("#login-ada")
	d.wait("two devices", `document.querySelectorAll('#device-table tbody tr').length === 2`)
	d.wait("the stream", `document.querySelector('#stream').textContent.startsWith('Live')`)

	// Some traffic, so that there is something to see.
	d.click("#load")
	d.wait("the profile", `document.querySelector('#source').textContent === 'loader'`)
	d.click("#load")
	d.click("#try-hold")
	d.wait("a while", `document.querySelectorAll('#lane-sliding-log rect').length >= 12`)
	d.click("#try-hold")
	d.click("#invalidate")
	d.wait("the invalidation", `document.querySelector('#ttl').textContent === 'not in the cache'`)
	for _, source := range []string{"loader", "l1", "l1"} {
		d.click("#load")
		d.wait("the profile", `document.querySelector('#source').textContent === '`+source+`'`)
	}
	d.click("#try-ten")
	d.click("#try-ten")
	d.wait("a denial", `document.querySelector('#verdict').textContent.includes('429')`)
	d.wait("its dots", `document.querySelector('#lane-sliding-log .bad')`)
	d.wait("charts", `document.querySelectorAll('#chart-decisions rect').length >= 3 && document.querySelector('#chart-hits rect')`)

	for _, width := range []int64{1400, 360} {
		for _, theme := range []string{"light", "dark"} {
			what := fmt.Sprintf("%d-%s", width, theme)
			d.theme(theme)
			d.do("resize", chromedp.EmulateViewport(width, 900))
			shot := d.screenshot(dir, what)
			if over := evaluate[int](d, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
				t.Errorf("%s: the page is %d px too wide", what, over)
			}
			img, err := png.DecodeConfig(bytes.NewReader(shot))
			if err != nil || img.Width != int(width) || img.Height < 900 {
				t.Errorf("%s: picture of %d × %d, %v; want %d wide", what, img.Width, img.Height, err, width)
			}
			d.axe(what)
			if what == "1400-light" {
				writeDemo(t, shot)
			}
		}
	}
	d.do("resize", chromedp.EmulateViewport(1400, 900))
	for _, theme := range []string{"light", "dark"} {
		d.theme(theme)
		d.click("#mode-down")
		d.wait("down", `document.body.dataset.state === 'down' && document.querySelector('#session-unavailable')`)
		d.screenshot(dir, "broken-"+theme)
		d.axe("broken-" + theme)
		d.click("#mode-working")
		d.wait("mended", `document.body.dataset.state === 'ok'`)
	}
}

// writeDemo writes the README's picture if it is asked to, and otherwise checks
// that there is one.
func writeDemo(t *testing.T, shot []byte) {
	t.Helper()
	const demo = "../../docs/demo.png"
	if len(shot) > 300<<10 {
		t.Errorf("the README's picture has %d KiB; want 300 at most", len(shot)>>10)
	}
	if os.Getenv("UPDATE_DEMO") == "1" {
		if err := os.WriteFile(demo, shot, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(demo)
	if err != nil {
		t.Fatalf("the README's picture: %v; make it with UPDATE_DEMO=1", err)
	}
	defer f.Close()
	if img, err := png.DecodeConfig(f); err != nil || img.Width != 1400 {
		t.Errorf("the README's picture: %d px wide, %v; want 1400", img.Width, err)
	}
}
