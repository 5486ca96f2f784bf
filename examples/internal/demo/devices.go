package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

type device struct {
	ID       string    `json:"id"`
	Label    string    `json:"label"`
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"last_seen"`
	Current  bool      `json:"current"`
}

// Browser and Address are the two parts of the label, see describeDevice.
func (d device) Browser() string { b, _, _ := strings.Cut(d.Label, " at "); return b }
func (d device) Address() string { _, a, _ := strings.Cut(d.Label, " at "); return a }

// listDevices returns who s belongs to, and that user's sessions.
func (a *app) listDevices(ctx context.Context, s *sessions.Session) (user string, list []device, err error) {
	if user, _ = userKey.Get(s); user == "" {
		return "", nil, nil
	}
	infos, err := a.sessions.Sessions(ctx, user)
	for _, in := range infos {
		list = append(list, device{in.ID, in.Label, in.Created, in.LastSeen, in.ID == session.ID(s)})
	}
	return user, list, err
}

func (a *app) devices(w http.ResponseWriter, r *http.Request) {
	user, list, err := a.listDevices(r.Context(), middleware.Session(r))
	switch {
	case err != nil:
		a.fail(w, r, err)
	case user == "":
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
	default:
		writeJSON(w, http.StatusOK, map[string]any{"user": user, "devices": list})
	}
}

func (a *app) revoke(w http.ResponseWriter, r *http.Request) {
	s := middleware.Session(r)
	user, _ := userKey.Get(s)
	if user == "" {
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
		return
	}
	found, err := a.sessions.Revoke(r.Context(), user, r.PostFormValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if !found {
		http.Error(w, "You have no such device; it may have signed out already.", http.StatusNotFound)
		return
	}
	s.AddFlash("Signed out one device.")
	a.done(w, r)
}

func (a *app) revokeOthers(w http.ResponseWriter, r *http.Request) {
	s := middleware.Session(r)
	user, _ := userKey.Get(s)
	if user == "" {
		http.Error(w, "Sign in first.", http.StatusUnauthorized)
		return
	}
	n, err := a.sessions.RevokeUser(r.Context(), user, session.ID(s))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	switch n {
	case 0:
		s.AddFlash("There was no other device.")
	case 1:
		s.AddFlash("Signed out the other device.")
	default:
		s.AddFlash(fmt.Sprintf("Signed out %d other devices.", n))
	}
	a.done(w, r)
}

// describeDevice is the label of a session in the list of devices.
func describeDevice(r *http.Request) string {
	agent := r.UserAgent()
	name := "Unknown browser"
	for _, known := range []struct{ mark, name string }{
		{"Firefox/", "Firefox"}, {"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"}, {"curl/", "curl"},
	} {
		if strings.Contains(agent, known.mark) {
			name = known.name
			break
		}
	}
	for _, known := range []struct{ mark, name string }{
		{"Android", "Android"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Windows", "Windows"}, {"Mac OS X", "macOS"}, {"Linux", "Linux"},
	} {
		if strings.Contains(agent, known.mark) {
			name += " on " + known.name
			break
		}
	}
	return name + " at " + middleware.ClientAddrOf(r).String()
}
