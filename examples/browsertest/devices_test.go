package browsertest

import (
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
)

func TestDevices(t *testing.T) {
	t.Parallel()
	everyRedis(t, func(t *testing.T, b *browser, env []string) {
		base := startServer(t, env...)
		first, second := b.device(t, "first", base), b.device(t, "second", base)

		first.openLive()
		first.follow("#login-ada")
		if got := first.text(".flash"); got != "Signed in as Ada Lovelace." {
			t.Errorf("flash = %q; want the greeting", got)
		}
		first.openLive()
		if got := first.text(".flash"); got != "" {
			t.Errorf("after a reload the flash is there again: %q", got)
		}
		first.wait("this device", `document.querySelectorAll('#device-table tbody tr.current').length === 1`)

		second.openLive()
		second.follow("#login-ada")
		second.wait("two devices", `document.querySelectorAll('#device-table tbody tr').length === 2`)
		first.wait("the new device, live", `document.querySelectorAll('#device-table tbody tr').length === 2`)
		second.wait("the stream", `document.querySelector('#stream').textContent.startsWith('Live')`)

		// Revoke the other.
		first.follow("#device-table .danger")
		took := second.wait("the revocation, live", `document.querySelector('#revoked')`)
		t.Logf("a revoked page learned it %v after the redirect", took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("a revoked page learned it after %v; want within a second", took)
		}
		first.wait("one device", `document.querySelectorAll('#device-table tbody tr').length === 1`)

		// Sign out everywhere else.
		second.follow("#login-ada")
		second.wait("the stream", `document.querySelector('#stream').textContent.startsWith('Live')`)
		first.wait("two devices", `document.querySelectorAll('#device-table tbody tr').length === 2`)
		first.follow("#revoke-others")
		if got := first.text(".flash"); got != "Signed out the other device." {
			t.Errorf("flash = %q; want what was done", got)
		}
		second.wait("the sign-out, live", `document.querySelector('#revoked')`)
		first.follow("#logout")
		first.wait("signed out", `document.querySelector('#login-ada') && !document.querySelector('#user')`)
	})
}

// Two servers share one Redis: what happens at one is seen at the other.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	env := []string{"REDIS_URL=unix://" + s.Addr(), "SESSION_KEYS=" + "6b1f0c93e2d87a4455be19f703ca8e21d94c7706f8a35b60129edc4437e1ab58"}
	one, two := startServer(t, env...), startServer(t, env...)
	b := startBrowser(t)
	first, second := b.device(t, "at one", one), b.device(t, "at two", two)
	first.openLive()
	first.follow("#login-grace")
	second.openLive()
	second.follow("#login-grace")
	second.openLive()
	second.click("#load")
	second.wait("the profile", `document.querySelector('#source').textContent !== ''`)
	for second.text("#source") != "l1" { // until the announcements are heard
		second.click("#load")
	}

	first.do("type a city", sendKeys("#city", "Trondheim"))
	first.click("#update")
	first.wait("the update", `document.querySelector('#profile-city').textContent === 'Trondheim'`)
	took := second.wait("the update, live", `document.querySelector('#profile-city').textContent === 'Trondheim'`)
	t.Logf("the other server's page showed the update %v later", took.Round(time.Millisecond))
	if got := second.text("#profile-note"); got != "Another server changed it; this one’s memory was emptied at once." {
		t.Errorf("note = %q; want it to say what happened", got)
	}

	first.follow("#revoke-others")
	second.wait("the revocation, live", `document.querySelector('#revoked')`)
}
