package session_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// defect runs probe, which reports whether a store has a defect, on redisstore,
// which has it, and on this package's stores, which don't.
func defect(t *testing.T, probe func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool) {
	t.Helper()
	defectIn(t, true, probe)
}

func defectIn(t *testing.T, dropInToo bool, probe func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool) {
	t.Helper()
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		if !probe(t, oldStore(t, rdb), rdb) {
			t.Error("redisstore does not show the defect: the probe proves nothing")
		}
		rdb.FlushAll(t.Context())
		if probe(t, open(t, rdb, session.Config{AbsoluteTimeout: 60 * 24 * time.Hour, Cookie: session.Cookie{MaxAge: 3600}}), rdb) {
			t.Error("New's store has the defect")
		}
		rdb.FlushAll(t.Context())
		if dropInToo && probe(t, dropIn(t, rdb), rdb) {
			t.Error("NewRedisStore's store has the defect")
		}
	})
}

func TestDefect01SessionFixation(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		planted := strings.Repeat("ATTACKER", 13)[:103]
		b := newBrowser()
		b.jar["s"] = planted
		b.edit(t, st, set("user", "victim"))
		return b.jar["s"] == planted
	})
}

func TestDefect02CookieOfAnotherName(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "prefs")
			s.Values["user"] = "admin" // harmless as a preference
			if err := s.Save(r, w); err != nil {
				t.Fatal(err)
			}
		})
		b.jar["s"] = b.jar["prefs"]
		return len(b.values(t, st)) > 0
	})
}

func TestDefect03LogoutUndoneBySlowRequest(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("user", "ada"))
		b.do(func(w http.ResponseWriter, r *http.Request) {
			slow, _ := st.Get(r, "s")
			b.clone().edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
			slow.Values["page"] = 2
			slow.Save(r, w)
		})
		return len(b.values(t, st)) > 0
	})
}

func TestDefect04LostUpdate(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("x", 0))
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			b.clone().edit(t, st, set("theirs", 1))
			s.Values["mine"] = 1
			s.Save(r, w)
		})
		return len(b.values(t, st)) != 3
	})
}

func TestDefect05DataWipedAfterTransientError(t *testing.T) {
	run := func(t *testing.T, rdb redis.UniversalClient, breakRedis func(on bool)) {
		probe := func(st sessions.Store) map[any]any {
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["user"] = "ada"; s.AddFlash("one") })
			b.do(func(w http.ResponseWriter, r *http.Request) {
				breakRedis(true)
				s, err := st.Get(r, "s") // the app ignores the error
				if err == nil {
					t.Error("Get = nil error; want one")
				}
				if _, ours := st.(*session.Store); ours && (!errors.Is(err, session.ErrUnavailable) || session.Loaded(s)) {
					t.Errorf("Get = %v, Loaded %v; want ErrUnavailable and false", err, session.Loaded(s))
				}
				breakRedis(false)
				s.Values["page"] = 2
				s.AddFlash("two")
				s.Save(r, w)
			})
			return b.values(t, st)
		}
		if got := probe(oldStore(t, rdb)); len(got) == 3 {
			t.Error("redisstore does not show the defect")
		}
		for _, st := range []sessions.Store{open(t, rdb, session.Config{}), dropIn(t, rdb)} {
			if got := probe(st); got["user"] != "ada" || got["page"] != 2 || fmt.Sprint(got["_flash"]) != "[one two]" {
				t.Errorf("Values = %v; want the stored ones and what the app set", got)
			}
		}
	}
	t.Run("miniredis", func(t *testing.T) {
		m, rdb := redistest.Mini(t)
		run(t, rdb, func(on bool) {
			m.SetError(map[bool]string{true: "LOADING Redis is loading the dataset in memory"}[on])
		})
	})
	t.Run("server", func(t *testing.T) {
		srv := redistest.Start(t)
		p := redistest.NewProxy(t, srv.Network(), srv.Addr())
		rdb := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
		t.Cleanup(func() { rdb.Close() })
		run(t, rdb, func(on bool) {
			if p.Clear(); on {
				p.Set(redistest.Fault{CutBefore: true})
			}
		})
	})
}

func TestDefect06OptionsWithoutMaxAgeDeletes(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		st.(interface{ Options(sessions.Options) }).Options(sessions.Options{Path: "/", HttpOnly: true})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		return len(b.values(t, st)) == 0
	})
}

// In a drop-in for redisstore zero keeps deleting: the app may mean it.
func TestDefect07MaxAgeZeroIsNoBrowserSession(t *testing.T) {
	defectIn(t, false, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		h := b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			s.Values["x"] = 1
			s.Options.MaxAge = 0
			s.Save(r, w)
		})
		return len(b.values(t, st)) == 0 || strings.Contains(h.Get("Set-Cookie"), "Max-Age")
	})
	_, rdb := redistest.Mini(t)
	b := newBrowser()
	b.edit(t, dropIn(t, rdb), set("x", 1))
	stolen := b.clone()
	b.edit(t, dropIn(t, rdb), func(s *sessions.Session) { s.Options.MaxAge = 0 })
	if got := stolen.values(t, dropIn(t, rdb)); len(got) != 0 {
		t.Errorf("after MaxAge 0 a drop-in's session holds %v; want it deleted", got)
	}
}

func TestDefect08DeleteOfEmptyID(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		rdb.Set(t.Context(), "session:", "innocent", 0)
		r := httptest.NewRequest("GET", "/", nil)
		sessions.NewSession(st, "s").Save(r, httptest.NewRecorder())
		return rdb.Exists(t.Context(), "session:").Val() == 0
	})
}

func TestDefect09EmptyIDKeepsOldSessionAlive(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		before := b.clone()
		b.edit(t, st, func(s *sessions.Session) { s.ID = "" })
		if b.jar["s"] == before.jar["s"] || len(b.values(t, st)) != 1 {
			t.Errorf("the idiom did not give a new id")
		}
		return len(before.values(t, st)) > 0
	})
}

func TestDefect10DeletedIDComesBack(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		before := b.clone()
		b.edit(t, st, func(s *sessions.Session) {
			r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
			s.Options.MaxAge = -1
			s.Save(r, w)
			s.Save(r, w) // twice in a row, as apps do
			s.Options.MaxAge = 3600
		})
		if len(b.values(t, st)) != 1 {
			t.Error("the save after the deletion stored nothing")
		}
		return len(before.values(t, st)) > 0
	})
}

// A drop-in beside old servers keeps their rule: life counts from the last save.
func TestDefect11ReadsDoNotProlong(t *testing.T) {
	defectIn(t, false, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		keys := rdb.Keys(t.Context(), "*").Val()
		rdb.PExpire(t.Context(), keys[0], time.Minute)
		b.values(t, st)
		if c, ok := st.(*session.Store); ok {
			c.Close()
		}
		return rdb.PTTL(t.Context(), keys[0]).Val() <= time.Minute
	})
}

func TestDefect12TwoCookiesOfOneName(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		h := newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "other", Value: "1"})
			s, _ := st.Get(r, "s")
			s.Save(r, w)
			s.Values["x"] = 1
			s.Save(r, w)
		})
		if len(h["Set-Cookie"]) < 2 || !strings.HasPrefix(h["Set-Cookie"][0], "other=") {
			t.Errorf("Set-Cookie = %q; want the app's own cookie first", h["Set-Cookie"])
		}
		return len(h["Set-Cookie"]) != 2
	})
}

func TestDefect13LogoutLostWithTheClient(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		stolen := b.clone()
		b.do(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			r = r.WithContext(ctx)
			s, _ := st.Get(r, "s")
			cancel() // the client went away
			s.Options.MaxAge = -1
			s.Save(r, w)
		})
		return len(stolen.values(t, st)) > 0
	})
}

// A drop-in's cookies are HttpOnly and Lax; Secure would end apps on plain HTTP.
func TestDefect14CookieWithoutProtection(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		h := newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			s.Save(r, w)
		})
		c := h.Get("Set-Cookie")
		if s, ok := st.(*session.Store); ok && s.Stats().Created == 1 && !strings.Contains(c, "Max-Age=2592000") && !strings.Contains(c, "Secure") {
			t.Errorf("Set-Cookie = %q; want Secure", c)
		}
		return !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "SameSite=Lax")
	})
}

// A type that is gone can't be decoded. Here gob data is damaged instead.
func TestDefect15OneValuePoisonsTheSession(t *testing.T) {
	type future struct{ A int }
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		old := oldStore(t, rdb)
		b := newBrowser()
		b.edit(t, old, set("x", &account{Name: "ada"}))
		key := rdb.Keys(t.Context(), "session:*").Val()[0]
		raw := rdb.Get(t.Context(), key).Val()
		rdb.Set(t.Context(), key, strings.ReplaceAll(raw, "session_test.account", "session_test.gone000"), time.Hour)
		if b.try(old, nil) == nil {
			t.Error("redisstore does not show the defect")
		}
		// The drop-in starts anew and leaves the data alone.
		if err := b.try(dropIn(t, rdb), set("y", 1)); err != nil {
			t.Errorf("drop-in: %v; want a new session", err)
		}

		var reported []error
		st := open(t, rdb, session.Config{Hooks: session.Hooks{
			Undecodable: func(_ context.Context, e session.Event, err error) {
				if e.Name != "s" || e.ID == "" {
					t.Errorf("event %+v; want name and id", e)
				}
				reported = append(reported, err)
			},
		}})
		b = newBrowser()
		b.edit(t, st, func(s *sessions.Session) {
			s.Values["good"] = 1
			s.Values["bad"] = &account{Name: "ada"}
			s.AddFlash("kept")
		})
		key = rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		raw = rdb.HGet(t.Context(), key, "sbad").Val()
		broken := strings.ReplaceAll(raw, "session_test.account", "session_test.gone000")
		rdb.HSet(t.Context(), key, "sbad", broken, "knonsense", "\xff", "f_flash123456789012", "\x99", "other", "\x01\x02")
		if got := b.values(t, st); got["good"] != 1 || got["bad"] != nil || fmt.Sprint(got["_flash"]) != "[kept]" {
			t.Errorf("Values = %v; want all but the bad ones", got)
		}
		if len(reported) != 4 || st.Stats().Undecodable != 4 {
			t.Errorf("reported %v; want four", reported)
		}
		b.edit(t, st, set("good", 2))
		if now := rdb.HGet(t.Context(), key, "sbad").Val(); now != broken {
			t.Error("the value that could not be decoded was changed")
		}
		// A type nobody registered is refused at the save, and named.
		err := b.try(st, set("f", future{1}))
		if !errors.Is(err, session.ErrUnsupported) || !strings.Contains(err.Error(), "future") {
			t.Errorf("Save of an unregistered type = %v; want ErrUnsupported and its name", err)
		}
	})
}

func TestDefect16CookiePicksTheKey(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		var g bytes.Buffer
		if err := gob.NewEncoder(&g).Encode(map[any]any{"user": "admin"}); err != nil {
			t.Fatal(err)
		}
		rdb.Set(t.Context(), "session:export:file:of:somebody", g.Bytes(), 0)
		b := newBrowser()
		b.jar["s"] = "export:file:of:somebody"
		if len(b.values(t, oldStore(t, rdb))) == 0 {
			t.Error("redisstore does not show the defect")
		}
		for _, st := range []sessions.Store{open(t, rdb, session.Config{}), dropIn(t, rdb)} {
			n := redistest.Count(t, rdb, func() {
				if got := b.values(t, st); len(got) != 0 {
					t.Errorf("a cookie opened another key: %v", got)
				}
			})
			if n.Total != 0 {
				t.Errorf("a malformed cookie cost %+v; want nothing", n)
			}
		}
	})
}

func TestDefect17HugeMaxAgeNeverExpires(t *testing.T) {
	defect(t, func(t *testing.T, st sessions.Store, rdb redis.UniversalClient) bool {
		for _, age := range []int64{9_300_000_000, math.MaxInt} { // the first is too much for an int of 32 bits
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; s.Options.MaxAge = int(min(age, math.MaxInt)) })
		}
		for _, key := range rdb.Keys(t.Context(), "*").Val() {
			if rdb.TTL(t.Context(), key).Val() < 0 {
				return true
			}
		}
		return false
	})
}

// Setters run while requests do; the race detector watches. Close leaves the
// caller's client open, and New dials nothing.
func TestDefect18UnsafeSettersAndClose(t *testing.T) {
	var dials atomic.Int32
	nowhere := redis.NewClient(&redis.Options{Dialer: func(context.Context, string, string) (net.Conn, error) {
		dials.Add(1)
		return nil, errors.New("nobody there")
	}})
	defer nowhere.Close()
	if _, err := session.NewRedisStore(t.Context(), nowhere); err != nil || dials.Load() > 0 {
		t.Errorf("NewRedisStore = %v after %d dials; want it to dial nothing", err, dials.Load())
	}
	_, rdb := redistest.Mini(t)
	st := dropIn(t, rdb)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 100 {
			st.Options(sessions.Options{Path: "/", MaxAge: 60 + i})
			st.Serializer(nil)
			st.KeyGen(nil)
			st.KeyPrefix("session:")
		}
	})
	wg.Go(func() {
		for range 100 {
			newBrowser().edit(t, st, set("x", 1))
		}
	})
	wg.Wait()
	if err := st.Close(); err != nil || rdb.Ping(t.Context()).Err() != nil {
		t.Errorf("Close = %v; want nil and the client open", err)
	}
}

func TestDefect19OneIDForEverybody(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		constant := func() (string, error) { return "the-one-and-only-id", nil }
		old := oldStore(t, rdb)
		old.KeyGen(constant)
		ada, eve := newBrowser(), newBrowser()
		ada.edit(t, old, set("user", "ada"))
		eve.edit(t, old, set("page", 1))
		if eve.jar["s"] != ada.jar["s"] {
			t.Error("redisstore does not show the defect")
		}
		rdb.FlushAll(t.Context())
		for _, until := range []time.Time{{}, time.Now().Add(-time.Hour)} {
			st := open(t, rdb, session.Config{Redisstore: &session.RedisstoreConfig{KeyGen: constant, Until: until}})
			ada, eve := newBrowser(), newBrowser()
			ada.edit(t, st, set("user", "ada"))
			if err := eve.try(st, set("page", 1)); !errors.Is(err, session.ErrConflict) || eve.jar["s"] != "" {
				t.Errorf("second session = %v; want ErrConflict and no cookie", err)
			}
			if got := ada.values(t, st); len(got) != 1 {
				t.Errorf("the first user's session holds %v", got)
			}
			ada.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		}
	})
}

func TestDefect20NoLimitNoListing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{MaxBytes: 1000})
		b := newBrowser()
		b.edit(t, st, set("x", strings.Repeat("a", 800)))
		before := b.values(t, st)
		err := b.try(st, set("y", strings.Repeat("b", 300)))
		if !errors.Is(err, session.ErrTooLarge) {
			t.Errorf("Save = %v; want ErrTooLarge", err)
		}
		if got := b.values(t, st); len(got) != len(before) {
			t.Errorf("a refused save left %v", got)
		}
		b.edit(t, st, set("x", strings.Repeat("a", 100)))
		b.edit(t, st, set("y", strings.Repeat("b", 300)))
		for range 3 {
			newBrowser().edit(t, st, set("z", 1))
		}
		n := 0
		for info, err := range st.All(t.Context()) {
			if err != nil || info.ID == "" || info.Expires.Before(time.Now()) {
				t.Errorf("All yields %+v, %v", info, err)
			}
			n++
		}
		if got, err := st.Len(t.Context()); n != 4 || got != 4 || err != nil {
			t.Errorf("All yields %d, Len = %d, %v; want 4", n, got, err)
		}
	})
}
