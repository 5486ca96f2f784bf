package session

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/sessions"
	"github.com/rbcervilla/redisstore/v9"
	"github.com/redis/go-redis/v9"
)

// RedisStore is the name that code written for redisstore v9 knows a store by.
type RedisStore = Store

// RedisstoreConfig tells a Store about sessions of
// github.com/rbcervilla/redisstore/v9.
//
// Until Until, sessions are kept as redisstore keeps them, so that servers with
// the old and the new library work on the same ones and going back loses none.
// Saves then compare and merge instead of overwriting, deleted sessions stay
// deleted, and cookies of new sessions hold a random part and a check that binds
// it to the session's name. What needs a field of its own is not possible in this
// layout: Bind, sliding expiry and encryption; and the cookie's value is part of
// the key in Redis, as it always was.
//
// From Until on, each such session moves to a hash with its next save, under the
// same cookie.
type RedisstoreConfig struct {
	// KeyPrefix begins redisstore's keys. Empty means its default, "session:".
	KeyPrefix string

	// Serializer reads and writes redisstore's values. Nil means
	// redisstore.GobSerializer.
	Serializer redisstore.SessionSerializer

	// KeyGen makes the ids of new sessions, of 16 bytes or more. Nil is best: this
	// package makes them. An id that is in use is refused with ErrConflict. With a
	// KeyGen, any cookie value may be an id of the past; without, only what
	// redisstore's own generator makes.
	KeyGen redisstore.KeyGenFunc

	// Names are the sessions, by cookie name, that redisstore kept. An id of
	// redisstore opens any of them, since it is not bound to a name. Empty: all.
	Names []string

	// Until is when redisstore's layout ends: when no server uses the old library
	// any more and there is no way back. Zero: never.
	Until time.Time
}

const redisstorePrefix = "session:"

func (c RedisstoreConfig) withDefaults() RedisstoreConfig {
	if c.KeyPrefix == "" {
		c.KeyPrefix = redisstorePrefix
	}
	if c.Serializer == nil {
		c.Serializer = redisstore.GobSerializer{}
	}
	return c
}

// sideBySide reports whether redisstore's layout is still written.
func (c *RedisstoreConfig) sideBySide(at time.Time) bool {
	return c.Until.IsZero() || at.Before(c.Until)
}

// adopts reports whether ids of redisstore are accepted for a session.
func (st *Store) adopts(name string) bool {
	c := st.compat()
	return c != nil && (len(c.Names) == 0 || slices.Contains(c.Names, name))
}

// redisstoreID reports whether redisstore's own generator could have made id: 64
// bytes in base32 without padding.
func redisstoreID(id string) bool {
	if len(id) != 103 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// NewRedisStore is a drop-in for the function of that name in redisstore v9:
// changing the import is all an app has to do. Sessions stay where they are and
// as they are, see RedisstoreConfig, so that servers can be updated one by one.
//
// The defaults are redisstore's: Path=/, a MaxAge of 30 days that is the life of
// cookie and session alike and where zero deletes, keys that begin with
// "session:", gob. Different is that cookies are HttpOnly and SameSite=Lax unless
// Options says otherwise, and that a session's ID is the public id, see ID, and
// not the cookie's value. Nothing is sent to Redis, so ctx is not used and the
// error is non-nil only for a client that can't be used.
func NewRedisStore(ctx context.Context, client redis.UniversalClient) (*RedisStore, error) {
	cfg := Config{
		IdleTimeout:     30 * 24 * time.Hour,
		AbsoluteTimeout: maxCookieAge * time.Second,
		Cookie:          Cookie{MaxAge: 30 * 24 * 60 * 60, InsecureHTTP: true},
		ZeroMaxAge:      DeleteSession,
		MaxBytes:        1 << 20,
		Redisstore:      &RedisstoreConfig{},
	}
	conn, err := cfg.check(client)
	if err != nil {
		return nil, err
	}
	return newStore(conn, client, cfg, true), nil
}

// change replaces the settings.
func (st *Store) change(f func(*settings)) {
	st.changing.Lock()
	defer st.changing.Unlock()
	set := *st.settings.Load()
	if set.redisstore != nil {
		rs := *set.redisstore
		set.redisstore = &rs
	}
	f(&set)
	st.settings.Store(&set)
}

// Options replaces the options that sessions start with from now on. It is there
// for code written for redisstore and gin; [Config.Cookie] is the better place. It
// is safe for concurrent use.
//
// Since redisstore takes MaxAge for the session's life as well, a store of
// NewRedisStore does so too, and one with MaxAge 0 would delete at every save: it
// keeps the MaxAge it has.
func (st *Store) Options(opts sessions.Options) {
	st.change(func(set *settings) {
		if opts.MaxAge == 0 && st.cfg.ZeroMaxAge == DeleteSession {
			opts.MaxAge = set.options.MaxAge
		}
		set.options = opts
	})
}

// KeyPrefix sets what redisstore's keys begin with. Those of a store made by
// NewRedisStore begin with "redporch:" and that; those of other stores with
// [Config.Prefix]. Without [Config.Redisstore] it does nothing.
func (st *Store) KeyPrefix(prefix string) {
	st.change(func(set *settings) {
		if set.redisstore == nil {
			return
		}
		set.redisstore.KeyPrefix = prefix
		if set.followAge { // braces mark hash slots
			set.home.prefix = "redporch:" + strings.NewReplacer("{", "(", "}", ")").Replace(prefix)
		}
	})
}

// KeyGen sets [RedisstoreConfig.KeyGen]. Without [Config.Redisstore] it does nothing.
func (st *Store) KeyGen(f redisstore.KeyGenFunc) {
	st.change(func(set *settings) {
		if set.redisstore != nil {
			set.redisstore.KeyGen = f
		}
	})
}

// Serializer sets [RedisstoreConfig.Serializer]; nil is ignored. Without
// [Config.Redisstore] it does nothing.
func (st *Store) Serializer(ss redisstore.SessionSerializer) {
	st.change(func(set *settings) {
		if set.redisstore != nil && ss != nil {
			set.redisstore.Serializer = ss
		}
	})
}

// KeepLayoutUntil sets [RedisstoreConfig.Until]. Without [Config.Redisstore] it does
// nothing.
func (st *Store) KeepLayoutUntil(t time.Time) {
	st.change(func(set *settings) {
		if set.redisstore != nil {
			set.redisstore.Until = t
		}
	})
}

var _ interface {
	Get(*http.Request, string) (*sessions.Session, error)
	New(*http.Request, string) (*sessions.Session, error)
	Save(*http.Request, http.ResponseWriter, *sessions.Session) error
	Options(sessions.Options)
	KeyPrefix(string)
	KeyGen(redisstore.KeyGenFunc)
	Serializer(redisstore.SessionSerializer)
	Close() error
} = (*redisstore.RedisStore)(nil)

var _ interface {
	Get(*http.Request, string) (*sessions.Session, error)
	New(*http.Request, string) (*sessions.Session, error)
	Save(*http.Request, http.ResponseWriter, *sessions.Session) error
	Options(sessions.Options)
	KeyPrefix(string)
	KeyGen(redisstore.KeyGenFunc)
	Serializer(redisstore.SessionSerializer)
	Close() error
} = (*RedisStore)(nil)
