package middleware

import (
	"encoding/base64"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/dunglas/httpsfv"
)

// Dialect is a set of response header fields that tell clients about their
// limits. Dialects are combined with |, but Draft7 can't be combined with Draft11,
// since both define a field RateLimit, with different content.
type Dialect uint8

const (
	// Draft11 is RateLimit-Policy and RateLimit as in draft-ietf-httpapi-
	// ratelimit-headers-08 to -11, whose fields look the same:
	//
	//	RateLimit-Policy: "burst";q=100;w=60, "daily";q=1000;w=86400
	//	RateLimit: "burst";r=50;t=30, "daily";r=900;t=40000
	Draft11 Dialect = 1 << iota

	// Draft7 is RateLimit as a dictionary, of the tightest policy only, and
	// RateLimit-Policy without names:
	//
	//	RateLimit-Policy: 100;w=60, 1000;w=86400
	//	RateLimit: limit=100, remaining=50, reset=30
	Draft7

	// Draft6 is RateLimit-Limit, RateLimit-Remaining and RateLimit-Reset of the
	// tightest policy, and RateLimit-Policy without names unless Draft11 writes
	// it.
	Draft6

	// XRateLimit is X-RateLimit-Limit, X-RateLimit-Remaining and
	// X-RateLimit-Reset of the tightest policy, the last in seconds from now.
	XRateLimit

	// XRateLimitUnix is XRateLimit with X-RateLimit-Reset in seconds since 1970,
	// as GitHub has it.
	XRateLimitUnix

	// NoHeaders writes none of the above. Retry-After is still sent.
	NoHeaders
)

// quota is what a client may know of one policy, in the units of the fields.
type quota struct {
	name      string
	limit     int64
	remaining int64
	window    int64  // seconds, rounded up; 0: there is none
	unit      string // quota unit; empty: requests
	next      int64  // seconds until remaining grows; -1: not told
	reset     int64  // seconds until nothing is used, or of a denial until it would be admitted
}

// fieldWriter writes the fields of one limiter.
type fieldWriter struct {
	dialect Dialect
}

// write adds the fields for quotas, of which the one at index tightest is the
// closest to its limit. What a limiter further out has written stays: lists grow,
// and of single values the tighter one wins.
func (f fieldWriter) write(h http.Header, quotas []quota, tightest int, partition []byte, now time.Time) {
	if len(quotas) == 0 || f.dialect&NoHeaders != 0 {
		return
	}
	q := quotas[tightest]
	var buf [256]byte
	if f.dialect&Draft11 != 0 {
		b := buf[:0]
		for i, q := range quotas {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = f.appendPolicy(b, q, partition)
		}
		addField(h, "Ratelimit-Policy", string(b))
		b = buf[:0]
		for i, q := range quotas {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendLimit(b, q, partition)
		}
		addField(h, "Ratelimit", string(b))
	} else if f.dialect&(Draft6|Draft7) != 0 {
		b := buf[:0]
		for _, q := range quotas {
			if q.window == 0 { // w is required there
				continue
			}
			if len(b) > 0 {
				b = append(b, ", "...)
			}
			b = appendInt(b, q.limit)
			b = append(b, ";w="...)
			b = appendInt(b, q.window)
		}
		if len(b) > 0 {
			addField(h, "Ratelimit-Policy", string(b))
		}
	}
	if f.dialect&Draft7 != 0 && tighter(q, draft7Before(h)) {
		b := append(buf[:0], "limit="...)
		b = appendInt(b, q.limit)
		b = append(b, ", remaining="...)
		b = appendInt(b, q.remaining)
		b = append(b, ", reset="...)
		b = appendInt(b, q.reset)
		h["Ratelimit"] = []string{string(b)}
	}
	if f.dialect&Draft6 != 0 && tighter(q, before(h, "Ratelimit-Remaining", "Ratelimit-Reset", 0)) {
		setTriple(h, "Ratelimit-Limit", "Ratelimit-Remaining", "Ratelimit-Reset", q, q.reset)
	}
	if f.dialect&(XRateLimit|XRateLimitUnix) != 0 {
		epoch := int64(0)
		if f.dialect&XRateLimitUnix != 0 {
			epoch = now.Unix()
		}
		if tighter(q, before(h, "X-Ratelimit-Remaining", "X-Ratelimit-Reset", epoch)) {
			setTriple(h, "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset", q, epoch+q.reset)
		}
	}
}

func (f fieldWriter) appendPolicy(b []byte, q quota, partition []byte) []byte {
	b = append(b, sfString(q.name)...)
	b = append(b, ";q="...)
	b = appendInt(b, q.limit)
	if q.unit != "" {
		b = append(b, ";qu="...)
		b = append(b, sfString(q.unit)...)
	}
	if q.window > 0 {
		b = append(b, ";w="...)
		b = appendInt(b, q.window)
	}
	return appendPartition(b, partition)
}

func appendLimit(b []byte, q quota, partition []byte) []byte {
	b = append(b, sfString(q.name)...)
	b = append(b, ";r="...)
	b = appendInt(b, q.remaining)
	if q.next >= 0 {
		// Draft -10 has t as the time until quota becomes available, -11 as the
		// time within which no more than r can be used: the same instant.
		b = append(b, ";t="...)
		b = appendInt(b, q.next)
	}
	return appendPartition(b, partition)
}

func appendPartition(b []byte, partition []byte) []byte {
	if partition == nil {
		return b
	}
	b = append(b, ";pk=:"...)
	b = base64.StdEncoding.AppendEncode(b, partition)
	return append(b, ':')
}

// maxInteger is the largest Integer of a structured field (RFC 9651, section
// 3.3.1).
const maxInteger = 999_999_999_999_999

func appendInt(b []byte, n int64) []byte {
	return strconv.AppendInt(b, min(max(n, 0), maxInteger), 10)
}

// sfStrings keeps names in their serialized form. There are as many as the
// program has policies.
var sfStrings sync.Map // string → string

// sfString returns s as a String of a structured field (RFC 9651, section 3.3.3).
// What can't be in one, which policy names exclude, becomes "default".
func sfString(s string) string {
	if text, ok := sfStrings.Load(s); ok {
		return text.(string)
	}
	text, err := httpsfv.Marshal(httpsfv.NewItem(s))
	if err != nil {
		text = `"default"`
	}
	sfStrings.Store(s, text)
	return text
}

func addField(h http.Header, name, value string) {
	h[name] = append(h[name], value)
}

func setTriple(h http.Header, limit, remaining, reset string, q quota, resetValue int64) {
	values := make([]string, 3)
	values[0] = string(appendInt(nil, q.limit))
	values[1] = string(appendInt(nil, q.remaining))
	values[2] = string(appendInt(nil, resetValue))
	h[limit], h[remaining], h[reset] = values[0:1:1], values[1:2:2], values[2:3:3]
}

// tighter reports whether q leaves a client less than what was written before,
// nil for nothing.
func tighter(q quota, written *quota) bool {
	if written == nil {
		return true
	}
	return q.remaining < written.remaining || q.remaining == written.remaining && q.reset > written.reset
}

func before(h http.Header, remaining, reset string, epoch int64) *quota {
	if len(h[remaining]) == 0 || len(h[reset]) == 0 {
		return nil
	}
	r, err1 := strconv.ParseInt(h[remaining][0], 10, 64)
	t, err2 := strconv.ParseInt(h[reset][0], 10, 64)
	if err1 != nil || err2 != nil {
		return nil
	}
	return &quota{remaining: r, reset: t - epoch}
}

func draft7Before(h http.Header) *quota {
	dict, err := httpsfv.UnmarshalDictionary(h["Ratelimit"])
	if err != nil {
		return nil
	}
	number := func(key string) (int64, bool) {
		m, ok := dict.Get(key)
		if !ok {
			return 0, false
		}
		item, ok := m.(httpsfv.Item)
		if !ok {
			return 0, false
		}
		n, ok := item.Value.(int64)
		return n, ok
	}
	r, ok1 := number("remaining")
	t, ok2 := number("reset")
	if !ok1 || !ok2 {
		return nil
	}
	return &quota{remaining: r, reset: t}
}

// seconds rounds up: a client that waits as long as it is told must not come too
// early.
func seconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	if d > math.MaxInt64-time.Second {
		return int64(d / time.Second)
	}
	return int64((d + time.Second - 1) / time.Second)
}
