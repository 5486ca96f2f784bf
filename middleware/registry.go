package middleware

import (
	"context"
	"net/http"

	"github.com/gorilla/sessions"
)

// Handlers that call store.Get, or sessions.Save, mean the same session as those
// that call Session. gorilla finds a request's sessions by a registry in its
// context, which costs a copy of the request, two maps and a context. A visit
// makes one when somebody asks for it, which few do.

// registryKey is the key under which gorilla keeps its registry. It is not
// exported, so it is overheard; if there were none, each request got a registry.
var registryKey = func() any {
	ear := &listener{Context: context.Background()}
	sessions.GetRegistry(new(http.Request).WithContext(ear))
	return ear.heard
}()

type listener struct {
	context.Context
	heard any
}

func (l *listener) Value(key any) any {
	l.heard = key
	return nil
}

// share returns the session of h for a handler that has r: that of the registry if
// r has one, or what load returns.
func (v *visit) share(h *holder, r *http.Request, load func() loaded) (*sessions.Session, error) {
	if registryKey == nil || r.Context().Value(registryKey) != nil {
		reg := sessions.GetRegistry(r)
		if h.eager != nil || h.loading != nil {
			_, _ = reg.Get(handover{load()}, h.sm.name)
		}
		return reg.Get(h.sm.store, h.sm.name)
	}
	l := load()
	v.mu.Lock()
	defer v.mu.Unlock()
	h.shared = l
	if v.registry != nil { // somebody asked meanwhile
		h.register(v.registry)
	}
	return l.s, l.err
}

// gorilla returns the registry that holds the sessions which were loaded without
// one, or nil if there are none.
func (v *visit) gorilla() *sessions.Registry {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.registry != nil {
		return v.registry
	}
	for _, h := range v.holders {
		if h.shared.s == nil {
			continue
		}
		if v.registry == nil {
			r := h.outer.WithContext(v.Context) // not v, which would be asked again
			v.registry = sessions.GetRegistry(r)
			*r = *r.WithContext(h.outer.Context())
		}
		h.register(v.registry)
	}
	return v.registry
}

// register enters h's session. A registry only takes in what a store makes.
func (h *holder) register(reg *sessions.Registry) {
	_, _ = reg.Get(handover{h.shared}, h.sm.name)
	_, _ = reg.Get(h.sm.store, h.sm.name)
}

// handover is a store that hands over what was loaded.
type handover struct{ loaded }

func (l handover) Get(*http.Request, string) (*sessions.Session, error)           { return l.s, l.err }
func (l handover) New(*http.Request, string) (*sessions.Session, error)           { return l.s, l.err }
func (handover) Save(*http.Request, http.ResponseWriter, *sessions.Session) error { return nil }
