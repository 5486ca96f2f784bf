package demo

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

// While Redis is broken each card does what its policy says, within a bound, and
// everything is back when Redis is.
func TestBreakRedis(t *testing.T) {
	for _, mode := range []string{"down", "stalled", "lost"} {
		t.Run(mode, func(t *testing.T) {
			everyRedis(t, func(t *testing.T, env map[string]string) {
				t.Parallel() // it waits for many deadlines
				env["REDIS_TIMEOUT"] = "500ms"
				b := newBrowser(t, startServer(t, env))
				// No request waits for longer than the deadlines of what it asks for:
				// go-redis' own would take half a minute. The rest is for a busy machine.
				b.c.Timeout = 15 * time.Second
				b.ask("/login", url.Values{"user": {"ada"}}, 303)
				id := b.me().Session
				b.ask("/api/profile?id=1", nil, 200)
				b.ask("/api/try", nil, 200)

				if _, body := b.ask("/redis", url.Values{"mode": {mode}}, 200, "Accept", "application/json"); !strings.Contains(body, `"mode":"`+mode+`","state":"down"`) {
					t.Errorf("broken: %s; want it noticed", body)
				}
				b.ask("/healthz", nil, 503)
				b.ask("/login", url.Values{"user": {"grace"}}, 503)
				_, page := b.ask("/?load=1", nil, 200)
				for _, want := range []string{`data-state="down"`, `id="session-unavailable"`, "Ada Lovelace"} {
					if !strings.Contains(page, want) {
						t.Errorf("the page lacks %s while Redis is broken", want)
					}
				}
				if v := b.try("failure=open", 200); v.Decision.Source != "open" {
					t.Errorf("fail open: %+v", v.Decision)
				}
				if v := b.try("failure=closed", 503); v.Decision.Source != "closed" || v.Decision.Allowed {
					t.Errorf("fail closed: %+v", v.Decision)
				}
				allowed, answers := 0, ""
				for range tryLimit {
					body := b.get("/api/try?failure=local&algorithm=fixed-window")
					answers += body
					if strings.HasPrefix(body, `{"compared"`) && matches(`"decision":\{[^}]*"allowed":true[^}]*"source":"local"`, body) {
						allowed++
					}
				}
				// One more may have been counted here while the machine was busy.
				if allowed != tryLimit/2 && allowed != tryLimit/2-1 {
					t.Errorf("decided in this process: %d of %d allowed; want half:\n%s", allowed, tryLimit, answers)
				}
				b.ask("/api/profile", url.Values{"id": {"1"}, "city": {"Reykjavík"}}, 303)
				if _, body := b.ask("/api/profile?id=1", nil, 200); !strings.Contains(body, "Reykjavík") || !strings.Contains(body, `"source":"loader"`) {
					t.Errorf("profile = %s; want the new city from the loader", body)
				}
				// Without Redis to vouch for it, a caller does not take a value whose
				// load began before the caller did: the others share a second one.
				if _, body := b.ask("/api/profile/stampede", url.Values{"id": {"1"}}, 200, "Accept", "application/json"); !matches(`"loads":[12],`, body) {
					t.Errorf("stampede without Redis = %s; want two loads at most", body)
				}

				b.ask("/redis", url.Values{"mode": {"working"}}, 303)
				b.eventually("health", "/healthz", `"state":"ok"`)
				b.eventually("the limiter", "/api/try", `"decision":{"algorithm":"sliding-log","allowed":true,"limit":20,"remaining":1\d,.*"source":"redis"`)
				b.eventually("the cache", "/api/profile?id=1", `"source":"(redis|l1)"`)
				if a := b.me(); a.User != "ada" || a.Session != id {
					t.Errorf("after the outage: %+v; want ada's session %s", a, id)
				}
				if city, _ := b.profile("1"); city != "Reykjavík" {
					t.Errorf("after the outage the city is %s; want what was written during it", city)
				}
			})
		})
	}
}

func TestSlowRedis(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		b := newBrowser(t, startServer(t, env))
		b.ask("/login", url.Values{"user": {"ada"}}, 303)
		b.profile("1")
		b.ask("/redis", url.Values{"mode": {"slow"}}, 303)
		start := time.Now()
		if a := b.me(); a.User != "ada" {
			t.Errorf("slow: %+v; want ada", a)
		}
		if took := time.Since(start); took < slowBy {
			t.Errorf("slow: answered after %v; want %v at least", took, slowBy)
		}
		b.eventually("an exact decision", "/api/try", `"decision":.*"source":"redis"`)
		b.ask("/redis", url.Values{"mode": {"fast"}}, 400)
	})
}

// eventually asks until the answer matches, for a time in which a breaker has
// probed and a machine that is busy has come to it.
func (b *browser) eventually(what, path, pattern string) {
	b.t.Helper()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		body := b.get(path)
		if matches(pattern, body) {
			return
		}
		if time.Since(start) > time.Minute {
			b.t.Fatalf("%s did not come within a minute: %s = %s; want %s", what, path, body, pattern)
		}
	}
}

// The breakage works for every kind of Redis, and mending it as well.
func TestTopologies(t *testing.T) {
	urls := map[string]func(t *testing.T) string{
		"cluster": func(t *testing.T) string {
			return "redis+cluster://" + redistest.StartCluster(t, 3, false).Addrs()[0]
		},
		"sentinel": func(t *testing.T) string {
			s := redistest.StartSentinel(t, 5*time.Second)
			return "redis+sentinel://" + s.Addrs()[0] + "?master_name=" + s.Name
		},
	}
	for kind, start := range urls {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBrowser(t, startServer(t, map[string]string{"REDIS_URL": start(t)}))
			b.eventually("the "+kind, "/healthz", `"kind":"`+kind+`","state":"ok"`)
			b.ask("/login", url.Values{"user": {"ada"}}, 303)
			if v := b.try("", 200); v.Decision.Source != "redis" {
				t.Errorf("decided by %s; want redis", v.Decision.Source)
			}
			b.ask("/redis", url.Values{"mode": {"down"}}, 303)
			b.ask("/healthz", nil, 503)
			if _, body := b.ask("/api/profile?id=1", nil, 200); !strings.Contains(body, `"source":"loader"`) {
				t.Errorf("profile = %s; want it from the loader, whose database is not broken", body)
			}
			b.ask("/redis", url.Values{"mode": {"working"}}, 303)
			b.eventually("the mended "+kind, "/api/me", `"user":"ada"`)
		})
	}
}
