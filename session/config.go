package session

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Defaults of Config's fields.
const (
	DefaultPrefix          = "redporch:session:"
	DefaultIdleTimeout     = 30 * time.Minute
	DefaultAbsoluteTimeout = 8 * time.Hour
	DefaultMaxBytes        = 64 << 10
	DefaultMaxPerUser      = 100

	// maxLife bounds every lifetime, so that no sum of times overflows.
	maxLife = 10 * 365 * 24 * time.Hour

	// maxLabel is how many bytes of a label are kept.
	maxLabel = 200
)

// Config says how a Store behaves. The zero value is usable and safe: cookies
// that are Secure, HttpOnly and SameSite=Lax, sessions that end after 30 idle
// minutes or 8 hours.
type Config struct {
	// Keys sign the cookies with HMAC-SHA-256: the first signs, all verify. Each has 16
	// bytes or more, best 32 random ones. With keys a forged cookie costs no call to Redis.
	// Empty: cookies are not signed; their 256 random bits can't be guessed either way.
	//
	// A key is rotated in two deploys, since servers with the old configuration are still
	// running during each: first with the new key last, so that all can verify it, then
	// with it first. Cookies of the old key are signed anew as their sessions are used, so
	// it can be dropped after the longest lifetime of a session.
	//
	// What signs are keys that are derived from these for this purpose alone (HKDF, RFC
	// 5869). Signatures of the keys themselves, by versions before, are accepted too.
	Keys [][]byte

	// SignUnderived signs with Keys themselves, as versions before did, instead of keys
	// derived from them: for the first of two deploys that update, since servers of a version
	// before take other signatures for forged, and for going back. The second has it not.
	SignUnderived bool

	// SendUnsigned sends cookies without a signature although Keys are set, and accepts
	// them with and without: for the first of three deploys that begin to use Keys, so that
	// the servers without them know all cookies meanwhile, and for going back. The second
	// has AcceptUnsigned, the third neither.
	SendUnsigned bool

	// AcceptUnsigned accepts cookies without a signature as well, for the time
	// after Keys were first configured. New cookies are signed.
	AcceptUnsigned bool

	// EncryptionKeys encrypt the values in Redis with AES-256-GCM: the first
	// encrypts, all decrypt. Each has exactly 32 bytes, random ones. The names of values,
	// the user and the label are not encrypted. What is encrypted for one session opens in
	// no other one; who writes to Redis can put back what the same session held before.
	// Empty: values are stored plainly. Rotate them as Keys.
	EncryptionKeys [][]byte

	// StorePlaintext stores values plainly although EncryptionKeys are set, and reads both:
	// for the first of three deploys that begin to use EncryptionKeys, and for going back.
	// The second has AcceptPlaintext, the third neither. A server without the keys that gives
	// a session a new id makes its encrypted values unreadable for good: on the way back, take
	// the keys out when no session is left that holds one.
	StorePlaintext bool

	// AcceptPlaintext reads values that are not encrypted although EncryptionKeys
	// are set, for the time after they were first configured. Without it somebody
	// who can write to Redis could plant values.
	AcceptPlaintext bool

	// Prefix begins every key in Redis. Empty means DefaultPrefix. It must not
	// contain braces, which mark hash slots.
	Prefix string

	// IdleTimeout is how long a session lives after its last use. Zero means
	// DefaultIdleTimeout, or Cookie.MaxAge if that is longer. A session whose Options.MaxAge is above zero, and is not
	// the store's own Cookie.MaxAge, lives that many seconds instead.
	IdleTimeout time.Duration

	// AbsoluteTimeout is how long a session lives at most, however much it is
	// used and whatever its MaxAge. It counts from the creation, and anew from a
	// Regenerate that binds the session to another user. Zero means
	// DefaultAbsoluteTimeout, or IdleTimeout if that is longer.
	AbsoluteTimeout time.Duration

	// TouchEvery is how much of its idle time a session must have spent before
	// being loaded, or saved with other values, prolongs it: a load that does is
	// followed by a write, and a save that does takes Redis three times as long.
	// Zero means a tenth of the idle time, at most a minute; it must be below
	// IdleTimeout.
	TouchEvery time.Duration

	// Cookie describes the cookies.
	Cookie Cookie

	// ZeroMaxAge is the meaning of Options.MaxAge == 0 at a save: zero is
	// BrowserSession, gorilla's documented one.
	ZeroMaxAge ZeroMaxAge

	// MaxBytes bounds the names and encoded values of one session. A save beyond
	// it fails with ErrTooLarge. Zero means DefaultMaxBytes.
	MaxBytes int

	// DetectConflicts makes a save fail with ErrConflict, and write nothing, if a
	// value it would overwrite or delete was changed since the session was loaded.
	// Otherwise the last writer of a value wins; changes of different values never
	// conflict.
	DetectConflicts bool

	// MaxPerUser is how many sessions may be bound to one user. It is decided where the
	// user's index is written, so that logins at the same time do not pass it. Zero means
	// DefaultMaxPerUser; below zero: no limit.
	MaxPerUser int

	// AtLimit is what happens when MaxPerUser is reached: zero is EndOldest.
	AtLimit LimitPolicy

	// Label returns a short text for a listing of a user's sessions, such as
	// browser and address. It is called when a session is created and when it is
	// bound, and what it returns is cut to 200 bytes. Nil: no label.
	Label func(r *http.Request) string

	// Legacy is asked once for the session of a request that has none here. What
	// it returns is carried over under a new id with the first save, and deleted
	// there. A store that keeps sessions in cookies can't forget them: take Legacy
	// out once its sessions have expired.
	Legacy sessions.Store

	// Redisstore makes the store live together with, or take over from,
	// github.com/rbcervilla/redisstore/v9. Nil: its sessions are unknown.
	Redisstore *RedisstoreConfig

	// Replicas is how many replicas must have acknowledged a save, regenerate,
	// destroy or revoke before it returns, so that a failover to one of them loses
	// none. If fewer did in time, the error matches ErrNotReplicated. The wait,
	// Redis' WAIT on the connection of the write, ends after 40 % of Timeout: raise
	// that for distant replicas. Concurrent requests share a wait on connections of
	// their own, also with NoCoalesce, and a write whose reply was lost is not sent
	// again. With a replica on the same machine, load and save took two to three
	// times as long for a single request and a fifth longer for each of 64
	// (BenchmarkReplicas). Zero, the default, does not wait; at most 16. It can't
	// be used with Redisstore. The Redis user needs +wait.
	Replicas int

	// RoutingProxy says that Redis is reached through a proxy that sends each command to
	// the server that its first key belongs to, such as Envoy or twemproxy. Then no script
	// has keys of different hash tags. The proxy must go by hash tags (Envoy:
	// enable_hashtagging; twemproxy: hash_tag "{}"). middleware.Check finds such a proxy.
	RoutingProxy bool

	// Timeout bounds each exchange with Redis. Zero means 250 ms.
	Timeout time.Duration

	// NoCoalesce sends each call's commands alone instead of together with those
	// of other requests when many are in flight.
	NoCoalesce bool

	// Hooks are told what happens.
	Hooks Hooks

	raise bool // AbsoluteTimeout was zero: a session's own MaxAge raises it
}

// String describes c without its keys, which printing the fields would show. It is
// what fmt's verbs and slog print.
func (c Config) String() string {
	return fmt.Sprintf("session.Config{Keys:%d EncryptionKeys:%d Prefix:%q IdleTimeout:%v AbsoluteTimeout:%v Cookie:%+v MaxBytes:%d MaxPerUser:%d Timeout:%v}",
		len(c.Keys), len(c.EncryptionKeys), c.Prefix, c.IdleTimeout, c.AbsoluteTimeout, c.Cookie, c.MaxBytes, c.MaxPerUser, c.Timeout)
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String, for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Cookie describes the session cookies. The zero value is the safe one: Path=/,
// no Domain, Secure, HttpOnly, SameSite=Lax, and no Max-Age, so that they end with
// the browser's session. It fills in the Options that a new gorilla session
// starts with; an app that replaces a session's Options replaces all of it.
type Cookie struct {
	Path         string        // empty means "/"
	Domain       string        // empty: this host only
	MaxAge       int           // seconds, of the cookie only; 0: until the browser ends
	SameSite     http.SameSite // zero means Lax
	Partitioned  bool          // CHIPS; needs SameSite=None
	InsecureHTTP bool          // leave Secure out, for plain HTTP during development
	Scriptable   bool          // leave HttpOnly out, so that scripts can read the cookie
}

func (c Cookie) options() sessions.Options {
	o := sessions.Options{
		Path: c.Path, Domain: c.Domain, MaxAge: c.MaxAge, SameSite: c.SameSite,
		Secure: !c.InsecureHTTP, HttpOnly: !c.Scriptable, Partitioned: c.Partitioned,
	}
	if o.Path == "" {
		o.Path = "/"
	}
	if o.SameSite == 0 {
		o.SameSite = http.SameSiteLaxMode
	}
	return o
}

// ZeroMaxAge is what Options.MaxAge == 0 means.
type ZeroMaxAge int

const (
	// BrowserSession: the cookie has no Max-Age and ends with the browser's
	// session; in Redis the session has IdleTimeout. It is what gorilla/sessions
	// documents.
	BrowserSession ZeroMaxAge = iota
	// DeleteSession: the session is deleted, as with a negative MaxAge. It is
	// what redisstore does, and the choice of NewRedisStore.
	DeleteSession
)

// LimitPolicy is what happens to a user with too many sessions.
type LimitPolicy int

const (
	// EndOldest ends the sessions that were used the longest ago, once the one that
	// is bound has been saved: a login that fails ends no other.
	EndOldest LimitPolicy = iota
	// RefuseNew makes binding one more fail with ErrTooManySessions.
	RefuseNew
)

// check fills in defaults and reports everything that is wrong.
func (c *Config) check(rdb redis.UniversalClient) (*roundtrip.Conn, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("session: "+format, args...)) }

	conn, err := roundtrip.New(rdb, roundtrip.Config{
		Name: "session", Timeout: c.Timeout, NoCoalesce: c.NoCoalesce, RoutingProxy: c.RoutingProxy, OnCall: onCall(c.Hooks.Call),
	})
	if err != nil {
		bad("%w", err)
	}
	for i, k := range c.Keys {
		if len(k) < 16 {
			bad("Keys[%d] has %d bytes; use 16 or more, best 32 random ones", i, len(k))
		} else if why := weakKey(k); why != "" {
			bad("Keys[%d] %s", i, why)
		}
	}
	for i, k := range c.EncryptionKeys {
		if len(k) != 32 {
			bad("EncryptionKeys[%d] has %d bytes; AES-256 needs 32 random ones", i, len(k))
		} else if why := weakKey(k); why != "" {
			bad("EncryptionKeys[%d] %s", i, why)
		}
	}
	if c.SignUnderived && len(c.Keys) == 0 {
		bad("SignUnderived without Keys; it says how Keys sign, leave it out")
	}
	if c.SendUnsigned && len(c.Keys) == 0 {
		bad("SendUnsigned without Keys; it is for servers that verify signatures already, set Keys")
	}
	if c.StorePlaintext && len(c.EncryptionKeys) == 0 {
		bad("StorePlaintext without EncryptionKeys; it is for servers that decrypt already, set EncryptionKeys")
	}
	c.AcceptUnsigned = c.AcceptUnsigned || c.SendUnsigned
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if strings.ContainsAny(c.Prefix, "{}") {
		bad("Prefix contains a brace; braces mark hash slots, leave them out")
	}
	if len(c.Prefix) > 128 {
		bad("Prefix has %d bytes; use 128 or fewer", len(c.Prefix))
	}

	life := func(name string, d *time.Duration, def time.Duration) {
		switch {
		case *d == 0:
			*d = def
		case *d < time.Second:
			bad("%s is %v; use a second or more, or zero for %v", name, *d, def)
		case *d > maxLife:
			bad("%s is %v; use ten years or less", name, *d)
		}
	}
	c.raise = c.AbsoluteTimeout == 0
	life("IdleTimeout", &c.IdleTimeout, max(DefaultIdleTimeout, min(seconds(c.Cookie.MaxAge), maxLife)))
	life("AbsoluteTimeout", &c.AbsoluteTimeout, max(DefaultAbsoluteTimeout, c.IdleTimeout))
	if c.IdleTimeout > c.AbsoluteTimeout {
		bad("IdleTimeout %v is longer than AbsoluteTimeout %v; it could never be reached", c.IdleTimeout, c.AbsoluteTimeout)
	}
	switch {
	case c.TouchEvery < 0:
		bad("TouchEvery is %v; use zero for a tenth of the idle time", c.TouchEvery)
	case c.TouchEvery >= c.IdleTimeout:
		bad("TouchEvery %v is not below IdleTimeout %v; sessions in use would expire", c.TouchEvery, c.IdleTimeout)
	}
	if seconds(c.Cookie.MaxAge) > c.AbsoluteTimeout {
		bad("Cookie.MaxAge %v is longer than AbsoluteTimeout %v; leave AbsoluteTimeout zero or raise it", seconds(c.Cookie.MaxAge), c.AbsoluteTimeout)
	}
	if c.Cookie.MaxAge < 0 {
		bad("Cookie.MaxAge is %d; use zero for a cookie that ends with the browser's session", c.Cookie.MaxAge)
	}
	opts := c.Cookie.options()
	if err := checkCookie("", "", &opts); err != nil {
		bad("Cookie: %w", err)
	}
	if c.ZeroMaxAge != BrowserSession && c.ZeroMaxAge != DeleteSession {
		bad("ZeroMaxAge is %d; use BrowserSession or DeleteSession", c.ZeroMaxAge)
	}
	if c.ZeroMaxAge == DeleteSession && c.Cookie.MaxAge == 0 && c.Redisstore == nil {
		bad("ZeroMaxAge is DeleteSession and Cookie.MaxAge is zero; every save would delete, set Cookie.MaxAge")
	}
	switch {
	case c.MaxBytes < 0:
		bad("MaxBytes is %d; use zero for %d", c.MaxBytes, DefaultMaxBytes)
	case c.MaxBytes == 0:
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxPerUser == 0 {
		c.MaxPerUser = DefaultMaxPerUser
	}
	if c.AtLimit != EndOldest && c.AtLimit != RefuseNew {
		bad("AtLimit is %d; use EndOldest or RefuseNew", c.AtLimit)
	}
	switch {
	case c.Replicas < 0:
		bad("Replicas is %d; use zero not to wait for any", c.Replicas)
	case c.Replicas > maxReplicas:
		bad("Replicas is %d; use %d or fewer, as many as each master has", c.Replicas, maxReplicas)
	case c.Replicas > 0 && c.Redisstore != nil:
		bad("Replicas can't be used with Redisstore; leave Redisstore out once its sessions have expired")
	}
	if c.Redisstore != nil && len(c.EncryptionKeys) > 0 && c.Redisstore.sideBySide(time.Now()) {
		bad("EncryptionKeys can't be used while sessions are kept in redisstore's layout; set Redisstore.Until to a past time")
	}
	return conn, errors.Join(errs...)
}
