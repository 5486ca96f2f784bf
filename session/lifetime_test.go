package session_test

import (
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// sessionTTL returns the time to live of the only session in Redis.
func sessionTTL(t *testing.T, rdb redis.UniversalClient, prefix string) time.Duration {
	t.Helper()
	keys, err := rdb.Keys(t.Context(), prefix+"*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys %q, %v; want one", keys, err)
	}
	d, err := rdb.PTTL(t.Context(), keys[0]).Result()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func about(got, want time.Duration) bool {
	return got > want-10*time.Second && got <= want+100*time.Millisecond
}

func TestIdleTimeoutSlides(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		keys, _ := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Result()
		load := func() int {
			n := redistest.Count(t, rdb, func() {
				b.values(t, st)
				st.Close()
			})
			return n.By["evalsha"] + n.By["eval"]
		}
		if n := load(); n != 0 {
			t.Errorf("a load right after the save wrote %d times; want no touch", n)
		}
		rdb.PExpire(t.Context(), keys[0], 9*time.Minute+30*time.Second)
		if n := load(); n != 0 {
			t.Errorf("a load within the throttle wrote %d times; want no touch", n)
		}
		rdb.PExpire(t.Context(), keys[0], 8*time.Minute)
		if n := load(); n != 1 {
			t.Errorf("a load beyond the throttle wrote %d times; want one touch", n)
		}
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 10*time.Minute) {
			t.Errorf("TTL after the touch = %v; want 10m", got)
		}
		// Somebody removed the expiry: the next load puts it back.
		rdb.Persist(t.Context(), keys[0])
		load()
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 10*time.Minute) {
			t.Errorf("TTL after PERSIST and a load = %v; want 10m", got)
		}
		if st.Stats().Touched != 2 {
			t.Errorf("Stats.Touched = %d; want 2", st.Stats().Touched)
		}
	})
}

// Idle and absolute time end a session, each by itself and however much it is used.
// The time that has passed is written into the session, not waited for, but for the
// last moments.
func TestSessionExpires(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute, AbsoluteTimeout: time.Hour})
		used, idle := newBrowser(), newBrowser()
		used.edit(t, st, set("x", 1))
		k := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		idle.edit(t, st, set("x", 1))
		for _, key := range rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val() {
			if key == k { // 200 ms before its absolute end, and told to live for long
				now := rdb.Time(t.Context()).Val()
				rdb.HSet(t.Context(), k, "m", strconv.FormatInt(now.Add(200*time.Millisecond-time.Hour).UnixMilli(), 10)+",3600000,600000,0,0")
				rdb.PExpire(t.Context(), k, 10*time.Minute)
			} else { // 50 ms before its idle end
				rdb.PExpire(t.Context(), key, 50*time.Millisecond)
			}
		}
		gone := func(b *browser) bool { // looks into Redis, which uses no session
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", "s="+b.jar["s"])
			s, err := st.New(r, "s")
			return err == nil && s.IsNew
		}
		for rdb.Exists(t.Context(), k).Val() == 1 {
			used.values(t, st) // prolongs as far as may be
			st.Close()
			if left := rdb.PTTL(t.Context(), k).Val(); left > 300*time.Millisecond {
				t.Fatalf("a session in use, %v from its absolute end, would live for %v", 200*time.Millisecond, left)
			}
		}
		if !gone(used) || !gone(idle) {
			t.Error("a cookie opens a session that has ended")
		}
	})
}

func TestAbsoluteTimeoutCapsEverything(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute, AbsoluteTimeout: time.Hour})
		b := newBrowser()
		var cookie string
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			s.Values["x"] = 1
			s.Options.MaxAge = math.MaxInt // remember me for good
			if err := s.Save(r, w); err != nil {
				t.Fatal(err)
			}
			cookie = w.Header().Get("Set-Cookie")
			if idle, absolute := st.TTL(s); !about(idle, time.Hour) || !about(absolute, time.Hour) {
				t.Errorf("TTL = %v, %v; want 1h, 1h", idle, absolute)
			}
		})
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, time.Hour) {
			t.Errorf("TTL in Redis = %v; want 1h", got)
		}
		if !strings.Contains(cookie, "Max-Age=3600") {
			t.Errorf("cookie %q; want the session's own hour as its Max-Age", cookie)
		}
	})
}

// A session's own MaxAge is remembered: the next save keeps it without being told.
func TestRememberMe(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute, AbsoluteTimeout: 60 * 24 * time.Hour})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; s.Options.MaxAge = 30 * 86400 })
		b.edit(t, st, func(s *sessions.Session) {
			if s.Options.MaxAge != 30*86400 {
				t.Errorf("MaxAge = %d after a load; want the 30 days it was saved with", s.Options.MaxAge)
			}
			s.Values["x"] = 2
		})
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 30*24*time.Hour) {
			t.Errorf("TTL = %v; want 30 days", got)
		}
		// A persistent cookie must be sent again as the session slides.
		keys, _ := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Result()
		rdb.PExpire(t.Context(), keys[0], 29*24*time.Hour)
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			if wrote, err := st.Commit(w, r, s); !wrote || err != nil {
				t.Errorf("Commit = %v, %v; want the aged cookie again", wrote, err)
			}
		})
		// Back to a session of the browser.
		b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = 0 })
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 10*time.Minute) {
			t.Errorf("TTL = %v; want the idle 10m", got)
		}
	})
}

// A session that is to end with the browser stays one where others are persistent.
func TestForgetMe(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Cookie: session.Cookie{MaxAge: 3600}})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; s.Options.MaxAge = 0 })
		for range 2 { // as saved first, and as saved again
			b.edit(t, st, func(s *sessions.Session) {
				if s.Options.MaxAge != 0 {
					t.Errorf("MaxAge = %d after a load; want the 0 it was saved with", s.Options.MaxAge)
				}
				s.Values["x"] = s.Values["x"].(int) + 1
			})
		}
	})
}

// What is stored obeys a configuration that became stricter later.
func TestShortenedDeadlines(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		long := open(t, rdb, session.Config{IdleTimeout: time.Hour, AbsoluteTimeout: 10 * time.Hour})
		short := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute, AbsoluteTimeout: 5 * time.Minute * 3})
		b := newBrowser()
		b.edit(t, long, set("x", 1))
		if got := b.values(t, short); len(got) != 1 {
			t.Fatalf("Values = %v; want the session", got)
		}
		short.Close()
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 10*time.Minute) {
			t.Errorf("TTL after a load with 10m = %v; want 10m", got)
		}
		// A session that is older than the new absolute timeout is over at once.
		keys, _ := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Result()
		created := redisNow(t, rdb).Add(-20 * time.Minute).UnixMilli()
		rdb.HSet(t.Context(), keys[0], "m", strconv.FormatInt(created, 10)+",36000000,3600000,1200000,0")
		if got := b.values(t, long); len(got) != 1 {
			t.Errorf("Values by the long store = %v; want the session", got)
		}
		if got := b.values(t, short); len(got) != 0 {
			t.Errorf("Values by the short store = %v; want none", got)
		}
	})
}

func TestTouchAndReload(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			b.clone().edit(t, st, set("x", 2))
			s.Values["mine"] = true
			if err := st.Reload(r, s); err != nil || s.Values["x"] != 2 || s.Values["mine"] != nil {
				t.Errorf("Reload = %v, Values %v; want what is stored", err, s.Values)
			}
			keys, _ := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Result()
			rdb.PExpire(t.Context(), keys[0], time.Minute)
			if err := st.Touch(r, s); err != nil {
				t.Errorf("Touch = %v", err)
			}
			if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 30*time.Minute) {
				t.Errorf("TTL after Touch = %v; want 30m", got)
			}
			rdb.Del(t.Context(), keys[0])
			if err := st.Touch(r, s); !errors.Is(err, session.ErrSessionGone) {
				t.Errorf("Touch = %v; want ErrSessionGone", err)
			}
			if err := st.Reload(r, s); !errors.Is(err, session.ErrSessionGone) || s.Values["x"] != 2 {
				t.Errorf("Reload = %v, %v; want ErrSessionGone and the session as it was", err, s.Values)
			}
		})
	})
}

// A login starts the absolute lifetime anew; any other new id does not.
func TestLoginRestartsAbsoluteLifetime(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		age := func() {
			key := sessionKeys(t, rdb, session.DefaultPrefix)[0]
			m, _ := rdb.HGet(t.Context(), key, "m").Result()
			created, rest, _ := strings.Cut(m, ",")
			ms, _ := strconv.ParseInt(created, 10, 64)
			rdb.HSet(t.Context(), key, "m", strconv.FormatInt(ms-3600*1000, 10)+","+rest)
		}
		age()
		check := func(what string, bind bool, want time.Duration) {
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				if bind {
					st.Bind(s, "u")
				}
				if err := st.Regenerate(w, r, s); err != nil {
					t.Fatal(err)
				}
				if _, absolute := st.TTL(s); !about(absolute, want) {
					t.Errorf("%s: absolute %v; want %v", what, absolute, want)
				}
			})
		}
		check("new id", false, 7*time.Hour)
		check("login", true, 8*time.Hour)
		age()
		check("the same user again", true, 7*time.Hour)
	})
}

// A save prolongs a session no further than its absolute end, and not at all
// beyond it.
func TestSaveStopsAtAbsoluteEnd(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 10 * time.Minute, AbsoluteTimeout: 15 * time.Minute})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		k := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		aged := func(minutes int) {
			created := redisNow(t, rdb).Add(-time.Duration(minutes) * time.Minute).UnixMilli()
			rdb.HSet(t.Context(), k, "m", strconv.FormatInt(created, 10)+",900000,600000,0,0")
		}
		aged(10)
		b.edit(t, st, set("x", 2))
		if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, 5*time.Minute) {
			t.Errorf("TTL five minutes before the absolute end = %v; want 5m", got)
		}
		st.Close()                                 // no touch of the load before may come now
		rdb.PExpire(t.Context(), k, 3*time.Minute) // less than a save may leave as it is
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			aged(20)
			s.Values["x"] = 3
			if err := s.Save(r, w); !errors.Is(err, session.ErrSessionGone) {
				t.Errorf("Save after the absolute end = %v; want ErrSessionGone", err)
			}
			if n := rdb.Exists(t.Context(), k).Val(); n != 0 {
				t.Error("the session is still there")
			}
		})
	})
}

// A save leaves the expiry alone while a load would, too, and prolongs the
// session otherwise. Both change the values, in one round trip.
func TestSaveProlongsWhenDue(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{IdleTimeout: 20 * time.Minute, TouchEvery: 5 * time.Minute})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		k := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		for i, c := range []struct{ left, want time.Duration }{
			{18 * time.Minute, 18 * time.Minute},
			{14 * time.Minute, 20 * time.Minute},
		} {
			rdb.PExpire(t.Context(), k, c.left)
			b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 10 + i; delete(s.Values, "gone"); s.Values[i] = true })
			if got := sessionTTL(t, rdb, session.DefaultPrefix); !about(got, c.want) {
				t.Errorf("TTL after a save with %v left = %v; want %v", c.left, got, c.want)
			}
			if got := b.values(t, st); got["x"] != 10+i || got[i] != true {
				t.Errorf("Values = %v; want x = %d", got, 10+i)
			}
		}
		// More fields than one HSET of the script takes, and deletions.
		b.edit(t, st, func(s *sessions.Session) {
			for i := range 500 {
				s.Values["n"+strconv.Itoa(i)] = i
			}
		})
		b.edit(t, st, func(s *sessions.Session) {
			for i := range 500 {
				s.Values["n"+strconv.Itoa(i)] = -i
			}
			delete(s.Values, "x")
		})
		got := b.values(t, st)
		if _, there := got["x"]; there || got["n499"] != -499 || got["n0"] != 0 || len(got) != 502 {
			t.Errorf("%d values, x %v, n499 %v; want 502, none, -499", len(got), there, got["n499"])
		}
		rdb.Del(t.Context(), k)
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := st.Get(r, "s")
			s.Values["x"] = 1
			if _, err := st.Commit(w, r, s); err != nil || session.ID(s) == "" {
				t.Errorf("a session that was gone at the load = %v; want a new one", err)
			}
		})
	})
}
