package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// algorithm is the letter by which scripts and state keys tell policies apart.
type algorithm byte

const (
	fixedWindow   algorithm = 'f'
	slidingLog    algorithm = 'l'
	slidingWindow algorithm = 'c'
	tokenBucket   algorithm = 'b'
	concurrency   algorithm = 'n'
)

// Bounds of what a policy may ask for. All arithmetic is done in integers below
// 2^53, which Lua's numbers hold exactly.
const (
	maxExact  = 1<<53 - 1
	maxUnits  = 1_000_000_000_000_000 // limit, rate, burst
	maxLeases = 10_000
	minWindow = time.Millisecond
	maxWindow = 10 * 366 * 24 * time.Hour
)

// Values of Policy.offset that are no offset.
const (
	anchored = -1
	phased   = -2
)

// Policy is one limit: an algorithm with its numbers. Make it with FixedWindow,
// SlidingLog, SlidingWindow, TokenBucket or Concurrency; what is wrong with it is
// reported by New. It is a value: its methods return changed copies.
type Policy struct {
	name   string
	algo   algorithm
	limit  int64 // the rate of a token bucket
	window time.Duration
	burst  int64 // token bucket only
	offset int64 // fixed window only: microseconds, anchored or phased
	shadow bool
	down   FailurePolicy
}

// FixedWindow admits limit units in each window. The window starts with the
// first unit, so windows of different keys end at different times; see Aligned
// and Phased for the other ways. Up to twice the limit may pass around the end of
// a window. It is the cheapest algorithm: one small string a key.
//
// limit is 1 to 10^15, window a whole number of microseconds from 1 ms to 10
// years.
func FixedWindow(name string, limit int64, window time.Duration) Policy {
	return Policy{name: name, algo: fixedWindow, limit: limit, window: window, offset: anchored}
}

// SlidingLog admits limit units in any span of length window, wherever it
// begins: each unit is given back exactly one window after it was taken. It keeps
// one entry of a sorted set for each admitted call, however many units it took.
//
// limit is 1 to 10^15, window a whole number of microseconds from 1 ms to 10
// years.
func SlidingLog(name string, limit int64, window time.Duration) Policy {
	return Policy{name: name, algo: slidingLog, limit: limit, window: window}
}

// SlidingWindow approximates SlidingLog with two counters: the units of the
// aligned window before count in proportion to how much of it the sliding window
// still covers. It costs as little as FixedWindow and admits no burst at window
// ends.
//
// limit is 1 to 10^15, window a whole number of microseconds from 1 ms to 10
// years; limits beyond 10^9 may need a window of whole milliseconds or seconds.
func SlidingWindow(name string, limit int64, window time.Duration) Policy {
	return Policy{name: name, algo: slidingWindow, limit: limit, window: window}
}

// TokenBucket admits rate units per period on average and burst units at once: a
// bucket that holds burst tokens and gains rate of them per period, evenly. Two
// an hour, saved up to ten: TokenBucket(name, 2, time.Hour, 10).
//
// rate and burst are 1 to 10^15, per a whole number of microseconds from 1 ms to
// 10 years. An empty bucket must fill within 292 years, and gain no more than its burst
// in a microsecond. New refuses what can't be counted in integers below 2^53.
func TokenBucket(name string, rate int64, per time.Duration, burst int64) Policy {
	return Policy{name: name, algo: tokenBucket, limit: rate, window: per, burst: burst}
}

// Concurrency admits calls while fewer than n units are held. A unit taken by
// Reserve is held until Commit or Cancel, and no longer than lease, so that a
// process that dies gives its units back; Renew prolongs. A unit taken by Allow
// is held for the whole lease.
//
// n is 1 to 10,000, lease a whole number of microseconds from 1 ms to 10 years.
func Concurrency(name string, n int64, lease time.Duration) Policy {
	return Policy{name: name, algo: concurrency, limit: n, window: lease}
}

// Aligned lets a fixed window start at multiples of its length since the Unix
// epoch plus offset: Aligned(0) of a day starts at midnight UTC, Aligned(-time.Hour)
// one hour before. All keys then begin anew at the same instant.
func (p Policy) Aligned(offset time.Duration) Policy {
	p.offset = offset.Microseconds()
	if w := p.window.Microseconds(); w > 0 {
		p.offset = ((p.offset % w) + w) % w
	}
	return p
}

// Phased lets a fixed window start at multiples of its length plus an offset of
// the key's own, derived from the key: windows stay predictable, but keys do not
// all begin anew at the same instant.
func (p Policy) Phased() Policy {
	p.offset = phased
	return p
}

// Shadow lets the policy count and report, in [Result.Policies] and to hooks, but
// never deny. It counts what the other policies admit and it would have
// admitted.
func (p Policy) Shadow() Policy {
	p.shadow = true
	return p
}

// OnUnavailable says what the policy decides while Redis can't be asked. The
// default is [Config.OnUnavailable].
func (p Policy) OnUnavailable(f FailurePolicy) Policy {
	p.down = f
	return p
}

// Name returns the name of the policy.
func (p Policy) Name() string { return p.name }

// Limit returns the largest number of units that can be admitted at once: the
// limit of a window, the burst of a token bucket, the n of Concurrency.
func (p Policy) Limit() int64 {
	if p.algo == tokenBucket {
		return p.burst
	}
	return p.limit
}

// Window returns the time after which Limit units are free again if no call
// comes: the window, the time in which an empty token bucket fills, rounded up
// to the microsecond, the lease of Concurrency.
func (p Policy) Window() time.Duration {
	if p.algo != tokenBucket || p.limit <= 0 {
		return p.window
	}
	// burst·per can exceed an int64; whole periods first.
	us := p.window.Microseconds()
	whole, rest := p.burst/p.limit, p.burst%p.limit
	part := math.Ceil(float64(rest) / float64(p.limit) * float64(us)) // a description, no verdict
	total := float64(whole)*float64(us) + part
	if total > math.MaxInt64/1000 {
		return math.MaxInt64
	}
	return time.Duration(total) * time.Microsecond
}

// Holds reports whether the policy is a Concurrency, whose units are held and come back
// when their holder ends, so that it has no window.
func (p Policy) Holds() bool { return p.algo == concurrency }

// IsShadow reports whether the policy never denies.
func (p Policy) IsShadow() bool { return p.shadow }

// String returns the name, algorithm and numbers of the policy.
func (p Policy) String() string {
	kind := map[algorithm]string{fixedWindow: "FixedWindow", slidingLog: "SlidingLog",
		slidingWindow: "SlidingWindow", concurrency: "Concurrency"}[p.algo]
	switch p.algo {
	case 0:
		return "no policy"
	case tokenBucket:
		return fmt.Sprintf("TokenBucket(%q, %d per %v, burst %d)", p.name, p.limit, p.window, p.burst)
	}
	return fmt.Sprintf("%s(%q, %d, %v)", kind, p.name, p.limit, p.window)
}

// maxName bounds a policy's name, which is part of its keys.
const maxName = 64

func legalName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		switch {
		case letter:
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'):
		default:
			return false
		}
	}
	return true
}

// check returns everything that is wrong with p.
func (p Policy) check() error {
	if p.algo == 0 {
		return errors.New("ratelimit: a policy is the zero Policy; make it with FixedWindow, SlidingLog, SlidingWindow, TokenBucket or Concurrency")
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("ratelimit: policy %q: "+format, append([]any{p.name}, args...)...))
	}
	if !legalName(p.name) {
		bad("the name must be 1 to %d letters, digits and -_. and begin with a letter", maxName)
	}
	most := int64(maxUnits)
	if p.algo == concurrency {
		most = maxLeases
	}
	if p.limit < 1 || p.limit > most {
		bad("limit %d is outside 1 to %d", p.limit, most)
	}
	if p.algo == tokenBucket && (p.burst < 1 || p.burst > most) {
		bad("burst %d is outside 1 to %d", p.burst, most)
	}
	if p.window < minWindow || p.window > maxWindow || p.window%time.Microsecond != 0 {
		bad("window %v must be a whole number of microseconds from %v to %v", p.window, minWindow, maxWindow)
	}
	if p.offset != 0 && p.algo != fixedWindow {
		bad("only a FixedWindow can be aligned or phased")
	}
	if p.down > LocalThenClosed {
		bad("failure policy %d is unknown", p.down)
	}
	if len(errs) == 0 {
		if p.algo == tokenBucket && float64(p.burst)/float64(p.limit)*float64(p.window) > float64(longest) {
			bad("an empty bucket would take more than 292 years to fill; use a smaller burst or a higher rate")
		} else if _, ok := p.numbers(); !ok {
			bad("limit times window is too large to be exact; use a window of whole milliseconds or seconds, or a smaller limit")
		}
	}
	return errors.Join(errs...)
}

// numbers are those that the scripts compute with.
type numbers struct {
	rate int64 // the limit; of a token bucket reduced together with the window
	win  int64 // µs
	tick int64 // µs to a tick: time goes in steps of these
}

// numbers returns rate, window and tick so that every product of units and ticks is
// below 2^53: the tick is the smallest power of ten that divides the window and does
// that. It reports false if there is none, or if so much would pass in one tick that it
// shows.
func (p Policy) numbers() (n numbers, ok bool) {
	n = numbers{rate: p.limit, win: p.window.Microseconds(), tick: 1}
	if p.algo != slidingWindow && p.algo != tokenBucket {
		return n, true
	}
	for ; n.win%n.tick == 0 && n.win/n.tick > 0; n.tick *= 10 {
		ticks, units := n.win/n.tick, p.limit
		if p.algo == tokenBucket {
			g := gcd(p.limit, ticks)
			units, ticks = p.burst, ticks/g
			if ticks <= maxExact/2/units {
				n.rate, n.win = p.limit/g, ticks*n.tick
				// What a tick brings is lost as far as it exceeds the burst.
				least := float64(n.rate) / float64(ticks)
				if n.tick > 1 {
					least *= coarse
				}
				return n, least <= float64(p.burst)
			}
		} else if ticks <= maxExact/2/units {
			return n, n.tick == 1 || ticks >= coarse
		}
	}
	return n, false
}

// coarse is how many ticks there must at least be, if they are not of a microsecond, in a
// sliding window, or while a token bucket gains its burst.
const coarse = 100

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// compiled is a policy made ready for the scripts.
type compiled struct {
	Policy
	cap    int64 // what Limit returns
	rate   int64 // the limit; of a token bucket reduced together with win
	win    int64 // µs
	tickUS int64
	wt     int64 // window in ticks
	suffix string
	args   [6]any
}

func (p Policy) compile() compiled {
	n, _ := p.numbers()
	c := compiled{Policy: p, cap: p.Limit(), rate: n.rate, win: n.win, tickUS: n.tick, wt: n.win / n.tick}
	c.suffix = ":" + string(rune(p.algo)) + ":" + strings.ToLower(p.name)
	extra := int64(0)
	switch p.algo {
	case fixedWindow:
		extra = p.offset
	case tokenBucket:
		extra = p.burst
	}
	shadow := "0"
	if p.shadow {
		shadow = "1"
	}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	c.args = [6]any{string(rune(p.algo)), num(c.rate), num(c.win), num(extra), num(c.tickUS), shadow}
	return c
}
