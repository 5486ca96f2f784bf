package session

import (
	"context"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Store keeps gorilla sessions in Redis. All its methods are safe for concurrent
// use; a *sessions.Session is not, it belongs to one request.
type Store struct {
	cfg      Config
	conn     *roundtrip.Conn
	macs     []*signer // nil: cookies are not signed
	sealers  []sealer  // nil: values are not encrypted
	settings atomic.Pointer[settings]
	changing sync.Mutex // held while settings are replaced

	attributes atomic.Pointer[attributes]       // of the last cookie
	blank      atomic.Pointer[sessions.Session] // a new one, of the last name

	n        counters
	behind   atomic.Int64 // goroutines that finish something after a call returned
	touching sync.Map     // keys of the sessions whose touches are in flight
}

var _ sessions.Store = (*Store)(nil)

// settings are what redisstore's setters may change. They are replaced as a
// whole.
type settings struct {
	options    sessions.Options // what a new session starts with
	redisstore *RedisstoreConfig
	followAge  bool // the default idle time is options.MaxAge
	home       home
}

// New returns a store that keeps sessions in rdb, a *redis.Client or
// *redis.ClusterClient that stays the caller's to close. It dials nothing and is
// cheap. Add hooks to the client, such as those of tracing, before: later ones don't
// see the store's calls. The error lists everything that is wrong with cfg.
func New(rdb redis.UniversalClient, cfg Config) (*Store, error) {
	conn, err := cfg.check(rdb)
	if err != nil {
		return nil, err
	}
	return newStore(conn, rdb, cfg, false), nil
}

func newStore(conn *roundtrip.Conn, rdb redis.UniversalClient, cfg Config, followAge bool) *Store {
	st := &Store{cfg: cfg, conn: conn}
	st.macs = newSigners(cfg.Keys, cfg.SignUnderived)
	for _, k := range cfg.EncryptionKeys {
		st.sealers = append(st.sealers, newSealer(k))
	}
	set := &settings{options: cfg.Cookie.options(), followAge: followAge, home: home{client: rdb, prefix: cfg.Prefix}}
	if !reflect.TypeOf(rdb).Comparable() {
		set.home.client = st
	}
	if cfg.Redisstore != nil {
		rs := cfg.Redisstore.withDefaults()
		set.redisstore = &rs
	}
	st.settings.Store(set)
	return st
}

// String describes the store without its keys: it is what fmt's verbs and slog print.
func (st *Store) String() string { return "session.Store on " + st.cfg.String() }

// GoString is String.
func (st *Store) GoString() string { return st.String() }

// LogValue is String, for slog.
func (st *Store) LogValue() slog.Value { return slog.StringValue(st.String()) }

func (st *Store) prefix() string { return st.settings.Load().home.prefix }
func (st *Store) home() *home    { return &st.settings.Load().home }

// compat returns the settings for redisstore's sessions, or nil.
func (st *Store) compat() *RedisstoreConfig { return st.settings.Load().redisstore }

// Get returns the session of the request: loaded at the first call with a name,
// the same one for every later call with that name and request. It is never nil
// for a valid cookie name. The error is that of New, and the same at each call.
func (st *Store) Get(r *http.Request, name string) (*sessions.Session, error) {
	return sessions.GetRegistry(r).Get(st, name)
}

// New loads the session that the request's cookie called name gives a right to,
// or returns a new one. The session is never nil. The error is nil for a missing,
// forged, unknown or expired cookie: they give a new session with a new id. It
// matches ErrUnavailable if Redis could not be asked; the session is then usable,
// see Loaded.
func (st *Store) New(r *http.Request, name string) (*sessions.Session, error) {
	s, x := st.fresh(name)
	err := st.find(r, s, x)
	x.was = *s.Options
	remember(s, nil)
	return s, err
}

// fresh returns a new session and its state, which is yet to be filed.
func (st *Store) fresh(name string) (*sessions.Session, *state) {
	b := st.newBox(name)
	b.s.IsNew = true
	b.x.home, b.x.name = st.home(), name
	b.opts = st.settings.Load().options
	return &b.s, &b.x
}

// find loads the session into s and x if the request has a right to one.
func (st *Store) find(r *http.Request, s *sessions.Session, x *state) error {
	ctx := r.Context()
	var first token
	var others []token
	seen := 0 // cookies that this store can have sent, of the same value too
	cookieValues(r.Header, x.name, func(value string) bool {
		tok, ok := st.parseToken(x.name, value)
		if !ok {
			st.n.refused.Add(1)
			return true
		}
		switch {
		case first.key == "":
			first = tok
		case tok.key != first.key && !slices.ContainsFunc(others, func(t token) bool { return t.key == tok.key }):
			others = append(others, tok)
		}
		seen++
		return seen < maxCandidates
	})
	if others != nil {
		if first = st.choose(r, x.name, append(others, first)); first.key == "" {
			return nil
		}
	}
	if first.key != "" {
		if found, err := st.load(ctx, s, x, first); found || err != nil {
			return err
		}
	}
	if st.cfg.Legacy != nil {
		st.carryOver(r, s, x)
	}
	return nil
}

// Save stores s and sends its cookie. Unlike Commit it does so even if nothing
// changed: the session's life is prolonged and the cookie sent again. Only what
// changed is written.
//
// Options.MaxAge < 0 deletes the session and its cookie, see also
// Config.ZeroMaxAge. An ID that the app set to "" gives a stored session a new
// id, as Regenerate does.
//
// The error matches ErrSessionGone if the session was deleted since it was
// loaded, ErrUnavailable, ErrTooLarge, ErrUnsupported, ErrCookie, ErrConflict or
// ErrTooManySessions. In all these cases no cookie is sent. With Config.Replicas it
// may match ErrNotReplicated: then s is saved on the master, and the cookie is sent.
// w may be nil: then the cookie is left out.
func (st *Store) Save(r *http.Request, w http.ResponseWriter, s *sessions.Session) error {
	_, err := st.save(w, r, s, saveAlways)
	return err
}

// Commit is what middleware calls before the response's headers are sent. It
// writes what changed and nothing more: an unchanged session costs nothing, an
// empty new one is not stored. The cookie is sent if the session is new, was
// regenerated or deleted, if its Options changed, if it is a persistent one that
// has aged, or if an old key had signed it. wroteCookie reports whether it was. The errors are those of Save.
func (st *Store) Commit(w http.ResponseWriter, r *http.Request, s *sessions.Session) (wroteCookie bool, err error) {
	return st.save(w, r, s, saveChanges)
}

// Changed reports whether Commit may have something to do: it is false only for a
// session of which nothing is to be written and no cookie to be sent. It asks
// nobody.
func (st *Store) Changed(s *sessions.Session) bool {
	x := st.state(s)
	if x == nil {
		return len(s.Values) > 0
	}
	return x.resend || !st.settled(x, s, x.options(s))
}

// NeedsCookie reports whether committing s would have to send a cookie, which is
// impossible once the headers are gone. Changes of an existing session's values
// don't need one.
func (st *Store) NeedsCookie(s *sessions.Session) bool {
	x := st.state(s)
	if x == nil {
		return len(s.Values) > 0
	}
	opts := x.options(s)
	del := st.deletes(opts)
	switch x.saved {
	case absent, destroyed:
		return !del && (len(s.Values) > 0 || x.bind != nil && *x.bind != "")
	case renewed:
		return del
	}
	if del || s.ID == "" && x.saved == stored || x.resend || opts != x.was {
		return true
	}
	_, _, lasts := st.lasts(x, opts) // else a save prolongs the session, and its cookie
	return opts.MaxAge > 0 && x.saved == stored && !lasts && !st.settled(x, s, opts)
}

// options returns the options that a save of s goes by.
func (x *state) options(s *sessions.Session) sessions.Options {
	if s.Options == nil { // an app that set it to nil
		return x.was
	}
	return *s.Options
}

// deletes reports whether a save with these options means to delete.
func (st *Store) deletes(o sessions.Options) bool {
	return o.MaxAge < 0 || o.MaxAge == 0 && st.cfg.ZeroMaxAge == DeleteSession
}

// Close waits until touches that are in flight have ended, which takes no longer
// than Config.Timeout. It does not close the client, which is the caller's. The
// store stays usable. The error is always nil.
func (st *Store) Close() error {
	for st.behind.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// maxBehind bounds the goroutines of background. What is beyond is left to a later
// request: nothing that is done there has to be.
const maxBehind = 256

// background runs f after the call that wants it has returned: the request has
// what it needs and does not wait. It reports whether f will run.
func (st *Store) background(f func()) bool {
	if st.behind.Add(1) > maxBehind {
		st.behind.Add(-1)
		return false
	}
	go func() {
		defer st.behind.Add(-1)
		f()
	}()
	return true
}

// writeContext is for writes: a client that disconnects must not keep its logout
// from happening.
func writeContext(r *http.Request) context.Context {
	if r == nil {
		return context.Background()
	}
	return context.WithoutCancel(r.Context())
}

func now() time.Time { return time.Now() }

// now is the time by the clock of the server that has key: what lives there ends by it.
func (st *Store) now(key string) time.Time {
	t, _, _ := st.conn.ServerTime(key)
	return t
}
