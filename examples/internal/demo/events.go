package demo

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/redporch/redporch/session"
)

const (
	// sessionCheck is how often each open page asks whether its session is still
	// there. It is what a request costs, and needs no channel between servers:
	// a revocation by another one is seen as well, and so is one that happened
	// while Redis could not be asked.
	sessionCheck = 500 * time.Millisecond
	heartbeat    = 15 * time.Second
)

// events is the page's one stream.
func (a *app) events(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	// The server's ReadTimeout is meant for requests; this one is read.
	rc.SetReadDeadline(time.Time{})
	send := func(m message) bool {
		rc.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", m.event, strings.ReplaceAll(m.data, "\n", "\ndata: "))
		return err == nil && rc.Flush() == nil
	}

	messages, unsubscribe := a.pages.subscribe()
	defer unsubscribe()
	points, sum := a.live.points()
	fmt.Fprint(w, "retry: 1000\n\n")
	if !send(jsonMessage("redis", a.redisState())) || !send(jsonMessage("live", liveUpdate{points, sum})) {
		return
	}
	check, beat := time.NewTicker(sessionCheck), time.NewTicker(heartbeat)
	defer check.Stop()
	defer beat.Stop()
	known := false // who is behind this page
	shown := ""
	for {
		who := a.whoIs(r)
		known = known || who.State == signedIn
		who.Revoked = known && who.State == anonymous
		var html bytes.Buffer
		if err := a.tmpl.ExecuteTemplate(&html, "devices", who); err != nil {
			a.log.Error("template", "err", err)
			return
		}
		if shown != html.String() {
			shown = html.String()
			if !send(message{"devices", shown}) {
				return
			}
		}
		for waiting := true; waiting; {
			select {
			case <-r.Context().Done():
				return
			case <-a.ending:
				return
			case <-check.C:
				waiting = false
			case m := <-messages:
				if !send(m) {
					return
				}
			case <-beat.C:
				if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil || rc.Flush() != nil {
					return
				}
			}
		}
	}
}

// What is known about the session of a page.
const (
	anonymous   = "anonymous"
	signedIn    = "signed-in"
	unavailable = "unavailable" // Redis can't be asked
)

// devicesView is what the card of devices shows.
type devicesView struct {
	State   string
	Revoked bool // was signed in when the page opened
	Name    string
	Devices []device
}

// whoIs asks Redis anew about the session of r.
func (a *app) whoIs(r *http.Request) devicesView {
	s, err := a.sessions.New(r, a.cookie)
	if err != nil && !errors.Is(err, session.ErrUnavailable) {
		a.log.Warn("load session", "err", err)
	}
	return a.devicesOf(r, s)
}
