package session

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/sessions"
)

// A line that is put together says what net/http writes, whatever was written before.
func TestCookieLine(t *testing.T) {
	st := new(Store)
	for _, o := range []sessions.Options{
		{},
		{Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode},
		{Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode},
		{Path: "/app", Domain: "porch.example", Secure: true, Partitioned: true, SameSite: http.SameSiteNoneMode},
		{Path: "/", MaxAge: -1},
	} {
		for _, name := range []string{"sid", "__Host-sid", "my session"} {
			for _, value := range []string{"abc-DEF_123.xyz", "abd", "with space", `with"quote`, "", "a,b", "ä"} {
				want := sessions.NewCookie(name, value, &o).String()
				for range 3 { // the second time by what the first has left
					if got := st.cookieLine(name, value, &o); got != want {
						t.Fatalf("cookieLine(%q, %q, %+v) = %q; want %q", name, value, o, got, want)
					}
				}
			}
		}
	}
}

// What others add to a header later stays out of the other one, though both were made
// together.
func TestCookieHeadersAreApart(t *testing.T) {
	st := &Store{}
	o := &sessions.Options{Path: "/"}
	w := httptest.NewRecorder()
	st.writeCookie(w, "sid", "v", o, 0)
	w.Header().Add("Set-Cookie", "theirs=1")
	if c := w.Header().Get("Cache-Control"); c != "no-store" {
		t.Errorf("Cache-Control = %q after a cookie of somebody else; want no-store", c)
	}
	st.writeCookie(w, "sid", "w", o, 0)
	if c := w.Header()["Set-Cookie"]; len(c) != 2 || c[0] != "theirs=1" || c[1] != "sid=w; Path=/" {
		t.Errorf("Set-Cookie = %q; want theirs, and the last of ours", c)
	}
}
