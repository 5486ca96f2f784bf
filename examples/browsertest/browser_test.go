package browsertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is for machines that do many things at once.
const patience = time.Minute

// browser is a Chromium without a window.
type browser struct{ ctx context.Context }

// startBrowser starts one that ends with the test.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		msg := "chromium is not installed; on Debian: apt-get install chromium fonts-dejavu-core"
		if os.Getenv("REDISTEST") == "all" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("lang", "en-US"),
	)
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(actx)
	t.Cleanup(func() {
		cancel()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return &browser{ctx}
}

// device is a browser profile of its own, with one page, and says so of each
// error of a script, each line in the console and each violation of the CSP.
type device struct {
	t    *testing.T
	name string
	ctx  context.Context
	base string

	mu       sync.Mutex
	problems []string
}

// device opens a new profile, which is closed when t ends, before the servers that
// were started earlier. The page's viewport is wide.
func (b *browser) device(t *testing.T, name, base string) *device {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	d := &device{t: t, name: name, ctx: ctx, base: base}
	t.Cleanup(func() {
		cancel()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range d.problems {
			t.Errorf("%s: console: %s", d.name, p)
		}
	})
	// The tab lives as long as the context of the first call.
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1400, 900)); err != nil {
		t.Fatalf("%s: open a tab: %v", name, err)
	}
	if err := chromedp.Listen(ctx, d.listen); err != nil {
		t.Fatal(err)
	}
	return d
}

// listen collects what should not happen. Chromium itself notes each answer with
// an error status; 429 and 503 are what the page is about.
func (d *device) listen(ev any) {
	problem := ""
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		problem = fmt.Sprintf("exception: %s %+v", ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception)
	case *runtime.EventConsoleAPICalled:
		problem = fmt.Sprintf("console.%s", ev.Type)
		for _, a := range ev.Args {
			problem += " " + string(a.Value)
		}
	case *log.EventEntryAdded:
		e := ev.Entry
		if e.Source == log.EntrySourceNetwork && (strings.Contains(e.Text, "status of 429") || strings.Contains(e.Text, "status of 503")) {
			return
		}
		problem = fmt.Sprintf("%s %s: %s (%s)", e.Source, e.Level, e.Text, e.URL)
	}
	if problem != "" {
		d.mu.Lock()
		d.problems = append(d.problems, problem)
		d.mu.Unlock()
	}
}

func (d *device) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	for _, a := range actions {
		if err := chromedp.Do(ctx, a); err != nil {
			d.t.Fatalf("%s: %s: %v", d.name, what, err)
		}
	}
}

func (d *device) open(path string) {
	d.t.Helper()
	d.do("open "+path, chromedp.Navigate(d.base+path))
}

// openLive opens the page and waits until its stream has said who is there.
func (d *device) openLive() {
	d.t.Helper()
	d.open("/")
	d.wait("the stream", `document.querySelector('#stream').textContent.startsWith('Live')`)
}

// click clicks an element; follow does too and waits for the page it leads to.
func (d *device) click(sel string) {
	d.t.Helper()
	d.press("click "+sel, func(ctx context.Context) error {
		return chromedp.Do(ctx, chromedp.Click(chromedp.CSS(sel), chromedp.NodeVisible))
	})
}

func (d *device) follow(sel string) {
	d.t.Helper()
	d.press("follow "+sel, func(ctx context.Context) error {
		_, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(sel), chromedp.NodeVisible))
		return err
	})
}

// press tries again if the stream has replaced the element in the very moment.
func (d *device) press(what string, click func(context.Context) error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	for try := 0; ; try++ {
		err := click(ctx)
		if err == nil {
			return
		}
		if try == 5 || !strings.Contains(err.Error(), "node") {
			d.t.Fatalf("%s: %s: %v", d.name, what, err)
		}
	}
}

func evaluate[T any](d *device, js string) T {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		d.t.Fatalf("%s: %s: %v", d.name, js, err)
	}
	return v
}

// text is what an element shows, or "" if there is none.
func (d *device) text(sel string) string {
	d.t.Helper()
	return evaluate[string](d, fmt.Sprintf(`document.querySelector(%q)?.textContent.trim() ?? ""`, sel))
}

func sendKeys(sel, keys string) chromedp.Action[chromedp.Void] {
	return chromedp.SendKeys(chromedp.CSS(sel), keys)
}

func selectOption(sel, value string) chromedp.Action[chromedp.Void] {
	return chromedp.SetValue(chromedp.CSS(sel), value)
}

// wait returns how long it took until js was true.
func (d *device) wait(what, js string) time.Duration {
	d.t.Helper()
	return d.waitFor(patience, what, js)
}

func (d *device) waitFor(limit time.Duration, what, js string) time.Duration {
	d.t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if evaluate[bool](d, "!!("+js+")") {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			d.t.Fatalf("%s: %s did not come within %v: %s\npage: %s", d.name, what, limit, js, evaluate[string](d, `document.body.innerText`))
		}
	}
}
