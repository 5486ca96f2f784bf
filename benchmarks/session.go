package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/gorilla/sessions"
	"github.com/rbcervilla/redisstore/v9"
)

// The three values of a session, and the name of its cookie.
const (
	cookieName = "sid"
	userName   = "Ada Lovelace"
)

func userOf(i int) int { return 4200 + i }

var errWrongSession = errors.New("the session does not hold what was stored")

var sessionLoad = op{
	name:  "session-load",
	title: "session: from the cookie to three values",
	subjects: []subject{
		{"redporch", func(h *harness) (body, error) { return gorillaLoad(redporchSessions(h)) }},
		{"redisstore", func(h *harness) (body, error) { return gorillaLoad(redisstoreSessions(h)) }},
		{"boj", func(h *harness) (body, error) { return gorillaLoad(bojSessions(h)) }},
		{"scs", scsLoad},
		{"raw-direct", rawDirect(getCommand)},
		{"raw-autopipeline", rawAutopipeline(getCommand)},
		{"raw-rueidis", rawRueidisGet},
	},
}

var sessionSave = op{
	name:  "session-save",
	title: "session: load, change one value, save",
	subjects: []subject{
		{"redporch", func(h *harness) (body, error) { return gorillaSave(redporchSessions(h)) }},
		{"redisstore", func(h *harness) (body, error) { return gorillaSave(redisstoreSessions(h)) }},
		{"boj", func(h *harness) (body, error) { return gorillaSave(bojSessions(h)) }},
		{"scs", scsSave},
	},
}

var sessionHandler = op{
	name:  "session-handler",
	title: "session: a whole handler that changes one value",
	full:  true,
	subjects: []subject{
		{"redporch", redporchHandler},
		{"redisstore", func(h *harness) (body, error) { return gorillaHandler(redisstoreSessions(h)) }},
		{"boj", func(h *harness) (body, error) { return gorillaHandler(bojSessions(h)) }},
		{"scs", scsHandler},
	},
}

// visitors are those whose sessions are stored. Only what differs from one to another is
// kept, since thousands of requests would fill the caches of the cores, and the heap.
type visitors [population]visitor

type visitor struct {
	cookie [1]string // of the Cookie header
	addr   string
}

func (v *visitors) add(i int, cookie string) (err error) {
	v[i], err = newVisitor(i, cookie)
	return err
}

// newVisitor returns the visitor who got a Set-Cookie line.
func newVisitor(i int, cookie string) (v visitor, err error) {
	name, _, _ := strings.Cut(cookie, ";")
	if name == "" {
		return v, errors.New("no cookie was set")
	}
	return visitor{[1]string{name}, fmt.Sprintf("10.0.%d.%d:40000", i/256%256, i%256)}, nil
}

// visit is what all requests of visitors have in common.
var visit, _ = http.NewRequest(http.MethodGet, "https://porch.example/profile", nil)

// request returns the visitor's request, as a browser would send it. It is the caller's
// until its next call.
func (v *visitor) request(c *caller) *http.Request {
	c.header["Cookie"] = v.cookie[:]
	c.r = *visit
	c.r.Header, c.r.RemoteAddr = c.header, v.addr
	return &c.r
}

// next returns a request of some visitor, and which one's.
func (v *visitors) next(c *caller) (r *http.Request, i int) {
	i = c.pick(population)
	return v[i].request(c), i
}

func redisstoreSessions(h *harness) (sessions.Store, error) {
	return redisstore.NewRedisStore(context.Background(), h.goRedis())
}

// bojSessions is NewRediStore(10, …) of its README, with the same pool options,
// but dialled by the harness.
func bojSessions(h *harness) (sessions.Store, error) {
	store, err := redistore.NewRediStoreWithPool(&redigo.Pool{
		MaxIdle:     10,
		IdleTimeout: 240 * time.Second,
		TestOnBorrow: func(c redigo.Conn, _ time.Time) error {
			_, err := c.Do("PING")
			return err
		},
		Dial: func() (redigo.Conn, error) {
			return redigo.Dial("tcp", h.srv.addr, redigo.DialNetDial(func(network, addr string) (net.Conn, error) {
				return h.wire.dial(context.Background(), network, addr)
			}))
		},
	}, []byte("benchmarks-secret-key-32-bytes.."))
	if err != nil {
		return nil, err
	}
	h.later(func() { store.Close() })
	return store, nil
}

// seed stores a session for each visitor.
func seed(store sessions.Store) (*visitors, error) {
	v := new(visitors)
	w := &nullWriter{h: make(http.Header)}
	for i := range v {
		r, err := http.NewRequest(http.MethodGet, "https://porch.example/login", nil)
		if err != nil {
			return nil, err
		}
		s, err := store.Get(r, cookieName)
		if err != nil {
			return nil, err
		}
		s.Values["user"], s.Values["name"], s.Values["admin"] = userOf(i), userName, i%2 == 0
		clear(w.h)
		if err := s.Save(r, w); err != nil {
			return nil, err
		}
		if err := v.add(i, w.h.Get("Set-Cookie")); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// gorillaGet loads a session and reads its three values.
func gorillaGet(store sessions.Store, r *http.Request, i int) (*sessions.Session, error) {
	s, err := store.Get(r, cookieName)
	if err != nil {
		return nil, err
	}
	user, _ := s.Values["user"].(int)
	name, _ := s.Values["name"].(string)
	admin, ok := s.Values["admin"].(bool)
	if s.IsNew || user != userOf(i) || name != userName || admin != (i%2 == 0) || !ok {
		return nil, errWrongSession
	}
	return s, nil
}

func gorillaLoad(store sessions.Store, err error) (body, error) {
	if err != nil {
		return body{}, err
	}
	v, err := seed(store)
	return body{func(c *caller) error {
		r, i := v.next(c)
		_, err := gorillaGet(store, r, i)
		return err
	}}, err
}

func gorillaSave(store sessions.Store, err error) (body, error) {
	if err != nil {
		return body{}, err
	}
	v, err := seed(store)
	return body{func(c *caller) error {
		r, i := v.next(c)
		s, err := gorillaGet(store, r, i)
		if err != nil {
			return err
		}
		s.Values["seen"] = c.n
		return s.Save(r, c.answer())
	}}, err
}

// gorillaHandler is how applications use a gorilla store: they load and save by
// hand.
func gorillaHandler(store sessions.Store, err error) (body, error) {
	if err != nil {
		return body{}, err
	}
	v, err := seed(store)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := store.Get(r, cookieName)
		if err != nil {
			http.Error(w, "session", http.StatusInternalServerError)
			return
		}
		greet(w, s.Values, func() error { return s.Save(r, w) })
	})
	return body{handled(v, handler)}, err
}

// greet is the handler that all gorilla subjects share.
func greet(w http.ResponseWriter, values map[any]any, save func() error) {
	user, _ := values["user"].(int)
	name, _ := values["name"].(string)
	admin, ok := values["admin"].(bool)
	n, _ := values["seen"].(int)
	values["seen"] = n + 1
	if err := save(); err != nil || !ok {
		http.Error(w, "session", http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "Hello %s (%d, %t)\n", name, user, admin)
}

// handled sends a visitor's request through a handler.
func handled(v *visitors, handler http.Handler) func(c *caller) error {
	return func(c *caller) error {
		r, _ := v.next(c)
		w := c.answer()
		handler.ServeHTTP(w, r)
		if w.status != http.StatusOK || w.bytes == 0 {
			return fmt.Errorf("status %d, %d bytes", w.status, w.bytes)
		}
		return nil
	}
}

// scsManager is the setup of goredisstore's README.
func scsManager(h *harness) (*scs.SessionManager, *visitors, error) {
	m := scs.New()
	m.Store = goredisstore.New(h.goRedis())
	m.Cookie.Name = cookieName
	v := new(visitors)
	for i := range v {
		ctx, err := m.Load(context.Background(), "")
		if err != nil {
			return nil, nil, err
		}
		m.Put(ctx, "user", userOf(i))
		m.Put(ctx, "name", userName)
		m.Put(ctx, "admin", i%2 == 0)
		token, _, err := m.Commit(ctx)
		if err != nil {
			return nil, nil, err
		}
		if err := v.add(i, cookieName+"="+token); err != nil {
			return nil, nil, err
		}
	}
	return m, v, nil
}

func scsGet(m *scs.SessionManager, r *http.Request, i int) (context.Context, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil, err
	}
	ctx, err := m.Load(r.Context(), cookie.Value)
	if err != nil {
		return nil, err
	}
	if m.GetInt(ctx, "user") != userOf(i) || m.GetString(ctx, "name") != userName || m.GetBool(ctx, "admin") != (i%2 == 0) {
		return nil, errWrongSession
	}
	return ctx, nil
}

func scsLoad(h *harness) (body, error) {
	m, v, err := scsManager(h)
	return body{func(c *caller) error {
		r, i := v.next(c)
		_, err := scsGet(m, r, i)
		return err
	}}, err
}

func scsSave(h *harness) (body, error) {
	m, v, err := scsManager(h)
	return body{func(c *caller) error {
		r, i := v.next(c)
		ctx, err := scsGet(m, r, i)
		if err != nil {
			return err
		}
		m.Put(ctx, "seen", c.n)
		token, expiry, err := m.Commit(ctx)
		if err != nil {
			return err
		}
		m.WriteSessionCookie(ctx, c.answer(), token, expiry)
		return nil
	}}, err
}

func scsHandler(h *harness) (body, error) {
	m, v, err := scsManager(h)
	if err != nil {
		return body{}, err
	}
	handler := m.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		m.Put(ctx, "seen", m.GetInt(ctx, "seen")+1)
		fmt.Fprintf(w, "Hello %s (%d, %t)\n", m.GetString(ctx, "name"), m.GetInt(ctx, "user"), m.GetBool(ctx, "admin"))
	}))
	return body{handled(v, handler)}, nil
}
