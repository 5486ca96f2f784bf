package session

import (
	"net/http"
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
