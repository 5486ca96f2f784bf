package middleware

import (
	"context"
	"net/http"
	"net/netip"
	"sync"

	"github.com/gorilla/sessions"

	"github.com/redporch/redporch/session"
)

// visit is what the middlewares of one request know of each other. The first of
// them makes it and puts it into the request's context, so that a chain copies
// the request once, not once a layer. It is the context: one allocation.
//
// Handlers may run on another goroutine and outlive the middlewares (see
// http.TimeoutHandler), hence the mutex.
type visit struct {
	context.Context

	mu         sync.Mutex
	passed     kind
	writer     *writer // the innermost
	observer   Observer
	requestID  string
	idField    string     // the response field that has it
	route      string     // what a mux has found, the innermost first
	routePath  string     // of the request for which it was
	routeAhead string     // what it will find
	routeSet   bool       // by SetRoute
	said       string     // by the handler, see SetOutcome
	replaced   bool       // the response, by an error answer
	addr       netip.Addr // of the client, once resolved
	holders    []*holder
	decisions  []Decision
	cache      string
	registry   *sessions.Registry // gorilla's, see registry.go
	loading    *session.Loading   // a session on its way, of the Sessions that will ask for it
	loadingOf  *sessionManager

	room struct { // for what most requests have one of
		holders   [1]*holder
		decisions [1]Decision
	}
}

type visitKey struct{}

func (v *visit) Value(key any) any {
	if key == (visitKey{}) {
		return v
	}
	if key == registryKey {
		if reg := v.gorilla(); reg != nil {
			return reg
		}
	}
	return v.Context.Value(key)
}

// enter returns the request's visit, and the request that carries it.
func enter(r *http.Request) (*visit, *http.Request) {
	if v := visitOf(r); v != nil {
		return v, r
	}
	v := &visit{Context: r.Context()}
	return v, r.WithContext(v)
}

// visitOf returns nil for a request that passed no middleware of this package.
func visitOf(r *http.Request) *visit {
	v, _ := r.Context().Value(visitKey{}).(*visit)
	return v
}

// pass notes that a layer was entered and returns what was passed before.
func (v *visit) pass(k kind) kind {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.passed
	v.passed |= k
	return before
}

func (v *visit) hasPassed(k kind) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.passed&k != 0
}

func (v *visit) setReplaced() {
	v.mu.Lock()
	v.replaced = true
	v.mu.Unlock()
}

func (v *visit) wasReplaced() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.replaced
}

// takeLoading returns the session that was begun to be loaded for sm, or nil.
func (v *visit) takeLoading(sm *sessionManager) *session.Loading {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.loadingOf != sm {
		return nil
	}
	l := v.loading
	v.loading, v.loadingOf = nil, nil
	return l
}

// dropLoading gives up a session that was begun to be loaded and not taken.
func (v *visit) dropLoading() {
	v.mu.Lock()
	l := v.loading
	v.loading, v.loadingOf = nil, nil
	v.mu.Unlock()
	if l != nil {
		l.Drop()
	}
}

// track returns the request's writer as one that reports what is written, and
// wraps w only if that has not been done yet, or somebody else has wrapped it
// since.
func (v *visit) track(w http.ResponseWriter) *writer {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.writer == nil || v.writer.out != w {
		v.writer = newWriter(w)
		v.writer.visit = v
	}
	return v.writer
}
