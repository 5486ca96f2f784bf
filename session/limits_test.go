package session_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// What browsers or net/http would drop is refused by New and by Save, and named.
func TestCookieThatCannotWork(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{})
	for want, c := range map[string]session.Cookie{
		"Domain":       {Domain: "example.com:8080"},
		"Domain \"a ":  {Domain: "a b.example"},
		"Path":         {Path: "/a;b"},
		"begin with /": {Path: "app"},
		"longer than":  {Path: "/" + strings.Repeat("x", 5000)},
		"SameSite":     {SameSite: 9},
	} {
		if _, err := session.New(rdb, session.Config{Cookie: c}); !errors.Is(err, session.ErrCookie) || !strings.Contains(fmt.Sprint(err), strings.Fields(want)[0]) {
			t.Errorf("New with %.60v = %.200v; want ErrCookie and %q", c, err, want)
		}
		v := newBrowser().visit(t, st)
		v.s.Values["x"] = 1
		v.s.Options = &sessions.Options{Path: c.Path, Domain: c.Domain, SameSite: c.SameSite}
		if v.s.Options.Path == "" {
			v.s.Options.Path = "/"
		}
		if err := st.Save(v.r, v.w, v.s); !errors.Is(err, session.ErrCookie) || len(v.w.Header()["Set-Cookie"]) > 0 {
			t.Errorf("Save with %.60v = %.200v; want ErrCookie and no cookie", c, err)
		}
	}
	if n, _ := st.Len(t.Context()); n != 0 {
		t.Errorf("Len = %d; want nothing stored", n)
	}
	if _, err := session.New(rdb, session.Config{AbsoluteTimeout: session.DefaultAbsoluteTimeout, Cookie: session.Cookie{MaxAge: 30 * 86400}}); err == nil {
		t.Error("New with a cookie that outlives all sessions = nil; want an error")
	}
}

// The longest MaxAge that an int holds is stored so that it is read again.
func TestLongestMaxAge(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, cfg := range []session.Config{{}, {AbsoluteTimeout: session.DefaultAbsoluteTimeout}} {
			st := open(t, rdb, cfg)
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; s.Options.MaxAge = int(^uint(0) >> 1) })
			if got := b.values(t, st); got["x"] != 1 {
				t.Errorf("Values = %v; want the session", got)
			}
			b.edit(t, st, set("x", 2))
			if got := b.values(t, st); got["x"] != 2 {
				t.Errorf("Values = %v; want the change", got)
			}
		}
	})
}

// Neither a store nor its configuration shows keys when it is printed or logged.
func TestPrintingShowsNoKeys(t *testing.T) {
	_, rdb := redistest.Mini(t)
	k := []byte("a-secret-of-exactly-32-bytes-...")
	cfg := session.Config{Keys: [][]byte{k}, EncryptionKeys: [][]byte{k}}
	st := open(t, rdb, cfg)
	asJSON, _ := json.Marshal(k)
	for _, v := range []any{st, cfg, &cfg} {
		var text, js bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&js, nil)).Info("x", "v", v)
		for how, s := range map[string]string{
			"%v": fmt.Sprintf("%v", v), "%+v": fmt.Sprintf("%+v", v), "%#v": fmt.Sprintf("%#v", v), "%s": fmt.Sprintf("%s", v),
			"slog text": text.String(), "slog JSON": js.String(),
		} {
			if strings.Contains(s, string(k)) || strings.Contains(s, "97 45 115") || strings.Contains(s, strings.Trim(string(asJSON), `"`)) || strings.Contains(s, "0x61, 0x2d") {
				t.Errorf("%T by %s shows the key: %.300s", v, how, s)
			}
			if !strings.Contains(s, session.DefaultPrefix) && v == any(st) {
				t.Errorf("%T by %s = %.300s; want its prefix", v, how, s)
			}
		}
	}
}

// A login that failed leaves no entry behind: it takes no place, and leads RevokeUser to
// no session that is excepted.
func TestFailedLoginsLeaveNoEntry(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		strict := open(t, rdb, session.Config{MaxPerUser: 1, AtLimit: session.RefuseNew})
		for _, how := range []string{"destroyed", "renewed"} {
			b := newBrowser()
			b.edit(t, strict, set("x", 1))
			v := b.visit(t, strict)
			if how == "destroyed" {
				b.edit(t, strict, func(s *sessions.Session) { s.Options.MaxAge = -1 })
			} else {
				b.renew(t, strict)
			}
			_ = strict.Bind(v.s, "ada")
			if err := strict.Save(v.r, v.w, v.s); !errors.Is(err, session.ErrSessionGone) {
				t.Errorf("%s: Save = %v; want ErrSessionGone", how, err)
			}
			c := newBrowser()
			if _, err := login(t, c, strict, "ada"); err != nil {
				t.Errorf("%s: the next login = %v; want it to have room", how, err)
			}
			_, _ = strict.RevokeUser(t.Context(), "ada")
		}
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		old := b.visit(t, st)
		b.renew(t, st)
		if _, err := login(t, b, st, "ada"); err != nil {
			t.Fatal(err)
		}
		_ = st.Bind(old.s, "ada")
		if err := st.Save(old.r, old.w, old.s); !errors.Is(err, session.ErrSuperseded) {
			t.Errorf("Save = %v; want ErrSuperseded", err)
		}
		own := session.ID(b.visit(t, st).s)
		if n, err := st.RevokeUser(t.Context(), "ada", own); n != 0 || err != nil || b.values(t, st)["x"] != 1 {
			t.Errorf("RevokeUser except it = %d, %v; want it to go on", n, err)
		}
	})
}

// Who comes with a superseded cookie and takes the user away is not about to be bound.
func TestSupersededUnbind(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b := newBrowser()
		b.edit(t, st, func(s *sessions.Session) { s.Values["x"] = 1; _ = st.Bind(s, "ada") })
		late := b.clone()
		b.renew(t, st)
		v := late.visit(t, st)
		_ = st.Bind(v.s, "")
		if err := st.Regenerate(v.w, v.r, v.s); !errors.Is(err, session.ErrSuperseded) || len(v.w.Result().Cookies()) > 0 {
			t.Errorf("Regenerate = %v; want ErrSuperseded and no cookie", err)
		}
		w := newBrowser().visit(t, st)
		for range 2 {
			if err := st.Destroy(w.w, w.r, w.s); err != nil || len(w.w.Result().Cookies()) > 0 {
				t.Errorf("Destroy without a cookie = %v, %v; want none", err, w.w.Result().Cookies())
			}
		}
	})
}

// A session of many lists is loaded whole, and is not taken for changed.
func TestManyListsLoad(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{MaxBytes: 8 << 20})
	b := newBrowser()
	b.edit(t, st, func(s *sessions.Session) {
		for i := range 3000 {
			s.Values[fmt.Sprint("list", i)] = []any{i, "x"}
			s.Values[fmt.Sprint("value", i)] = i
		}
	})
	got := b.values(t, st)
	if len(got) != 6000 || fmt.Sprint(got["list2999"]) != "[2999 x]" || got["value0"] != 0 {
		t.Errorf("%d values, list2999 = %v; want 6000", len(got), got["list2999"])
	}
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		if st.Changed(s) {
			t.Error("the session counts as changed")
		}
	})
}
