package demo

import (
	"encoding/json"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

func TestPage(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		b := newBrowser(t, startServer(t, env))
		res, page := b.ask("/", nil, 200)
		if csp := res.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("CSP = %q; want one that forbids inline code", csp)
		}
		// What such a policy would block must not be there.
		if bad := regexp.MustCompile(`<style|\sstyle=|\son[a-z]+=|<script[^>]*>[^<]`).FindString(page); bad != "" {
			t.Errorf("the page has inline code or style: %q", bad)
		}
		if c := res.Header.Get("Set-Cookie"); c != "" {
			t.Errorf("a visit sets a cookie: %q", c)
		}
		for _, asset := range regexp.MustCompile(`(?:src|href)="(/[^"#]+)"`).FindAllStringSubmatch(page, -1) {
			b.ask(asset[1], nil, 200)
		}
		for _, id := range []string{"devices", "limit", "profile", "live", "redis"} {
			if !strings.Contains(page, `<section id="`+id+`"`) {
				t.Errorf("the page has no card %s", id)
			}
		}
		b.ask("/nothing", nil, 404)
		b.ask("/login", nil, 405)

		// Signing in renews the id, and the page says so once.
		before := b.me().Session
		b.ask("/login", url.Values{"user": {"grace"}}, 303)
		if after := b.me().Session; after == before || after == "" {
			t.Errorf("session %q became %q at sign-in; want a new id", before, after)
		}
		b.ask("/api/devices/revoke-others", url.Values{}, 303)
		if _, page := b.ask("/", nil, 200); !strings.Contains(page, "There was no other device.") || !strings.Contains(page, "Grace Hopper") {
			t.Errorf("the page does not show what happened: %s", page)
		}
	})
}

type tried struct {
	Decision verdict
	Compared []verdict
}

func (b *browser) try(query string, status int) (v tried) {
	b.t.Helper()
	_, body := b.ask("/api/try?"+query, nil, status)
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		b.t.Fatalf("try = %s: %v", body, err)
	}
	return v
}

func TestTry(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		b := newBrowser(t, startServer(t, env))
		for i := range tryLimit {
			a := algorithms[i%len(algorithms)]
			v := b.try("algorithm="+a.Name, 200)
			if v.Decision.Algorithm != a.Name || !v.Decision.Allowed || v.Decision.Source != "redis" || v.Decision.Limit != tryLimit {
				t.Fatalf("request %d = %+v; want it allowed by %s", i, v.Decision, a.Name)
			}
			if len(v.Compared) != len(algorithms) {
				t.Fatalf("compared %d algorithms; want %d", len(v.Compared), len(algorithms))
			}
			// All of them count the same traffic, whoever decides. The bucket fills
			// up meanwhile.
			for _, c := range v.Compared {
				if c.Remaining != int64(tryLimit-1-i) && !(c.Algorithm == "token-bucket" && c.Remaining > int64(tryLimit-1-i)) {
					t.Errorf("after %d requests %s has %d left; want %d", i+1, c.Algorithm, c.Remaining, tryLimit-1-i)
				}
			}
		}
		res, body := b.ask("/api/try?algorithm=sliding-log", nil, 429)
		for _, name := range []string{"Retry-After", "RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining"} {
			if res.Header.Get(name) == "" {
				t.Errorf("a denial has no %s; headers %v", name, res.Header)
			}
		}
		var v tried
		if err := json.Unmarshal([]byte(body), &v); err != nil || v.Decision.Allowed || v.Decision.RetryAfterMs <= 0 || v.Decision.RetryAfterMs > tryWindow.Milliseconds() {
			t.Errorf("denial = %s; want a wait of at most %v", body, tryWindow)
		}

		// The form, without JavaScript.
		res, _ = b.ask("/try", url.Values{"algorithm": {"fixed-window"}, "failure": {"open"}}, 303)
		loc := res.Header.Get("Location")
		if loc != "/?algorithm=fixed-window&failure=open&tried=denied#limit" {
			t.Errorf("the form leads to %q", loc)
		}
		_, page := b.ask(strings.TrimSuffix(loc, "#limit"), nil, 200)
		if !strings.Contains(page, "429 denied") || !strings.Contains(page, `<option value="fixed-window" selected>`) || !strings.Contains(page, "20 of 20 used") {
			t.Errorf("the page does not show the denial: %s", page)
		}
	})
}

func TestProfileForms(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		b := newBrowser(t, startServer(t, env))
		if _, page := b.ask("/", nil, 200); !strings.Contains(page, "Not loaded yet") {
			t.Error("the page loads the profile unasked")
		}
		if _, page := b.ask("/?load=1", nil, 200); !strings.Contains(page, `data-source="loader"`) || !strings.Contains(page, "Ada Lovelace") {
			t.Error("the page does not show the profile it was asked for")
		}
		b.ask("/api/profile/invalidate", url.Values{"id": {"1"}}, 303)
		if _, page := b.ask("/", nil, 200); !strings.Contains(page, "Removed from every cache.") || !strings.Contains(page, "Not loaded yet") {
			t.Error("the page does not show the invalidation")
		}

		_, body := b.ask("/api/profile/stampede", url.Values{"id": {"1"}}, 200, "Accept", "application/json")
		var s struct {
			Callers, Loads int
			Sources        map[string]int
		}
		if err := json.Unmarshal([]byte(body), &s); err != nil || s.Callers != stampede || s.Loads != 1 {
			t.Errorf("stampede = %s; want %d callers and 1 load", body, stampede)
		}
		n := 0
		for _, c := range s.Sources {
			n += c
		}
		if n != stampede {
			t.Errorf("stampede = %s; want an answer for each caller", body)
		}
		b.ask("/api/profile/stampede", url.Values{"id": {"1"}}, 303)
		if _, page := b.ask("/", nil, 200); !strings.Contains(page, "100 callers, 1 call of the loader") {
			t.Error("the page does not show the stampede")
		}

		b.ask("/api/profile", url.Values{"id": {"1"}, "city": {"Oslo <b>"}}, 303)
		if _, page := b.ask("/?load=1", nil, 200); !strings.Contains(page, "Saved Oslo &lt;b&gt;.") || strings.Contains(page, "Oslo <b>") {
			t.Error("the page does not show the update, escaped")
		}
		for path, form := range map[string]url.Values{
			"/api/profile/invalidate": {"id": {"x"}},
			"/api/profile/stampede":   {"id": {""}},
			"/api/profile":            {"id": {"1"}, "city": {strings.Repeat("x", 81)}},
		} {
			b.ask(path, form, 400)
		}
		b.ask("/api/profile", url.Values{"id": {"99"}, "city": {"Oslo"}}, 404)
	})
}
