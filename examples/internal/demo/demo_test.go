package demo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redporch/redporch/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// output is a writer that can be read while run writes to it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var listening = regexp.MustCompile(`http://localhost:(\d+)/`)

// startServer runs the server with env until the test ends, and returns its URL.
func startServer(t *testing.T, env map[string]string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var out, errs output
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, func(k string) string {
			return cmp.Or(env[k], map[string]string{
				"ADDR": "127.0.0.1:0",
				// Tests of what Redis says don't want to hear the policies for when
				// it is late, on a machine that does many things at once.
				"REDIS_TIMEOUT": "5s",
			}[k])
		}, &out, &errs)
	}()
	t.Cleanup(func() {
		cancel()
		if c := <-code; c != 0 {
			t.Errorf("exit code %d, stderr %s; want 0", c, errs.String())
		}
	})
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(5 * time.Millisecond) {
		if m := listening.FindStringSubmatch(out.String()); m != nil {
			return "http://127.0.0.1:" + m[1]
		}
		if len(code) > 0 {
			break
		}
	}
	t.Fatalf("server did not start: %s%s", out.String(), errs.String())
	return ""
}

// browser is a client with cookies of its own that does not follow redirects.
type browser struct {
	t    *testing.T
	base string
	c    *http.Client
}

func newBrowser(t *testing.T, base string) *browser {
	jar, _ := cookiejar.New(nil)
	return &browser{t, base, &http.Client{
		Jar:           jar,
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ask sends a request, checks its status and returns response and body. form nil
// means GET.
func (b *browser) ask(path string, form url.Values, status int, header ...string) (*http.Response, string) {
	b.t.Helper()
	method, body := "GET", ""
	if form != nil {
		method, body = "POST", form.Encode()
	}
	req, err := http.NewRequest(method, b.base+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := b.c.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != status {
		b.t.Fatalf("%s %s = %s %s; want %d", method, path, res.Status, text, status)
	}
	return res, string(text)
}

func (b *browser) me() (a account) {
	b.t.Helper()
	_, body := b.ask("/api/me", nil, 200)
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		b.t.Fatalf("/api/me = %s: %v", body, err)
	}
	return a
}

func (b *browser) profile(id string) (city, source string) {
	b.t.Helper()
	_, body := b.ask("/api/profile?id="+id, nil, 200)
	var v struct {
		Profile profile
		Source  string
		TTLMs   int64 `json:"ttl_ms"`
	}
	// A slow answer makes the time that is left look longer by as much.
	if err := json.Unmarshal([]byte(body), &v); err != nil || v.TTLMs <= 0 || v.TTLMs > 61_000 {
		b.t.Fatalf("profile = %s (%v); want JSON with ttl_ms from 1 to 61000", body, err)
	}
	return v.Profile.City, v.Source
}

// everyRedis runs body on the Redis inside, and on a real one.
func everyRedis(t *testing.T, body func(t *testing.T, env map[string]string)) {
	t.Run("embedded", func(t *testing.T) { body(t, map[string]string{}) })
	t.Run("server", func(t *testing.T) {
		s := redistest.Start(t)
		body(t, map[string]string{"REDIS_URL": "unix://" + s.Addr()})
	})
}

func TestSignIn(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		base := startServer(t, env)
		b, other := newBrowser(t, base), newBrowser(t, base)
		if a := b.me(); a.User != "" || a.Visits != 1 || a.Session == "" || a.IdleTTLMs <= 0 {
			t.Errorf("first visit = %+v; want no user, 1 visit, a session with a lifetime", a)
		}
		first := b.me()
		if first.Visits != 2 {
			t.Errorf("second visit = %+v; want 2 visits", first)
		}
		if _, body := b.ask("/login", url.Values{"user": {"eve"}}, 401); !strings.Contains(body, "try ada or grace") {
			t.Errorf("unknown user: %q; want a hint", body)
		}
		u, _ := url.Parse(base)
		before := b.c.Jar.Cookies(u)
		_, body := b.ask("/login", url.Values{"user": {"ada"}}, 200, "Accept", "application/json")
		var a account
		if err := json.Unmarshal([]byte(body), &a); err != nil || a.User != "ada" {
			t.Errorf("login = %s; want ada's account", body)
		}
		fixed := newBrowser(t, base)
		fixed.c.Jar.SetCookies(u, before)
		// It stays known for a while, so that nothing anonymous is sent over the new one.
		if res, body := fixed.ask("/api/me", nil, 503); strings.Contains(body, "ada") || len(res.Cookies()) != 0 {
			t.Errorf("the cookie from before the login: %q, cookies %v; want it to be worth nothing", body, res.Cookies())
		}

		res, _ := other.ask("/login", url.Values{"user": {"ada"}}, 303)
		if loc := res.Header.Get("Location"); loc != "/" {
			t.Errorf("login by form leads to %q; want /", loc)
		}
		_, page := other.ask("/", nil, 200)
		if !strings.Contains(page, "Signed in as Ada Lovelace.") || !strings.Contains(page, "this one") {
			t.Errorf("page after login lacks the flash or the device:\n%s", page)
		}
		if _, page = other.ask("/", nil, 200); strings.Contains(page, "Signed in as Ada Lovelace.") {
			t.Error("the flash is shown twice")
		}

		var list struct{ Devices []device }
		_, body = b.ask("/api/devices", nil, 200)
		json.Unmarshal([]byte(body), &list)
		if len(list.Devices) != 2 {
			t.Fatalf("devices = %s; want two", body)
		}
		for _, d := range list.Devices {
			if !strings.Contains(d.Label, "at 127.0.0.1") || time.Since(d.Created) > time.Minute {
				t.Errorf("device = %+v; want its address and a recent time", d)
			}
			if !d.Current {
				b.ask("/api/devices/revoke", url.Values{"id": {d.ID}}, 303)
				b.ask("/api/devices/revoke", url.Values{"id": {d.ID}}, 404)
			}
		}
		if a := other.me(); a.User != "" {
			t.Errorf("revoked device = %+v; want it signed out", a)
		}
		other.ask("/api/devices", nil, 401)
		other.ask("/login", url.Values{"user": {"ada"}}, 303)
		b.ask("/api/devices/revoke-others", url.Values{}, 303)
		if a, mine := other.me(), b.me(); a.User != "" || mine.User != "ada" {
			t.Errorf("after signing out others: other %+v, this %+v; want only this signed in", a, mine)
		}

		signedIn := b.c.Jar.Cookies(u)
		b.ask("/logout", url.Values{}, 403, "Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example")
		b.ask("/logout", url.Values{}, 303)
		if len(b.c.Jar.Cookies(u)) != 0 {
			t.Error("the cookie is still there after logout")
		}
		b.c.Jar.SetCookies(u, signedIn)
		if a := b.me(); a.User != "" {
			t.Errorf("the old cookie after logout = %+v; want it dead", a)
		}
	})
}

func TestLimit(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		b := newBrowser(t, startServer(t, env))
		for range 20 {
			b.ask("/api/limited", nil, 200)
		}
		res, body := b.ask("/api/limited", nil, 429)
		if after := res.Header.Get("Retry-After"); after == "" || after == "0" {
			t.Errorf("Retry-After = %q; want at least 1", after)
		}
		if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("Content-Type = %q, body %s; want problem+json", ct, body)
		}
	})
}

// testKey is in hex, and no byte pattern that a server would refuse.
const testKey = "6b1f0c93e2d87a4455be19f703ca8e21d94c7706f8a35b60129edc4437e1ab58"

func TestProfileAcrossServers(t *testing.T) {
	s := redistest.Start(t)
	env := map[string]string{"REDIS_URL": "unix://" + s.Addr(), "SESSION_KEYS": testKey}
	one, two := newBrowser(t, startServer(t, env)), newBrowser(t, startServer(t, env))
	if city, source := one.profile("1"); city != "London" || source != "loader" {
		t.Errorf("first read = %s from %s; want London from loader", city, source)
	}
	if city, source := two.profile("1"); city != "London" || source != "redis" {
		t.Errorf("the other server's first read = %s from %s; want London from redis", city, source)
	}
	// Its memory is used once it hears the announcements of others.
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		_, source := two.profile("1")
		if source == "l1" {
			break
		}
		if source != "redis" || time.Since(start) > time.Minute {
			t.Fatalf("after %v its reads are from %s; want l1", time.Since(start), source)
		}
	}
	one.ask("/api/profile", url.Values{"id": {"1"}, "city": {"Paris"}}, 303)
	if city, _ := one.profile("1"); city != "Paris" {
		t.Errorf("after the update = %s; want Paris", city)
	}
	// The other server learns by a message.
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if city, _ := two.profile("1"); city == "Paris" {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the other server still shows the old city")
		}
	}
	one.ask("/api/profile?id=99", nil, 404)
	one.ask("/api/profile?id=x", nil, 400)
	one.ask("/api/profile", url.Values{"id": {"1"}}, 400)

	// One session, one limit.
	one.ask("/login", url.Values{"user": {"grace"}}, 303)
	two.c.Jar = one.c.Jar // cookies don't tell ports apart
	if a := two.me(); a.User != "grace" {
		t.Errorf("the other server sees %+v; want grace", a)
	}
	for i := range 20 {
		[]*browser{one, two}[i%2].ask("/api/limited", nil, 200)
	}
	two.ask("/api/limited", nil, 429)
}

func TestHealth(t *testing.T) {
	b := newBrowser(t, startServer(t, nil))
	if _, body := b.ask("/healthz", nil, 200); !strings.Contains(body, `"kind":"embedded","state":"ok"`) {
		t.Errorf("healthz = %s", body)
	}
	if _, body := b.ask("/", nil, 200); !strings.Contains(body, "embedded") {
		t.Error("the page does not say that Redis is embedded")
	}

	s := redistest.Start(t)
	b = newBrowser(t, startServer(t, map[string]string{"REDIS_URL": "unix://" + s.Addr()}))
	b.ask("/healthz", nil, 200)
	s.Kill()
	if _, body := b.ask("/healthz", nil, 503); !strings.Contains(body, `"kind":"server","state":"down"`) {
		t.Errorf("healthz without Redis = %s", body)
	}
	b.ask("/", nil, 200)
	b.ask("/login", url.Values{"user": {"ada"}}, 503)
	s.Restart()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		res, err := b.c.PostForm(b.base+"/login", url.Values{"user": {"ada"}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode == 303 {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("no login within 5 s of Redis' return")
		}
	}
}

// Told that a proxy speaks HTTPS, the server sends the cookie that only HTTPS
// may carry; a trusted proxy's word on the client's address is taken.
func TestBehindTLS(t *testing.T) {
	b := newBrowser(t, startServer(t, map[string]string{"BEHIND_TLS": "true", "TRUSTED_PROXIES": "127.0.0.0/8"}))
	res, _ := b.ask("/login", url.Values{"user": {"ada"}}, 303, "X-Forwarded-For", "192.0.2.7", "User-Agent", "curl/8")
	c := res.Header.Get("Set-Cookie")
	if !strings.HasPrefix(c, "__Host-sid=") || !strings.Contains(c, "Secure") || !strings.Contains(c, "HttpOnly") {
		t.Errorf("Set-Cookie = %q; want __Host-sid with Secure and HttpOnly", c)
	}
	name, value, _ := strings.Cut(strings.Split(c, ";")[0], "=")
	_, body := b.ask("/api/devices", nil, 200, "Cookie", name+"="+value)
	if !strings.Contains(body, "curl at 192.0.2.7") {
		t.Errorf("devices = %s; want curl at 192.0.2.7", body)
	}
	res, _ = newBrowser(t, startServer(t, nil)).ask("/api/me", nil, 200)
	if c := res.Header.Get("Set-Cookie"); !strings.HasPrefix(c, "sid=") || strings.Contains(c, "Secure") {
		t.Errorf("Set-Cookie over plain HTTP = %q; want sid without Secure", c)
	}
}

func TestBadEnvironment(t *testing.T) {
	for env, want := range map[string]string{
		"ADDR=nonsense":             "ADDR",
		"ADDR=:99999":               "ADDR",
		"REDIS_URL=localhost:6379":  "REDIS_URL",
		"REDIS_URL=http://x":        "REDIS_URL",
		"REDIS_URL=redis+ring://x":  "redis+cluster",
		"REDIS_URL=redis://u:pw@%%": "REDIS_URL",
		"SESSION_KEYS=xyz":          "openssl rand -hex 32",
		"SESSION_KEYS=abcd":         "2 bytes, at least 32",
		"REDIS_TIMEOUT=fast":        "such as 250ms",
		"REDIS_TIMEOUT=-1s":         "such as 250ms",
		"BEHIND_TLS=maybe":          "neither true nor false",
		"TRUSTED_PROXIES=10.0.0/8":  "such as 10.0.0.0/8",
	} {
		var out, errs output
		name, value, _ := strings.Cut(env, "=")
		code := Run(t.Context(), func(k string) string {
			if k == name {
				return value
			}
			return ""
		}, &out, &errs)
		if got := errs.String(); code != 2 || !strings.Contains(got, want) || strings.Count(got, "\n") != 1 || strings.Contains(got, "pw") {
			t.Errorf("%s: code %d, %q; want code 2 and one line with %q, without the password", env, code, got, want)
		}
	}
}

// The Redis inside is bounded and really expires.
func TestEmbedded(t *testing.T) {
	b, err := embeddedRedis()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	ctx := t.Context()
	b.rdb.Set(ctx, "short", "v", 100*time.Millisecond)
	b.rdb.Set(ctx, "long", "v", time.Minute)
	for start := time.Now(); b.rdb.Exists(ctx, "short").Val() == 1; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("a key of 100 ms is still there after 2 s")
		}
	}
	if b.rdb.Exists(ctx, "long").Val() != 1 {
		t.Error("a key of one minute is gone")
	}

	m := miniredis.NewMiniRedis()
	for i := range 1000 {
		k := fmt.Sprint(i)
		m.Set(k, "v")
		m.SetTTL(k, time.Duration(i+1)*time.Second)
	}
	shrink(m, 1000)
	if n := len(m.Keys()); n != 1000 {
		t.Errorf("shrink at the limit left %d keys; want 1000", n)
	}
	m.Set("one more", "v")
	m.SetTTL("one more", time.Hour)
	shrink(m, 1000)
	if n := len(m.Keys()); n != 900 || m.Exists("0") || !m.Exists("999") {
		t.Errorf("shrink left %d keys; want 900, those that expire last", n)
	}
}
