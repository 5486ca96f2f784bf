package ratelimit

import (
	"fmt"
	"time"

	"github.com/redporch/redporch/internal/roundtrip"
)

// ErrUnavailable says that Redis could not be asked. It is found by errors.Is in
// [Result.Err], and in the errors of calls that no failure policy can decide, such
// as Reset. It is the same value in all packages of this module.
var ErrUnavailable = roundtrip.ErrUnavailable

// Defaults of Config.
const (
	DefaultPrefix          = "redporch:limit:"
	DefaultTimeout         = 100 * time.Millisecond
	DefaultDenialCacheSize = 16384
	DefaultMaxStale        = time.Second
	DefaultShare           = 0.25
	DefaultLocalFor        = 30 * time.Second
	DefaultLocalKeys       = 65536
)

// FailurePolicy says what to decide while Redis can't be asked.
type FailurePolicy uint8

const (
	// FailDefault stands for Config.OnUnavailable in a Policy, and for Local there.
	FailDefault FailurePolicy = iota
	// FailOpen admits, uncounted. It denies what comes with [ErrOverloaded], which is a
	// burst in this process and not a Redis that is away.
	FailOpen
	// FailClosed denies.
	FailClosed
	// Local decides by the same algorithm in this process, with a share of the
	// limit, see Config.Share. What it admitted is remembered until it expires, so that
	// a Redis that comes and goes does not renew the share; Redis is not told of it.
	Local
	// LocalThenClosed is Local for Config.LocalFor after Redis went away, and
	// FailClosed from then on.
	LocalThenClosed
)

// Config tells a Limiter how to behave. The zero value is usable.
type Config struct {
	// Prefix begins all keys in Redis. Empty means DefaultPrefix. It must not
	// contain braces, which would decide the cluster slot.
	Prefix string

	// Secret keys the HMAC-SHA-256 by which subjects become keys in Redis, so that
	// a dump of Redis tells nothing about them. At least 16 bytes. Empty: plain
	// SHA-256, which hides nothing that can be guessed, such as an IP address.
	Secret []byte

	// PlainKeys keeps subjects readable in Redis, for debugging: all bytes but
	// letters, digits and -_.: are written as %XX.
	PlainKeys bool

	// Timeout bounds each call from entry to return, beside the context. Zero
	// means DefaultTimeout, negative is an error.
	Timeout time.Duration

	// NoCoalesce sends every call alone, in a script run of its own.
	NoCoalesce bool

	// RoutingProxy says that Redis is reached through a proxy that sends each command to
	// the server that its first key belongs to, such as Envoy or twemproxy. Then no script
	// has keys of different hash tags. The proxy must go by hash tags (Envoy:
	// enable_hashtagging; twemproxy: hash_tag "{}"). middleware.Check finds such a proxy.
	RoutingProxy bool

	// RefundAbandoned gives back the units of a call whose context ended while it
	// was under way and which turned out to be admitted. Otherwise they stay
	// taken.
	RefundAbandoned bool

	// NoDenialCache asks Redis also about calls that an earlier denial proves to
	// be denied.
	NoDenialCache bool
	// DenialCacheSize bounds the denials kept in process, which take up to 1 kB and
	// 300 bytes a policy each; keys of more than 1 kB are not kept. Zero means
	// DefaultDenialCacheSize. The value is rounded up to a power of two; at most
	// 2^24.
	DenialCacheSize int
	// MaxStale bounds how long a denial is believed without asking Redis, and so
	// how late a Reset, Unban, Refund or raised limit of another process is
	// noticed. Zero means DefaultMaxStale, negative means no bound: use that if no
	// other process gives back anything.
	MaxStale time.Duration

	// OnUnavailable is what policies decide that don't say themselves while Redis
	// can't be asked. Zero means Local.
	OnUnavailable FailurePolicy
	// Share is the part of each limit that Local policies admit in this process,
	// over 0 to 1; 1/n for n processes. At least one unit is admitted. Zero means
	// DefaultShare.
	Share float64
	// LocalFor is how long LocalThenClosed admits by itself after Redis went away.
	// Zero means DefaultLocalFor, negative is an error.
	LocalFor time.Duration
	// LocalKeys bounds the keys that Local policies remember, as digests. When full,
	// the keys not seen for longest make room, and so they do when all take more than
	// 1 kB a key: 64 MiB by default. Zero means DefaultLocalKeys.
	LocalKeys int

	// Hooks are told what happens.
	Hooks Hooks
}

// check fills in defaults and returns everything that is wrong.
func (c *Config) check() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("ratelimit: "+format, args...)) }
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	for _, b := range []byte(c.Prefix) {
		if b == '{' || b == '}' {
			bad("Prefix must not contain braces, they would decide the cluster slot")
			break
		}
	}
	if n := len(c.Secret); n > 0 && n < 16 {
		bad("Secret has %d bytes; use 16 or more random bytes, or none", n)
	}
	if len(c.Secret) > 0 && c.PlainKeys {
		bad("PlainKeys leaves Secret unused; set one of them")
	}
	if c.Timeout < 0 {
		bad("Timeout %v is negative; use zero for %v", c.Timeout, DefaultTimeout)
	} else if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.DenialCacheSize < 0 || c.DenialCacheSize > 1<<24 {
		bad("DenialCacheSize %d is outside 0 to 2^24; use NoDenialCache to turn it off", c.DenialCacheSize)
	} else if c.DenialCacheSize == 0 {
		c.DenialCacheSize = DefaultDenialCacheSize
	}
	if c.MaxStale == 0 {
		c.MaxStale = DefaultMaxStale
	}
	if c.OnUnavailable > LocalThenClosed {
		bad("OnUnavailable %d is unknown", c.OnUnavailable)
	} else if c.OnUnavailable == FailDefault {
		c.OnUnavailable = Local
	}
	if !(c.Share >= 0 && c.Share <= 1) {
		bad("Share %v is outside 0 to 1", c.Share)
	} else if c.Share == 0 {
		c.Share = DefaultShare
	}
	if c.LocalFor < 0 {
		bad("LocalFor %v is negative; use zero for %v", c.LocalFor, DefaultLocalFor)
	} else if c.LocalFor == 0 {
		c.LocalFor = DefaultLocalFor
	}
	if c.LocalKeys < 0 {
		bad("LocalKeys %d is negative; use zero for %d", c.LocalKeys, DefaultLocalKeys)
	} else if c.LocalKeys == 0 {
		c.LocalKeys = DefaultLocalKeys
	}
	return errs
}
