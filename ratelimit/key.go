package ratelimit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"hash/maphash"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// keys turns what a caller limits into the start of its keys in Redis:
//
//	prefix{h}
//
// where h is 128 bits of HMAC-SHA-256 (or SHA-256) of the subject in base64url,
// 22 characters of fixed length. The braces make h the hash tag, so all keys of
// one subject are in one cluster slot; nothing in a subject can break out of
// them.
type keys struct {
	prefix string
	flag   string // see ban.go; no subject's key, for the prefix has no brace behind it
	plain  bool
	pool   sync.Pool // of *hasher

	// Subjects come again, and hashing is a tenth of a decision's time here. So the
	// last ones of each row are kept.
	known [1024][4]atomic.Pointer[knownKey]
}

// knownKey is what a process knows of a subject: its keys in Redis, and when it was
// found not to be banned.
type knownKey struct {
	hash            uint64
	subject, suffix string
	base, key       string       // key is base and suffix, they share memory
	looked          atomic.Int64 // nanoseconds after base; 0: not
}

// maxKnownKey bounds the subjects that are kept, in bytes.
const maxKnownKey = 128

type hasher struct {
	h   hash.Hash
	in  []byte
	sum []byte
	out []byte
}

func newKeys(prefix string, secret []byte, plain bool) *keys {
	k := &keys{prefix: prefix, flag: prefix + "bans", plain: plain}
	secret = append([]byte(nil), secret...)
	k.pool.New = func() any {
		h := sha256.New()
		if len(secret) > 0 {
			h = hmac.New(sha256.New, secret)
		}
		return &hasher{h: h, sum: make([]byte, 0, sha256.Size)}
	}
	return k
}

const tagLen = 22 // base64url of 16 bytes

// base returns the start of all keys of subject, which is also the key of its
// ban.
func (k *keys) base(subject string) string {
	base, _ := k.make(subject, "")
	return base
}

var seed = maphash.MakeSeed()

// hashOf finds what this process keeps of a subject: its keys, its denials, its place
// in a flight.
func hashOf(subject string) uint64 { return maphash.String(seed, subject) }

// find returns what is known of a subject with a hash, and how its key with a suffix is
// called.
func (k *keys) find(hash uint64, subject, suffix string) *knownKey {
	row := &k.known[hash>>32%uint64(len(k.known))]
	for i := range row {
		if n := row[i].Load(); n != nil && n.hash == hash && n.subject == subject && n.suffix == suffix {
			return n
		}
	}
	n := &knownKey{hash: hash, subject: subject, suffix: suffix}
	n.base, n.key = k.make(subject, suffix)
	if len(subject) <= maxKnownKey {
		n.subject = strings.Clone(subject)
		stalest(row[:]).Store(n)
	}
	return n
}

// stalest returns the place in a row that is empty, or whose subject's ban was looked at
// longest ago: of those that come again that is a second at most.
func stalest(row []atomic.Pointer[knownKey]) (place *atomic.Pointer[knownKey]) {
	longest := int64(math.MaxInt64)
	for i := range row {
		n := row[i].Load()
		if n == nil {
			return &row[i]
		}
		if at := n.looked.Load(); at < longest {
			place, longest = &row[i], at
		}
	}
	return place
}

// make returns the base of subject and that with a suffix, which share memory.
func (k *keys) make(subject, suffix string) (base, key string) {
	if k.plain {
		base = k.prefix + "{" + escape(subject) + "}"
		key = base + suffix
		return key[:len(base)], key
	}
	h := k.pool.Get().(*hasher)
	h.h.Reset()
	h.in = append(h.in[:0], subject...)
	h.h.Write(h.in)
	h.sum = h.h.Sum(h.sum[:0])
	h.out = append(h.out[:0], k.prefix...)
	h.out = append(h.out, '{')
	h.out = base64.RawURLEncoding.AppendEncode(h.out, h.sum[:16])
	h.out = append(h.out, '}')
	n := len(h.out)
	h.out = append(h.out, suffix...)
	s := string(h.out)
	if cap(h.in) > 4096 {
		h.in = nil
	}
	k.pool.Put(h)
	return s[:n], s
}

// phase returns a number below 2^52 that is the same for a subject wherever it is
// computed, and spread evenly.
func phase(base string) int64 {
	sum := sha256.Sum256([]byte(base))
	var n uint64
	for _, b := range sum[:8] {
		n = n<<8 | uint64(b)
	}
	return int64(n >> 12)
}

// escape writes all bytes but letters, digits and -_.: as %XX. A lone "%" stands
// for the empty string, so that a hash tag is never empty.
func escape(s string) string {
	if s == "" {
		return "%"
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == ':':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// Join makes one key of several parts, such as a route and a user. Different
// parts never make the same key, whatever they contain: each is preceded by its
// length.
func Join(parts ...string) string {
	n := 0
	for _, p := range parts {
		n += len(p) + 8
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = strconv.AppendInt(b, int64(len(p)), 10)
		b = append(b, ':')
		b = append(b, p...)
	}
	return string(b)
}
