package demo

import (
	"bufio"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// get returns the body of an answer, whatever its status.
func (b *browser) get(path string) string {
	b.t.Helper()
	res, err := b.c.Get(b.base + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return string(body)
}

// stream is an open page.
type stream struct {
	t      *testing.T
	events chan message
	queued []message // of other kinds than was asked for
}

// open opens the page's stream. It is still open when the server is told to
// end, since a server must not wait for it.
func (b *browser) open() *stream {
	b.t.Helper()
	c := &http.Client{Jar: b.c.Jar}
	res, err := c.Get(b.base + "/events")
	if err != nil {
		b.t.Fatal(err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		b.t.Errorf("Content-Type = %q; want text/event-stream", ct)
	}
	s := &stream{t: b.t, events: make(chan message, 1000)}
	go func() {
		defer close(s.events)
		defer res.Body.Close()
		var m message
		for sc := bufio.NewScanner(res.Body); sc.Scan(); {
			name, value, _ := strings.Cut(sc.Text(), ": ")
			switch name {
			case "event":
				m = message{event: value}
			case "data":
				m.data += value + "\n"
			case "":
				if m.event != "" {
					s.events <- m
				}
				m = message{}
			}
		}
	}()
	return s
}

// next returns how long it took until an event came that matches. Events of other
// kinds are kept for later calls.
func (s *stream) next(event, pattern string) time.Duration {
	s.t.Helper()
	start := time.Now()
	limit := time.After(time.Minute)
	var last string
	for i, m := range s.queued {
		if m.event == event && matches(pattern, m.data) {
			s.queued = s.queued[i+1:]
			return time.Since(start)
		}
	}
	for {
		select {
		case m, ok := <-s.events:
			if !ok {
				s.t.Fatalf("the stream ended before %s with %s", event, pattern)
			}
			if m.event != event {
				s.queued = append(s.queued, m)
			} else if last = m.data; matches(pattern, m.data) {
				return time.Since(start)
			}
		case <-limit:
			s.t.Fatalf("no %s with %s within a minute; the last was %s", event, pattern, last)
		}
	}
}

func TestEvents(t *testing.T) {
	everyRedis(t, func(t *testing.T, env map[string]string) {
		base := startServer(t, env)
		b, other := newBrowser(t, base), newBrowser(t, base)
		s := b.open()
		s.next("redis", `"mode":"working","state":"ok"`)
		s.next("live", `"points":\[.*"minute":`)
		s.next("devices", `id="login-ada"`)

		b.ask("/login", url.Values{"user": {"ada"}}, 303)
		s = b.open() // as the page does after the redirect
		s.next("devices", `Ada Lovelace`)
		other.ask("/login", url.Values{"user": {"ada"}}, 303)
		s.next("devices", `(?s)revoke-[^"]+"`)
		other.ask("/api/devices/revoke-others", url.Values{}, 303)
		if took := s.next("devices", `id="revoked"`); took > 2*time.Second {
			t.Errorf("the revoked page learned it after %v; want about half a second", took)
		}

		s = other.open()
		s.next("devices", "Ada Lovelace")
		other.ask("/api/try", nil, 200)
		s.next("live", `"decisions_per_s":0\.0677`) // four in 59 s; they may fall into two points
		other.ask("/redis", url.Values{"mode": {"down"}}, 303)
		s.next("redis", `"mode":"down","state":"down"`)
		s.next("devices", `id="session-unavailable"`)
		other.ask("/redis", url.Values{"mode": {"working"}}, 303)
		s.next("redis", `"mode":"working","state":"ok"`)
		s.next("devices", "Ada Lovelace") // nobody was signed out by the outage
	})
}

// What happens on one server is seen by pages that are open on another.
func TestEventsAcrossServers(t *testing.T) {
	r := redistest.Start(t)
	env := map[string]string{"REDIS_URL": "unix://" + r.Addr(), "SESSION_KEYS": testKey}
	one, two := newBrowser(t, startServer(t, env)), newBrowser(t, startServer(t, env))
	one.ask("/login", url.Values{"user": {"ada"}}, 303)
	two.ask("/login", url.Values{"user": {"ada"}}, 303)
	s := two.open()
	s.next("devices", "Ada Lovelace")
	two.eventually("the first level, and with it the announcements", "/api/profile?id=1", `"source":"l1"`)

	one.ask("/api/profile", url.Values{"id": {"1"}, "city": {"Bergen"}}, 303)
	if took := s.next("profile", `"cause":"update","keys":\["1"\],"remote":true`); took > time.Second {
		t.Errorf("the invalidation crossed after %v; want less than a second", took)
	}
	one.ask("/api/devices/revoke-others", url.Values{}, 303)
	if took := s.next("devices", `id="revoked"`); took > 2*time.Second {
		t.Errorf("the revocation crossed after %v; want about half a second", took)
	}

	// Breaking one server's way to Redis leaves the other alone.
	one.ask("/redis", url.Values{"mode": {"down"}}, 303)
	one.ask("/healthz", nil, 503)
	two.ask("/healthz", nil, 200)
}
