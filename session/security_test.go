package session_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

func key(b byte) []byte {
	sum := sha256.Sum256([]byte{b})
	return sum[:]
}

func TestSigningKeysRotate(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		unsigned := open(t, rdb, session.Config{})
		old := open(t, rdb, session.Config{Keys: [][]byte{key(1)}})
		both := open(t, rdb, session.Config{Keys: [][]byte{key(2), key(1)}})
		young := open(t, rdb, session.Config{Keys: [][]byte{key(2)}})
		lenient := open(t, rdb, session.Config{Keys: [][]byte{key(2)}, AcceptUnsigned: true})
		a, b, c := newBrowser(), newBrowser(), newBrowser()
		a.edit(t, old, set("x", 1))
		b.edit(t, both, set("x", 1))
		c.edit(t, unsigned, set("x", 1))
		for _, row := range []struct {
			what   string
			b      *browser
			st     *session.Store
			opened bool
		}{
			{"old key, both", a, both, true}, {"old key, new only", a, young, false},
			{"new key, new only", b, young, true}, {"new key, old only", b, old, false},
			{"unsigned, signed store", c, young, false}, {"unsigned, lenient store", c, lenient, true},
			{"signed, unsigned store", a, unsigned, false},
		} {
			if got := len(row.b.values(t, row.st)) == 1; got != row.opened {
				t.Errorf("%s: opened %v; want %v", row.what, got, row.opened)
			}
		}
		// Whoever comes by meanwhile gets a cookie with the new signature.
		for _, old := range []struct {
			b  *browser
			st *session.Store
		}{{a, both}, {c, lenient}} {
			old.b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := old.st.Get(r, "s")
				if wrote, err := old.st.Commit(w, r, s); !wrote || err != nil {
					t.Errorf("Commit = %v, %v; want the cookie signed anew", wrote, err)
				}
			})
			if got := old.b.values(t, young); len(got) != 1 {
				t.Errorf("the cookie that was signed anew opens %v", got)
			}
		}
	})
}

// A forged cookie costs no call to Redis, and its id is never adopted.
func TestForgedCookieCostsNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Keys: [][]byte{key(1)}})
		b := newBrowser()
		b.edit(t, st, set("x", 1))
		good := b.jar["s"]
		flip := func(i int) string {
			c := byte('A')
			if good[i] == c {
				c = 'B'
			}
			return good[:i] + string(c) + good[i+1:]
		}
		forged := []string{flip(0), flip(10), flip(len(good) - 10), good[:46], good + "A", good[:len(good)-1], "", ".", "ATTACKER",
			strings.Repeat("A", 46) + "." + strings.Repeat("A", 22), good[:47] + strings.Repeat("A", 22)}
		for _, value := range forged {
			f := newBrowser()
			f.jar["s"] = value
			n := redistest.Count(t, rdb, func() {
				if got := f.values(t, st); len(got) != 0 {
					t.Errorf("cookie %q opened a session", value)
				}
			})
			if n.Total != 0 {
				t.Errorf("cookie %q cost %+v; want nothing", value, n)
			}
			f.edit(t, st, set("y", 1))
			if f.jar["s"] == value {
				t.Errorf("the id of cookie %q was adopted", value)
			}
		}
		if st.Stats().Refused < uint64(len(forged)) {
			t.Errorf("Stats.Refused = %d; want %d", st.Stats().Refused, len(forged))
		}
	})
}

// A cookie that a subdomain planted in front of the right one is skipped.
func TestSeveralCookiesOfOneName(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{})
		b, other := newBrowser(), newBrowser()
		b.edit(t, st, set("user", "ada"))
		other.edit(t, st, set("user", "eve"))
		dead := other.jar["s"]
		other.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", "s=junk; s="+dead+"; s="+b.jar["s"])
		s, err := st.Get(r, "s")
		if err != nil || s.Values["user"] != "ada" {
			t.Errorf("Values = %v, %v; want the valid cookie's", s.Values, err)
		}
		r = httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", strings.Repeat("s="+dead+"; ", 20)+"s="+b.jar["s"])
		n := redistest.Count(t, rdb, func() { st.Get(r, "s") })
		if n.RoundTrips > 4 {
			t.Errorf("twenty planted cookies cost %d round trips; want at most 4", n.RoundTrips)
		}
	})
}

// Ended sessions in front of the right one, as many as browsers keep, hide it no more than
// one does. Beside a session that is bound to a user one that is not is not opened,
// wherever it stands, and of sessions of two users none is: both end, so that after the next
// login the user's is alone.
func TestPlantedCookiesGainNothing(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Keys: [][]byte{key(1)}})
		signIn := func(user string) *browser {
			b := newBrowser()
			b.edit(t, st, func(s *sessions.Session) {
				s.Values["who"] = user
				if user != "nobody" {
					if err := st.Bind(s, user); err != nil {
						t.Fatal(err)
					}
				}
			})
			return b
		}
		who := func(cookies ...string) (any, *sessions.Session) {
			t.Helper()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", "s="+strings.Join(cookies, "; s="))
			s, err := st.New(r, "s")
			if err != nil {
				t.Fatal(err)
			}
			return s.Values["who"], s
		}
		ada := signIn("ada")
		var dead []string
		for range 49 {
			b := signIn("nobody")
			dead = append(dead, b.jar["s"])
			b.edit(t, st, func(s *sessions.Session) { s.Options.MaxAge = -1 })
		}
		if got, _ := who(append(dead, ada.jar["s"])...); got != "ada" {
			t.Errorf("behind %d ended ones: %v; want ada", len(dead), got)
		}
		planted := signIn("nobody")
		for _, order := range [][]string{{planted.jar["s"], ada.jar["s"]}, {ada.jar["s"], planted.jar["s"]}, {ada.jar["s"], ada.jar["s"]}, {ada.jar["s"], dead[0]}} {
			if got, _ := who(order...); got != "ada" {
				t.Errorf("%v opened beside ada's; want ada's", got)
			}
		}
		second := signIn("ada") // of the same user: the first
		if got, s := who(second.jar["s"], ada.jar["s"]); got != "ada" || session.ID(s) == "" {
			t.Errorf("two of ada's: %v; want one of them", got)
		}
		eve := signIn("eve")
		if got, s := who(eve.jar["s"], planted.jar["s"], ada.jar["s"]); got != nil || !s.IsNew {
			t.Errorf("%v opened of eve's and ada's; want neither", got)
		}
		for name, b := range map[string]*browser{"eve": eve, "ada": ada} {
			if got := b.values(t, st); len(got) != 0 {
				t.Errorf("%s's session is still there after it was sent beside another user's", name)
			}
		}
		if got, _ := who(eve.jar["s"], signIn("ada").jar["s"]); got != "ada" {
			t.Errorf("after the next login: %v; want ada", got)
		}
	})
}

// What signs is derived from a key, so the same bytes may serve another purpose. Cookies of
// versions before, which signed with the key itself, are known and signed anew; and in the
// first of two deploys servers send what those before know.
func TestSigningKeysAreDerived(t *testing.T) {
	before := func(cookie string) bool { // as versions before verify
		plain, sum, _ := strings.Cut(cookie, ".")
		mac := hmac.New(sha256.New, key(1))
		mac.Write([]byte("s\x00" + plain))
		return sum == base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
	}
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		first := open(t, rdb, session.Config{Keys: [][]byte{key(1)}, SignUnderived: true})
		second := open(t, rdb, session.Config{Keys: [][]byte{key(1)}})
		a, b := newBrowser(), newBrowser()
		a.edit(t, first, set("x", 1))
		b.edit(t, second, set("x", 1))
		if !before(a.jar["s"]) || before(b.jar["s"]) {
			t.Errorf("versions before know the cookie of the first deploy: %v, of the second: %v; want true, false", before(a.jar["s"]), before(b.jar["s"]))
		}
		for _, st := range []*session.Store{first, second} {
			for _, b := range []*browser{a, b} {
				if got := b.clone().values(t, st); len(got) != 1 {
					t.Errorf("a cookie opens %v; want every server to know both signatures", got)
				}
			}
		}
		for _, row := range []struct {
			st   *session.Store
			old  *browser
			want bool // known before
		}{{second, a, false}, {first, b, true}} {
			row.old.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := row.st.Get(r, "s")
				if wrote, err := row.st.Commit(w, r, s); !wrote || err != nil {
					t.Errorf("Commit = %v, %v; want the cookie signed anew", wrote, err)
				}
			})
			if got := before(row.old.jar["s"]); got != row.want {
				t.Errorf("signed anew: versions before know it: %v; want %v", got, row.want)
			}
		}
	})
	if _, err := session.New(redis.NewClient(&redis.Options{}), session.Config{SignUnderived: true}); err == nil {
		t.Error("SignUnderived without Keys is accepted")
	}
}

func TestCookieRules(t *testing.T) {
	_, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{})
	save := func(name string, o sessions.Options) (http.Header, error) {
		r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		s, _ := st.New(r, name)
		s.Options = &o
		s.Values["x"] = 1
		return w.Header(), s.Save(r, w)
	}
	safe := sessions.Options{Path: "/", Secure: true, HttpOnly: true}
	with := func(change func(*sessions.Options)) sessions.Options {
		o := safe
		change(&o)
		return o
	}
	for _, row := range []struct {
		name string
		o    sessions.Options
		ok   bool
	}{
		{session.HostName("sid"), safe, true},
		{"__host-sid", with(func(o *sessions.Options) { o.Secure = false }), false},
		{"__Host-sid", with(func(o *sessions.Options) { o.Path = "/app" }), false},
		{"__Host-sid", with(func(o *sessions.Options) { o.Domain = "example.com" }), false},
		{"__Secure-sid", with(func(o *sessions.Options) { o.Path = "/app" }), true},
		{"__Secure-sid", with(func(o *sessions.Options) { o.Secure = false }), false},
		{"__Http-sid", with(func(o *sessions.Options) { o.HttpOnly = false }), false},
		{"__Host-Http-sid", with(func(o *sessions.Options) { o.HttpOnly = false }), false},
		{"__Host-Http-sid", safe, true},
		{"sid", with(func(o *sessions.Options) { o.SameSite = http.SameSiteNoneMode }), true},
		{"sid", sessions.Options{SameSite: http.SameSiteNoneMode}, false},
		{"sid", with(func(o *sessions.Options) { o.Partitioned = true }), false},
		{"sid", with(func(o *sessions.Options) { o.Partitioned, o.SameSite = true, http.SameSiteNoneMode }), true},
		{strings.Repeat("n", 4060), safe, false},
	} {
		h, err := save(row.name, row.o)
		if row.ok && (err != nil || h.Get("Set-Cookie") == "") {
			t.Errorf("%.20s %+v: %v; want a cookie", row.name, row.o, err)
		}
		if !row.ok && (!errors.Is(err, session.ErrCookie) || h.Get("Set-Cookie") != "") {
			t.Errorf("%.20s %+v: %v; want ErrCookie and no cookie", row.name, row.o, err)
		}
	}
	// The cookie that deletes repeats what makes it match, and 400 days is the most.
	long := open(t, rdb, session.Config{AbsoluteTimeout: 9 * 365 * 24 * time.Hour})
	h := newBrowser().do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := long.Get(r, "s")
		s.Options.MaxAge = 500 * 86400
		s.Save(r, w)
	})
	if c := h.Get("Set-Cookie"); !strings.Contains(c, "Max-Age=34560000") || h.Get("Cache-Control") != "no-store" {
		t.Errorf("Set-Cookie %q, Cache-Control %q; want 400 days and no-store", c, h.Get("Cache-Control"))
	}
	part := open(t, rdb, session.Config{Cookie: session.Cookie{Path: "/app", Domain: "example.com", Partitioned: true, SameSite: http.SameSiteNoneMode}})
	b := newBrowser()
	b.edit(t, part, set("x", 1))
	h = b.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := part.Get(r, "s")
		part.Destroy(w, r, s)
	})
	for _, want := range []string{"s=;", "Path=/app", "Domain=example.com", "Secure", "Partitioned", "Max-Age=0"} {
		if !strings.Contains(h.Get("Set-Cookie"), want) {
			t.Errorf("deleting cookie %q; want %q in it", h.Get("Set-Cookie"), want)
		}
	}
}

func TestNewJoinsAllComplaints(t *testing.T) {
	_, err := session.New(nil, session.Config{
		Keys: [][]byte{{1}}, EncryptionKeys: [][]byte{{1}}, Prefix: "{x}", IdleTimeout: -1, AbsoluteTimeout: time.Millisecond,
		TouchEvery: -1, Cookie: session.Cookie{InsecureHTTP: true, SameSite: http.SameSiteNoneMode, MaxAge: -1}, MaxBytes: -1,
		AtLimit: 7, ZeroMaxAge: 7, Timeout: -1,
	})
	for _, want := range []string{"Keys[0]", "EncryptionKeys[0]", "brace", "IdleTimeout", "AbsoluteTimeout", "TouchEvery", "SameSite=None",
		"Cookie.MaxAge", "MaxBytes", "AtLimit", "ZeroMaxAge", "client", "timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v; want a complaint about %s", err, want)
		}
	}
}

func TestEncryptionAtRest(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		plain := open(t, rdb, session.Config{})
		old := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(1)}})
		both := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(2), key(1)}})
		young := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(2)}})
		lenient := open(t, rdb, session.Config{EncryptionKeys: [][]byte{key(2)}, AcceptPlaintext: true})
		b := newBrowser()
		b.edit(t, old, func(s *sessions.Session) { s.Values["secret"] = "attack at dawn"; s.AddFlash("at dawn") })
		k := rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		for name, value := range rdb.HGetAll(t.Context(), k).Val() {
			if strings.Contains(value, "dawn") {
				t.Errorf("field %q holds %q in the clear", name, value)
			}
		}
		if got := b.values(t, both); len(got) != 2 || got["secret"] != "attack at dawn" {
			t.Errorf("Values with rotated keys = %v", got)
		}
		if got := b.values(t, young); len(got) != 0 {
			t.Errorf("Values without the key = %v; want none", got)
		}
		b.edit(t, both, set("secret", "changed"))
		if got := b.values(t, young); len(got) != 1 || got["secret"] != "changed" {
			t.Errorf("Values with the new key = %v; want the one saved with it", got)
		}
		// A new id keeps the values readable.
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := both.Get(r, "s")
			if err := both.Regenerate(w, r, s); err != nil {
				t.Fatal(err)
			}
		})
		if got := b.values(t, both); len(got) != 2 {
			t.Errorf("Values after Regenerate = %v", got)
		}
		// A value moved to another name is refused; so is a planted one.
		k = rdb.Keys(t.Context(), session.DefaultPrefix+"*").Val()[0]
		rdb.HSet(t.Context(), k, "sadmin", rdb.HGet(t.Context(), k, "ssecret").Val(), "splanted", "\x03")
		if got := b.values(t, both); got["admin"] != nil || got["planted"] != nil || got["secret"] != "changed" {
			t.Errorf("Values = %v; want neither the moved nor the planted one", got)
		}
		p := newBrowser()
		p.edit(t, plain, set("x", 1))
		if a, c := p.values(t, young), p.values(t, lenient); len(a) != 0 || len(c) != 1 {
			t.Errorf("plain values: strict %v, lenient %v; want none and one", a, c)
		}
		// An unchanged encrypted session is not written.
		b.do(func(w http.ResponseWriter, r *http.Request) {
			s, _ := both.Get(r, "s")
			n := redistest.Count(t, rdb, func() { both.Commit(w, r, s) })
			if n.Total != 0 {
				t.Errorf("Commit of an unchanged session: %+v", n)
			}
		})
	})
}

// What errors and hooks say about a session leads nobody to its cookie.
func TestNoSecretsInErrorsOrEvents(t *testing.T) {
	m, rdb := redistest.Mini(t)
	st := open(t, rdb, session.Config{})
	b := newBrowser()
	b.edit(t, st, set("x", 1))
	b.do(func(w http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		if session.ID(s) == "" || session.ID(s) != s.ID || strings.Contains(b.jar["s"], s.ID) || strings.Contains(s.ID, b.jar["s"]) {
			t.Errorf("ID %q and cookie %q", s.ID, b.jar["s"])
		}
		for _, k := range rdb.Keys(r.Context(), "*").Val() {
			if strings.Contains(k, b.jar["s"][4:]) {
				t.Errorf("key %q holds the cookie's secret", k)
			}
		}
		m.SetError("ERR something")
		s.Values["x"] = 2
		err := s.Save(r, w)
		if err == nil || strings.Contains(err.Error(), s.ID) || strings.Contains(err.Error(), b.jar["s"]) {
			t.Errorf("Save = %v; want an error without ids", err)
		}
	})
}
