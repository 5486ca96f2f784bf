package demo

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

// pageData is what the page shows when it is loaded. What changes later comes by
// the stream; without JavaScript a reload shows it.
type pageData struct {
	Redis   string // which one
	State   redisState
	Timeout time.Duration // of one call
	Modes   any
	Devices devicesView
	Flashes []any

	Algorithms, Failures []choice
	Algorithm, Failure   string
	Tried                string // "allowed" or "denied": what became of the form's request
	Limit                verdict

	Profile      profileRead
	ProfileError string
	Live         minute
}

// index is the page. All its forms work without JavaScript.
func (a *app) index(w http.ResponseWriter, r *http.Request) {
	d := pageData{
		Redis:      a.redis.description,
		Timeout:    a.cfg.redisTimeout,
		Modes:      modes,
		Algorithms: algorithms,
		Failures:   failures,
	}
	s := middleware.Session(r)
	d.Devices = a.devicesOf(r, s)
	d.Flashes = s.Flashes()

	d.Algorithm, d.Failure = chosen(r)
	if t := r.FormValue("tried"); t == "allowed" || t == "denied" {
		d.Tried = t
	}
	// The middleware's key for this client; the answer costs nothing.
	if res, err := a.limits.pick(r).Peek(r.Context(), middleware.ClientIP()(r)); err == nil {
		d.Limit = newVerdict(d.Algorithm, res)
	}
	d.readProfile(a, r)
	_, d.Live = a.live.points()
	d.State = a.redisState()

	var page bytes.Buffer
	if err := a.tmpl.ExecuteTemplate(&page, "index.html", d); err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(page.Bytes())
}

// devicesOf is whoIs for a session that is loaded already.
func (a *app) devicesOf(r *http.Request, s *sessions.Session) devicesView {
	if !session.Loaded(s) {
		return devicesView{State: unavailable}
	}
	user, list, err := a.listDevices(r.Context(), s)
	switch {
	case err != nil:
		return devicesView{State: unavailable}
	case user == "":
		return devicesView{State: anonymous}
	}
	return devicesView{State: signedIn, Name: users[user], Devices: list}
}

const shownProfile = 1

// readProfile shows the profile if it is cached, and loads it only when asked.
func (d *pageData) readProfile(a *app, r *http.Request) {
	if r.FormValue("load") == "" {
		if v, ok, err := a.profiles.Peek(r.Context(), shownProfile); err == nil && ok {
			d.Profile.Profile = v
		}
		return
	}
	var err error
	if d.Profile, err = a.readProfile(r.Context(), shownProfile); err != nil {
		d.ProfileError = "The profile could not be read."
		if !errors.Is(err, cacheaside.ErrNotFound) {
			a.log.Warn("read profile", "err", err)
		}
	}
}

// Of a page: how its figures are written.

func (p profileRead) Elapsed() string {
	return fmt.Sprintf("%.3g ms", float64(p.ElapsedUs)/1000)
}

func (p profileRead) TTL() string { return fmt.Sprintf("%d s", p.TTLMs/1000) }

func (m minute) HitRateText() string {
	if m.HitRate < 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*m.HitRate)
}

func (m minute) P50() string { return latencyText(m.P50us) }
func (m minute) P99() string { return latencyText(m.P99us) }

func latencyText(us int64) string {
	switch {
	case us < 0:
		return "–"
	case us < 1000:
		return fmt.Sprintf("%d µs", us)
	}
	return fmt.Sprintf("%.3g ms", float64(us)/1000)
}

func (v verdict) Used() int64 { return v.Limit - v.Remaining }

func (v verdict) RetryText() string {
	return fmt.Sprintf("%.1f s", (time.Duration(v.RetryAfterMs) * time.Millisecond).Seconds())
}
