package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/session"
)

func (a *app) profile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.FormValue("id"))
	if err != nil {
		http.Error(w, "id must be a number, such as 1.", http.StatusBadRequest)
		return
	}
	read, err := a.readProfile(r.Context(), id)
	switch {
	case errors.Is(err, cacheaside.ErrNotFound):
		http.Error(w, "There is no such profile; try 1 or 2.", http.StatusNotFound)
	case err != nil:
		a.fail(w, r, err)
	default:
		writeJSON(w, http.StatusOK, read)
	}
}

// profileRead is a profile, and where it came from.
type profileRead struct {
	Profile   profile `json:"profile"`
	Source    string  `json:"source"`
	ElapsedUs int64   `json:"elapsed_us"`
	TTLMs     int64   `json:"ttl_ms"`
}

func (a *app) readProfile(ctx context.Context, id int) (profileRead, error) {
	start := time.Now()
	e, err := a.profiles.GetEntry(ctx, id)
	return profileRead{e.Value, e.Source.String(), time.Since(start).Microseconds(), e.TTL.Milliseconds()}, err
}

func (a *app) updateProfile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PostFormValue("id"))
	city := strings.TrimSpace(r.PostFormValue("city"))
	if err != nil || city == "" || len(city) > 80 {
		http.Error(w, "id must be a number, and city a name of at most 80 bytes.", http.StatusBadRequest)
		return
	}
	err = a.profiles.Update(r.Context(), func(ctx context.Context) error {
		return a.source.setCity(ctx, id, city)
	}, id)
	switch {
	case errors.Is(err, cacheaside.ErrInvalidationQueued), errors.Is(err, cacheaside.ErrFenceLost):
		// It is written; the cache makes up for the rest by itself.
		a.log.Warn("profile updated while Redis is away", "err", err)
		a.note(r, "Saved "+city+". Other servers' caches follow when Redis is back.")
	case errors.Is(err, cacheaside.ErrNotFound):
		http.Error(w, "There is no such profile; try 1 or 2.", http.StatusNotFound)
		return
	case err != nil:
		a.fail(w, r, err)
		return
	default:
		a.note(r, "Saved "+city+".")
	}
	if wantsJSON(r) {
		writeJSON(w, http.StatusOK, a.account(r))
		return
	}
	http.Redirect(w, r, "/?load=1#profile", http.StatusSeeOther)
}

func (a *app) invalidateProfile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PostFormValue("id"))
	if err != nil {
		http.Error(w, "id must be a number, such as 1.", http.StatusBadRequest)
		return
	}
	err = a.profiles.Invalidate(r.Context(), id)
	switch {
	case errors.Is(err, cacheaside.ErrInvalidationQueued):
		a.note(r, "Queued: until Redis is back, this server bypasses its cache.")
	case err != nil:
		a.fail(w, r, err)
		return
	default:
		a.note(r, "Removed from every cache.")
	}
	a.doneAt(w, r, "/#profile", map[string]any{"queued": err != nil})
}

const stampede = 100

// stampedeProfile lets many callers read one profile that is in no cache.
func (a *app) stampedeProfile(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PostFormValue("id"))
	if err != nil {
		http.Error(w, "id must be a number, such as 1.", http.StatusBadRequest)
		return
	}
	err = a.profiles.Invalidate(r.Context(), id)
	if err != nil && !errors.Is(err, cacheaside.ErrInvalidationQueued) {
		a.fail(w, r, err)
		return
	}
	before, start := a.profiles.Stats().Loads, time.Now()
	sources := make(map[string]int)
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range stampede {
		wg.Go(func() {
			read, err := a.readProfile(r.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			sources[read.Source]++
		})
	}
	wg.Wait()
	if failed != nil {
		a.fail(w, r, failed)
		return
	}
	loads, elapsed := a.profiles.Stats().Loads-before, time.Since(start)
	plural := "s"
	if loads == 1 {
		plural = ""
	}
	a.note(r, fmt.Sprintf("%d callers, %d call%s of the loader, %d ms.", stampede, loads, plural, elapsed.Milliseconds()))
	a.doneAt(w, r, "/#profile", map[string]any{
		"callers": stampede, "loads": loads, "sources": sources, "elapsed_us": elapsed.Microseconds(),
	})
}

// note leaves a message for the next page, for browsers without JavaScript. A
// session that could not be loaded can't take it.
func (a *app) note(r *http.Request, text string) {
	if wantsJSON(r) {
		return
	}
	if s := middleware.Session(r); session.Loaded(s) {
		s.AddFlash(text)
	}
}

// doneAt ends a successful POST: scripts get v, browsers go to the page.
func (a *app) doneAt(w http.ResponseWriter, r *http.Request, page string, v any) {
	if wantsJSON(r) {
		writeJSON(w, http.StatusOK, v)
		return
	}
	http.Redirect(w, r, page, http.StatusSeeOther)
}
