package faults_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// flood is the size of an attack, a fifth of it under -short.
func flood(n int) int {
	switch {
	case raceDetector:
		return n / 50
	case testing.Short():
		return n / 5
	}
	return n
}

// heap returns the bytes in use after a garbage collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// parallel calls f for 0 to n-1 on every processor.
func parallel(n, workers int, f func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

// A million forged cookies cost no call to Redis.
func TestForgedCookies(t *testing.T) {
	_, rdb := redistest.Mini(t)
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	real, err := signIn(store)
	if err != nil {
		t.Fatal(err)
	}
	token, mac, _ := strings.Cut(real.Value, ".")
	forge := func(i int) string {
		var raw [34]byte
		for j := range raw {
			raw[j] = byte(rand.Uint32())
		}
		other := base64.RawURLEncoding.EncodeToString(raw[:])
		switch i % 5 {
		case 0:
			return other + "." + mac // somebody's token, another's signature
		case 1:
			return token + "." + base64.RawURLEncoding.EncodeToString(raw[:16])
		case 2:
			return other // unsigned
		case 3:
			return token // of a real session, unsigned
		}
		return other[:rand.IntN(len(other))]
	}
	forged := make([]string, 20_000)
	for i := range forged {
		forged[i] = "sid=" + forge(i)
	}
	n := flood(1_000_000)
	var accepted atomic.Int64
	var took time.Duration
	sent := redistest.Count(t, rdb, func() {
		start := time.Now()
		parallel(n, runtime.GOMAXPROCS(0), func(i int) {
			r := &http.Request{Header: http.Header{"Cookie": {forged[i%len(forged)]}}}
			if s, err := store.New(r, "sid"); err != nil || !s.IsNew {
				accepted.Add(1)
			}
		})
		took = time.Since(start)
	})
	t.Logf("%d forged cookies: %d commands, %v each", n, sent.Total, took/time.Duration(n))
	if sent.Total != 0 || accepted.Load() != 0 {
		t.Errorf("%d forged cookies cost %d commands, %d were accepted; want none", n, sent.Total, accepted.Load())
	}
	if got := store.Stats().Refused; got < uint64(n)*3/4 {
		t.Errorf("Stats.Refused = %d; want nearly all of %d", got, n)
	}
	if _, s, err := load(store, real); err != nil || s.IsNew {
		t.Errorf("the real cookie: new %v, %v; want the session", s.IsNew, err)
	}
}

// Headers of ten megabytes are refused by net/http; a server that allows them
// spends a bounded time on them, and a bounded number of calls.
func TestHugeCookies(t *testing.T) {
	_, rdb := redistest.Mini(t)
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	unsigned, err := session.New(rdb, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	const size = 10 << 20
	plausible := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{7}, 34))
	for _, c := range []struct {
		name   string
		store  *session.Store
		header http.Header
		calls  int
	}{
		{"one value", store, http.Header{"Cookie": {"sid=" + strings.Repeat("a", size)}}, 0},
		{"one name", store, http.Header{"Cookie": {strings.Repeat("sid", size/3) + "=a"}}, 0},
		{"only separators", store, http.Header{"Cookie": {strings.Repeat(";", size)}}, 0},
		{"many of the name", store, http.Header{"Cookie": {strings.Repeat("sid=a; ", size/7)}}, 0},
		{"many forged", store, http.Header{"Cookie": {strings.Repeat("sid="+plausible+".AAAAAAAAAAAAAAAAAAAAAA; ", size/76)}}, 0},
		{"many plausible", unsigned, http.Header{"Cookie": {strings.Repeat("sid="+plausible+"; ", size/52)}}, 4},
		{"many lines", store, http.Header{"Cookie": strings.Split(strings.Repeat("sid=a\n", size/6), "\n")}, 0},
	} {
		var took time.Duration
		var before, after runtime.MemStats
		sent := redistest.Count(t, rdb, func() {
			runtime.ReadMemStats(&before)
			start := time.Now()
			s, err := c.store.New(&http.Request{Header: c.header}, "sid")
			took = time.Since(start)
			runtime.ReadMemStats(&after)
			if err != nil || !s.IsNew {
				t.Errorf("%s: new %v, %v; want a new session", c.name, s.IsNew, err)
			}
		})
		allocated := after.TotalAlloc - before.TotalAlloc
		t.Logf("10 MB, %s: %v, %d bytes allocated, %d round trips", c.name, took, allocated, sent.RoundTrips)
		// 10 MB of 76-byte forgeries are 138,000 signatures to look at.
		most, room := 3*time.Second, uint64(1<<20)
		if raceDetector { // which empties pools at random
			most, room = 20*time.Second, 100<<20
		}
		if took > most || allocated > room || sent.RoundTrips > c.calls {
			t.Errorf("10 MB, %s: %v, %d bytes, %d round trips; want less than %v, %d bytes and at most %d", c.name, took, allocated, sent.RoundTrips, most, room, c.calls)
		}
	}

	served := 0
	server := httptest.NewServer(middleware.Sessions(store, "sid", middleware.SessionsConfig{})(
		http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { served++; middleware.Session(r) })))
	defer server.Close()
	r, _ := http.NewRequest("GET", server.URL, nil)
	r.Header.Set("Cookie", "sid="+strings.Repeat("a", size))
	res, err := server.Client().Do(r)
	if err == nil {
		res.Body.Close()
	}
	if served > 0 || err == nil && res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 10 MB was served %d times (%v, %v); want 431 or the connection cut", served, res, err)
	}
}

// A million clients with a key each cost the process no more memory than some
// thousand, whether Redis is there or not.
func TestManyLimiterKeys(t *testing.T) {
	ctx := context.Background()
	m, rdb := redistest.Mini(t)
	m.Close()
	key := func(i int) string { return "2001:db8:" + strconv.Itoa(i) }

	t.Run("decided in process", func(t *testing.T) {
		l, err := ratelimit.New(rdb, ratelimit.Config{OnUnavailable: ratelimit.Local, Timeout: 20 * time.Millisecond},
			ratelimit.FixedWindow("hour", 4, time.Hour), ratelimit.TokenBucket("burst", 10, time.Hour, 4))
		if err != nil {
			t.Fatal(err)
		}
		n := flood(1_000_000)
		before := heap()
		start := time.Now()
		var odd atomic.Int64
		parallel(n, runtime.GOMAXPROCS(0), func(i int) {
			if r, err := l.Allow(ctx, key(i)); err != nil || r.Source != ratelimit.SourceLocal || !r.Allowed {
				odd.Add(1)
			}
		})
		took, grown := time.Since(start), heap()-before
		t.Logf("%d keys: %v each, %.1f MB more in use", n, took/time.Duration(n), float64(grown)/1e6)
		if odd.Load() > 0 || grown > 64<<20 {
			t.Errorf("%d keys: %d answered otherwise than by a limiter of their own, %d bytes in use; want none and at most 64 MB", n, odd.Load(), grown)
		}
		runtime.KeepAlive(l)
	})
	t.Run("denials remembered", func(t *testing.T) {
		rdb := redistest.Start(t).Client()
		l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second}, ratelimit.FixedWindow("hour", 1, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		n := flood(1_000_000) / 4
		parallel(256, 64, func(i int) { _, _ = l.Allow(ctx, key(-1-i)) }) // connections
		before := heap()
		start := time.Now()
		var denied atomic.Int64
		for range 2 { // each key's second call is denied
			parallel(n, 64, func(i int) {
				if r, err := l.Allow(ctx, key(i)); err == nil && !r.Allowed {
					denied.Add(1)
				}
			})
		}
		took, grown := time.Since(start), heap()-before
		t.Logf("%d keys: %v each, %d denied, %.1f MB more in use", n, took/time.Duration(2*n), denied.Load(), float64(grown)/1e6)
		if denied.Load() != int64(n) || grown > 48<<20 {
			t.Errorf("%d of %d keys were denied once, %d bytes in use; want all and at most 48 MB", denied.Load(), n, grown)
		}
		runtime.KeepAlive(l)
	})
}

// Values that somebody else made huge in Redis cost a bounded time and are given
// back, and what unpacks to more than a value may have is not unpacked.
func TestHugeValues(t *testing.T) {
	ctx := context.Background()
	s := redistest.Start(t)
	rdb := s.Client()

	t.Run("decompression bomb", func(t *testing.T) {
		const bomb = 32 << 20
		config := cacheaside.Config{TTL: time.Hour, L1Entries: -1, Timeout: 5 * time.Second}
		big := config
		big.MaxValue = 2 * bomb
		attacker, err := cacheaside.New(rdb, "zip", func(context.Context, string) ([]byte, error) { return make([]byte, bomb*3/4), nil }, big)
		if err != nil {
			t.Fatal(err)
		}
		defer attacker.Close()
		if _, err := attacker.Get(ctx, "key"); err != nil {
			t.Fatal(err)
		}
		stored := rdb.StrLen(ctx, "redporch:cache:zip:key").Val()
		if stored < 50 || stored > 20<<20 {
			t.Fatalf("the bomb takes %d bytes in Redis; want it packed", stored)
		}
		var unreadable error
		config.Hooks.Error = func(op string, err error) { unreadable = err }
		victim, err := cacheaside.New(rdb, "zip", func(context.Context, string) ([]byte, error) { return []byte("small"), nil }, config)
		if err != nil {
			t.Fatal(err)
		}
		defer victim.Close()
		heap()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := victim.Get(ctx, "key")
		runtime.ReadMemStats(&after)
		allocated := int64(after.TotalAlloc - before.TotalAlloc)
		t.Logf("%d bytes that unpack to %d: %d bytes allocated, then %v", stored, bomb, allocated, unreadable)
		if err != nil || string(v) != "small" || unreadable == nil {
			t.Errorf("Get = %.10q, %v, reported %v; want the loader's value and a report", v, err, unreadable)
		}
		if allocated > 3*stored+4<<20 {
			t.Errorf("%d bytes were allocated for an entry of %d; want no more than reading it takes", allocated, stored)
		}
	})
	t.Run("session", func(t *testing.T) {
		store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}})
		if err != nil {
			t.Fatal(err)
		}
		cookie, err := signIn(store)
		if err != nil {
			t.Fatal(err)
		}
		var key string
		for _, k := range rdb.Keys(ctx, "redporch:session:*").Val() {
			key = k
		}
		rdb.HSet(ctx, key, "bloat", strings.Repeat("x", 64<<20))
		before := heap()
		start := time.Now()
		_, x, err := load(store, cookie)
		took := time.Since(start)
		t.Logf("a session of 64 MB: loaded or not after %v (%v)", took, err)
		if took > time.Second {
			t.Errorf("loading took %v; want at most the timeout", took)
		}
		if err != nil && !errors.Is(err, session.ErrUnavailable) {
			t.Errorf("load: %v; want nil or ErrUnavailable", err)
		}
		if err == nil && x.Values["before"] != "the fault" {
			t.Errorf("Values = %.100v; want what can be read", x.Values)
		}
		x = nil
		if err := eventually(5*time.Second, func() error {
			if grown := heap() - before; grown > 16<<20 {
				return fmt.Errorf("%d bytes are still in use", grown)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		// And none gets in by the front door.
		r := httptest.NewRequest("GET", "/", nil)
		x, _ = store.New(r, "sid")
		x.Values["big"] = strings.Repeat("x", 1<<20)
		if err := store.Save(r, httptest.NewRecorder(), x); !errors.Is(err, session.ErrTooLarge) {
			t.Errorf("saving a megabyte: %v; want ErrTooLarge", err)
		}
	})
}

// nasty are strings that try to break out of where they are put.
var nasty = []string{
	"", " ", "{}", "{", "}", "}x", "{a}", "a}:{b", "}{", "{{}}", "a:b", "a::b", ":", "#t:tag", "a#bus", "*", "?", "[a-z]", "\\",
	"a\r\nDEL everything\r\n", "a\r\nSet-Cookie: admin=1", "\x00", "a\x00b", "\xff\xfe", "%0d%0a", "../../etc/passwd", "';--",
	"$5\r\nhello\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "Ünïcödé", "\u2028", strings.Repeat("a", 3000),
}

// Whatever users put into keys, names and headers: nothing breaks out, nothing
// meets what it should not meet, and on a cluster all keys of a call are in one
// slot.
func TestInjection(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := context.Background()
		rdb.Set(ctx, "bystander", "unharmed", 0)

		l, err := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second, OnUnavailable: ratelimit.FailClosed},
			ratelimit.FixedWindow("a", 1, time.Hour), ratelimit.SlidingLog("b", 1, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := ratelimit.New(rdb, ratelimit.Config{Timeout: 5 * time.Second, OnUnavailable: ratelimit.FailClosed, PlainKeys: true, Prefix: "plain:"},
			ratelimit.FixedWindow("a", 1, time.Hour), ratelimit.SlidingLog("b", 1, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range map[string]*ratelimit.Limiter{"hashed": l, "plain": plain} {
			keys := append([]string{}, nasty...)
			for i, a := range nasty[:20] {
				keys = append(keys, ratelimit.Join(a, nasty[i+1]), ratelimit.Join(a+nasty[i+1]))
			}
			seen := map[string]bool{}
			for _, key := range keys {
				if seen[key] {
					continue
				}
				seen[key] = true
				first, err1 := l.Allow(ctx, key)
				second, err2 := l.Allow(ctx, key)
				if err1 != nil || err2 != nil || first.Err != nil || !first.Allowed || second.Allowed {
					t.Errorf("%s key %.40q: %v, %v (%v, %v, %v); want one of its own, of one unit", name, key, first.Allowed, second.Allowed, err1, err2, first.Err)
				}
			}
		}

		c, err := cacheaside.New(rdb, "n", func(_ context.Context, key string) (string, error) { return fmt.Sprintf("of %x", key), nil },
			cacheaside.Config{TTL: time.Hour, L1Entries: -1, Timeout: 5 * time.Second},
			cacheaside.Funcs[string, string]{Tags: func(key string) []string { return []string{key, key + "x"} }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			for _, key := range nasty {
				if v, err := c.Get(ctx, key); err != nil || v != fmt.Sprintf("of %x", key) {
					t.Errorf("cache key %.40q: %.40q, %v; want its own value", key, v, err)
				}
			}
		}
		if err := errors.Join(c.Invalidate(ctx, nasty...), c.InvalidateTags(ctx, nasty...)); err != nil {
			t.Errorf("invalidating: %v", err)
		}

		store, err := session.New(rdb, session.Config{Timeout: 5 * time.Second, Label: func(r *http.Request) string { return r.UserAgent() }})
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range nasty {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header["User-Agent"] = []string{text}
			r.Header["Cookie"] = []string{"sid=" + text, "{" + text + "}=x", "sid"}
			s, err := store.New(r, "sid")
			if err != nil || !s.IsNew {
				t.Errorf("cookie %.40q: new %v, %v; want a new session", text, s.IsNew, err)
			}
			s.Values[text] = text
			bindErr := store.Bind(s, "user "+strconv.Itoa(i)+text)
			rec := httptest.NewRecorder()
			if err := store.Save(r, rec, s); err != nil {
				t.Errorf("value %.40q: %v", text, err)
				continue
			}
			if len(rec.Header()["Set-Cookie"]) != 1 {
				t.Fatalf("Set-Cookie = %q; want one", rec.Header()["Set-Cookie"])
			}
			_, back, err := load(store, rec.Result().Cookies()[0])
			if err != nil || back.Values[text] != text {
				t.Errorf("value %.40q came back as %.40q, %v", text, back.Values[text], err)
			}
			if list, err := store.Sessions(ctx, "user "+strconv.Itoa(i)+text); bindErr == nil && (err != nil || len(list) != 1) {
				t.Errorf("user %.40q has %d sessions, %v; want 1", text, len(list), err)
			}
			// Names that are no cookie names never reach a header.
			if s, err := store.New(r, text); err == nil && s != nil {
				s.Values["a"] = 1
				rec := httptest.NewRecorder()
				_ = store.Save(r, rec, s)
				for _, line := range rec.Header()["Set-Cookie"] {
					if strings.ContainsAny(line, "\r\n\x00") {
						t.Errorf("Set-Cookie: %q", line)
					}
				}
			}
		}
		if v := rdb.Get(ctx, "bystander").Val(); v != "unharmed" {
			t.Errorf("another key is %q; want it unharmed", v)
		}

		h := middleware.Chain(
			middleware.RequestID(middleware.RequestIDConfig{TrustIncoming: true}),
			middleware.ClientAddr(middleware.ClientAddrConfig{Trusted: middleware.Prefixes("192.0.2.0/24")}),
			middleware.RateLimit(l, middleware.Join(middleware.ClientIP(), middleware.Header("X-Key"), middleware.Route(nil)), middleware.RateLimitConfig{}),
			middleware.Sessions(store, "sid", middleware.SessionsConfig{}),
		)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { middleware.Session(r).Values["a"] = 1 }))
		for _, text := range nasty {
			r := httptest.NewRequest("GET", "/", nil)
			for _, name := range []string{"X-Request-Id", "X-Forwarded-For", "Forwarded", "X-Key", "Cookie", "User-Agent"} {
				r.Header[name] = []string{text, "sid=" + text}
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != 200 && rec.Code != 429 {
				t.Errorf("headers of %.40q: status %d; want 200 or 429", text, rec.Code)
			}
			for name, lines := range rec.Header() {
				if strings.ContainsAny(name+strings.Join(lines, ""), "\r\n\x00") {
					t.Errorf("headers of %.40q: response has %q: %q", text, name, lines)
				}
			}
		}
	})
}

// Clients that read slowly hold a goroutine and a connection each, as net/http
// has it, but nothing of Redis: sessions are saved before the first byte is sent.
func TestSlowClients(t *testing.T) {
	m, rdb := redistest.Mini(t)
	_ = m
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	var busy atomic.Int64
	body := bytes.Repeat([]byte("x"), 16<<20)
	server := httptest.NewServer(middleware.Sessions(store, "sid", middleware.SessionsConfig{})(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			middleware.Session(r).Values["n"] = 1
			if r.URL.Path == "/slow" {
				busy.Add(1)
				defer busy.Add(-1)
				w.Write(body)
			}
		})))
	defer server.Close()
	const slow = 50
	conns := make([]net.Conn, 0, slow)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range slow {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		fmt.Fprintf(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := bufio.NewReaderSize(c, 16).ReadByte(); err != nil { // and no more
			t.Fatal(err)
		}
	}
	if busy.Load() != slow {
		t.Fatalf("%d slow clients are being served; want %d", busy.Load(), slow)
	}
	if p := rdb.PoolStats(); p.TotalConns != p.IdleConns {
		t.Errorf("%d of %d connections to Redis are in use; want none", p.TotalConns-p.IdleConns, p.TotalConns)
	}
	start := time.Now()
	res, err := server.Client().Get(server.URL + "/quick")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if took := time.Since(start); took > time.Second || res.StatusCode != 200 || len(res.Cookies()) != 1 {
		t.Errorf("beside %d slow clients: status %d, %d cookies, %v; want 200 with one, at once", slow, res.StatusCode, len(res.Cookies()), took)
	}
	if n := store.Stats().Created; n != slow+1 {
		t.Errorf("%d sessions are stored; want those of all %d clients", n, slow+1)
	}
}
