package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Defaults of the fields of [Config] whose zero value means "as usual".
const (
	DefaultPrefix         = "redporch:cache:"
	DefaultJitter         = 0.1
	DefaultNegativeTTL    = 5 * time.Second
	DefaultEarlyRefresh   = 1.0
	DefaultL1Entries      = 10_000
	DefaultL1Weight       = 64 << 20
	DefaultMaxStaleness   = 2 * time.Second
	DefaultTimeout        = 250 * time.Millisecond
	DefaultLoadTimeout    = 5 * time.Second
	DefaultFenceTTL       = 10 * time.Second
	DefaultMaxDirectLoads = 64
	DefaultCompressOver   = 4 << 10
	DefaultMaxValue       = 1 << 20
	DefaultErrorBackoff   = 100 * time.Millisecond
)

// Config says how a [Cache] behaves. Only TTL must be set; every other field's
// zero value is the safe choice.
type Config struct {
	// TTL is how long a loaded value is fresh, at least one millisecond.
	// Required.
	TTL time.Duration

	// Jitter shortens each TTL by a random part of up to this fraction, 0 to 1,
	// so that values loaded together do not expire together. It never lengthens
	// one. Zero means DefaultJitter; negative means none.
	Jitter float64

	// NegativeTTL is how long the answer ErrNotFound of a loader is kept. Zero
	// means DefaultNegativeTTL or TTL, whichever is less; negative means that it
	// is not kept.
	NegativeTTL time.Duration

	// StaleWhileRevalidate is for how long after its TTL a value may still be
	// returned at once while one caller in one process loads it again in the
	// background. Zero means not at all. An invalidated value is never returned.
	StaleWhileRevalidate time.Duration

	// StaleIfError is for how long after its TTL a value may be returned when
	// loading it again fails. Zero means not at all. An invalidated value is
	// never returned.
	StaleIfError time.Duration

	// EarlyRefresh is the beta of XFetch (Vattani, Chierichetti and Lowenstein,
	// "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015): shortly
	// before a value expires one caller in one process loads it again in the
	// background, the earlier the longer loading takes. Zero means
	// DefaultEarlyRefresh, more is earlier; negative means never.
	EarlyRefresh float64

	// NotFound lists errors of the loader, sql.ErrNoRows for instance, that mean what
	// ErrNotFound does: callers get an error that matches both.
	NotFound []error

	// ErrorBackoff is the pause after a failed load of a key in which no other
	// load of that key is tried in this process while a stale value may be
	// returned instead. It doubles with each failure, to 32 times as much. At
	// most a day. Zero means DefaultErrorBackoff; negative means no pause.
	ErrorBackoff time.Duration

	// L1Entries is how many decoded values, and answers that there is none, are kept
	// in this process, in front of Redis. They are shared between callers, so treat them
	// as read-only or set Funcs.Clone. Zero means DefaultL1Entries (unless L1Weight is
	// set); negative means none: then each Get asks Redis.
	L1Entries int

	// L1Weight bounds the values in this process by the sum in bytes of their encoded
	// sizes before compression, their keys, and 256 for each. Zero means
	// DefaultL1Weight, beside L1Entries; with a positive one their number is not
	// bounded unless L1Entries is set as well. What a decoded value takes in memory may be more than its encoded
	// size, by a factor that depends on its type.
	L1Weight int64

	// L1TTL is how long a value may stay in this process without asking Redis,
	// and so how long it outlives a deletion that nobody announces: a DEL by
	// another program, an eviction or a FLUSHALL, all without Tracking. Zero means
	// as long as it is fresh. Invalidations by any Cache of this name end it sooner.
	L1TTL time.Duration

	// MaxStaleness bounds how long a value in this process may outlive an
	// invalidation in another one when the connection that announces them is
	// silently broken, at least 100 milliseconds. Announcements usually take
	// less than a millisecond. Zero means DefaultMaxStaleness.
	MaxStaleness time.Duration

	// Tracking has Redis itself announce every change of this cache's keys
	// (CLIENT TRACKING in broadcast mode, Redis 6 and later, RESP3): changes
	// by redis-cli and other programs, expiry, eviction and FLUSHALL are seen as
	// well. It takes one connection to each master.
	Tracking bool

	// Timeout is how long a call waits for Redis, whatever the client's own timeouts
	// are; of a miss that is read, lease and fill together, and a sixteenth more at
	// most. What was loaded is cached
	// also if the fill comes later; if the lease does, it is loaded once more in the
	// background. A caller who waits for another process' load waits as long again for
	// each look at it, and GetMany for each 1,000 keys. Zero means DefaultTimeout.
	Timeout time.Duration

	// LoadTimeout ends the loader's context, and the wait for a loader that does
	// not heed it. It bounds as well how long a key stays leased by a process
	// that has died. Zero means DefaultLoadTimeout.
	LoadTimeout time.Duration

	// SoftTimeout is how long a caller waits for a load while a value may be
	// returned under StaleIfError; the load goes on. Zero means until
	// LoadTimeout.
	SoftTimeout time.Duration

	// FenceTTL frees keys fenced by a process that died inside Update; a write
	// that takes longer loses its fence. Zero means DefaultFenceTTL.
	FenceTTL time.Duration

	// MaxDirectLoads bounds the loads at the same time in this process while
	// Redis can't be asked. Zero means DefaultMaxDirectLoads.
	MaxDirectLoads int

	// Prefix begins all names in Redis. It must not contain braces, which mark hash
	// slots. Zero means DefaultPrefix.
	Prefix string

	// Codec turns values into bytes and back. Nil means JSON.
	Codec Codec

	// CompressOver is the size in bytes from which encoded values are
	// compressed (S2). Zero means DefaultCompressOver; negative means never.
	CompressOver int

	// MaxValue is the largest encoded value in bytes, before compression, that
	// is cached; a larger one is returned, reported to Hooks.Error and not kept.
	// Zero means DefaultMaxValue.
	MaxValue int

	// SharedTags has all caches of one Prefix that set it share their tags:
	// InvalidateTags of one invalidates the keys of all. In the processes of caches of
	// one name it must be set in all or in none.
	SharedTags bool

	// NoCoalesce sends every command to Redis alone.
	NoCoalesce bool

	// Hooks are told what happens.
	Hooks Hooks

	// OnInvalidate is told of each invalidation, in this process and in others,
	// after it happened. It runs on a goroutine of the cache, one call at a time;
	// when it falls behind by 1,024 events further ones are dropped and counted
	// in Stats.
	OnInvalidate func(Invalidation)
}

// defaultTimeout is DefaultTimeout; longer in this package's tests, as the machine that runs
// the Examples may be busy.
var defaultTimeout = DefaultTimeout

// nameRule keeps names apart from keys: neither ':' nor '#' can occur in one.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// complete checks cfg and fills in defaults.
func (cfg *Config) complete(name string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !nameRule.MatchString(name) {
		bad("name %q has characters that are not allowed; use 1 to 64 letters, digits, '.', '_' or '-'", name)
	}
	if cfg.TTL < time.Millisecond {
		bad("TTL is %v; set how long a value is fresh, at least 1ms", cfg.TTL)
	}
	if cfg.TTL > maxTTL {
		bad("TTL is %v; at most %v", cfg.TTL, maxTTL)
	}
	if cfg.Jitter > 1 || cfg.Jitter != cfg.Jitter {
		bad("Jitter is %v; use a fraction of at most 1, zero for %v, or a negative number for none", cfg.Jitter, DefaultJitter)
	}
	if cfg.EarlyRefresh > 1000 || cfg.EarlyRefresh != cfg.EarlyRefresh {
		bad("EarlyRefresh is %v; use about 1, zero for %v, or a negative number for never", cfg.EarlyRefresh, DefaultEarlyRefresh)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"StaleWhileRevalidate", cfg.StaleWhileRevalidate},
		{"StaleIfError", cfg.StaleIfError},
		{"L1TTL", cfg.L1TTL},
		{"MaxStaleness", cfg.MaxStaleness},
		{"Timeout", cfg.Timeout},
		{"LoadTimeout", cfg.LoadTimeout},
		{"SoftTimeout", cfg.SoftTimeout},
		{"FenceTTL", cfg.FenceTTL},
	} {
		if d.value < 0 || d.value > maxTTL {
			bad("%s is %v; use zero or a duration of at most %v", d.name, d.value, maxTTL)
		}
	}
	if cfg.NegativeTTL > maxTTL {
		bad("NegativeTTL is %v; at most %v", cfg.NegativeTTL, maxTTL)
	}
	if cfg.ErrorBackoff > 24*time.Hour {
		bad("ErrorBackoff is %v; at most 24h", cfg.ErrorBackoff)
	}
	if strings.ContainsAny(cfg.Prefix, "{}") {
		bad("Prefix contains a brace; braces mark hash slots, leave them out")
	}
	if cfg.MaxStaleness > 0 && cfg.MaxStaleness < 100*time.Millisecond {
		bad("MaxStaleness is %v; at least 100ms, or turn the first level off with L1Entries: -1", cfg.MaxStaleness)
	}
	if cfg.FenceTTL > 0 && cfg.FenceTTL < 10*time.Millisecond {
		bad("FenceTTL is %v; at least 10ms", cfg.FenceTTL)
	}
	if cfg.MaxDirectLoads < 0 {
		bad("MaxDirectLoads is %d; use zero for %d", cfg.MaxDirectLoads, DefaultMaxDirectLoads)
	}
	if cfg.L1Weight < 0 {
		bad("L1Weight is %d; use zero for %d", cfg.L1Weight, DefaultL1Weight)
	}
	if cfg.L1Weight > 0 && cfg.L1Entries < 0 {
		bad("L1Weight is %d and L1Entries %d, which means no first level; leave out one", cfg.L1Weight, cfg.L1Entries)
	}
	if cfg.MaxValue < 0 {
		bad("MaxValue is %d; use zero for %d", cfg.MaxValue, DefaultMaxValue)
	}
	if cfg.MaxValue > 512<<20-1024 {
		bad("MaxValue is %d; Redis holds at most 512 MiB", cfg.MaxValue)
	}

	orDefault(&cfg.Jitter, DefaultJitter)
	cfg.Jitter = max(cfg.Jitter, 0)
	orDefault(&cfg.EarlyRefresh, DefaultEarlyRefresh)
	cfg.EarlyRefresh = max(cfg.EarlyRefresh, 0)
	orDefault(&cfg.NegativeTTL, min(DefaultNegativeTTL, max(cfg.TTL, time.Millisecond)))
	orDefault(&cfg.ErrorBackoff, DefaultErrorBackoff)
	orDefault(&cfg.MaxStaleness, DefaultMaxStaleness)
	orDefault(&cfg.Timeout, defaultTimeout)
	orDefault(&cfg.LoadTimeout, DefaultLoadTimeout)
	orDefault(&cfg.SoftTimeout, cfg.LoadTimeout)
	orDefault(&cfg.FenceTTL, DefaultFenceTTL)
	orDefault(&cfg.MaxDirectLoads, DefaultMaxDirectLoads)
	orDefault(&cfg.Prefix, DefaultPrefix)
	orDefault(&cfg.CompressOver, DefaultCompressOver)
	orDefault(&cfg.MaxValue, DefaultMaxValue)
	if cfg.L1Weight == 0 {
		orDefault(&cfg.L1Entries, DefaultL1Entries)
		if cfg.L1Entries > 0 {
			cfg.L1Weight = DefaultL1Weight
		}
	}
	if cfg.L1TTL == 0 {
		cfg.L1TTL = maxTTL
	}
	if cfg.Codec == nil {
		cfg.Codec = JSON
	}
	return errors.Join(errs...)
}

// maxTTL keeps sums of durations and milliseconds far from overflow.
const maxTTL = 10 * 365 * 24 * time.Hour

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// hasL1 reports whether values are kept in this process.
func (cfg *Config) hasL1() bool { return cfg.L1Weight > 0 || cfg.L1Entries > 0 }

// lease is how long a key stays leased: longer than its loader may run and its
// fill may take.
func (cfg *Config) lease() time.Duration {
	return cfg.LoadTimeout + 2*cfg.Timeout + 250*time.Millisecond
}

// keep is how long Redis holds a value that is fresh for d.
func (cfg *Config) keep(d time.Duration) time.Duration {
	return max(d+max(cfg.StaleWhileRevalidate, cfg.StaleIfError), time.Millisecond)
}

// Funcs holds what depends on the types of keys and values. All are optional.
type Funcs[K comparable, V any] struct {
	// LoadMany loads many keys for GetMany. Keys missing from its result are
	// not found. Its error fails all keys of the call, except that a *ManyError fails
	// those it names: the others are taken from the result. It is given at most 1,000
	// keys at a time.
	LoadMany func(ctx context.Context, keys []K) (map[K]V, error)

	// Tags names the groups that a key belongs to, see InvalidateTags. It must
	// give the same answer for a key in every process.
	Tags func(key K) []string

	// TTL is how long a value is fresh, in place of Config.TTL; zero or less means as
	// Config.TTL says. The entries of a key with tags live for an hour more than
	// Config.TTL at most.
	TTL func(value V) time.Duration

	// Version tells how new a value is, see Set.
	Version func(value V) uint64

	// Clone copies a value before it is handed to a caller while others may
	// hold it too. It is never called without one: not for ErrNotFound or another
	// error. If it panics its caller gets a *PanicError.
	Clone func(value V) V
}

func connConfig(cfg *Config) roundtrip.Config {
	return roundtrip.Config{Name: "cacheaside", Timeout: cfg.Timeout, NoCoalesce: cfg.NoCoalesce}
}
