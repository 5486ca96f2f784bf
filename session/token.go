package session

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"hash"
	"strings"
	"sync"
)

const (
	tagBytes    = 2
	secretBytes = 32
	macBytes    = 16
	tagLen      = 3  // characters of the encoded tag
	tokenLen    = 46 // characters of the encoded tag and secret
	macLen      = 22
	hashLen     = 43
	idLen       = tagLen + 1 + hashLen

	// maxForeignToken bounds ids that came from elsewhere than this package.
	maxForeignToken = 1024
)

// b64 refuses bits that encode nothing, so that a token has one spelling.
var b64 = base64.RawURLEncoding.Strict()

// token is what a cookie proves: the right to one session.
type token struct {
	// cookie is the cookie's value, with the signature if there is one. It is the
	// bearer secret and goes nowhere but into a Set-Cookie header and, while
	// redisstore's layout is in use, into the name of its key.
	cookie string
	// key is the key of the session's hash in Redis, id what the outside may know.
	// They share memory.
	key, id string
	// foreign is true for an id that did not come from this package.
	foreign bool
	// stale is true if the first of Config.Keys has not signed the cookie.
	stale bool
}

// tag returns the part of the key that decides its slot on a cluster.
func (t *token) tag() string { return t.id[:tagLen] }

// newToken returns a fresh token for a session called name. A non-empty tag is
// kept, so that the new key is in the same slot as the old one.
func (st *Store) newToken(name, tag string) (token, error) {
	var raw [tagBytes + secretBytes]byte
	rand.Read(raw[:]) // never fails, see crypto/rand
	if tag != "" {
		if _, err := b64.Decode(raw[:tagBytes], []byte(tag)); err != nil {
			return token{}, errMalformed
		}
	}
	t := st.tokenOf(name, &raw)
	t.cookie = b64.EncodeToString(raw[:])
	if st.macs != nil && !st.cfg.SendUnsigned {
		st.sign(name, &t)
	} else if st.compat() != nil {
		mac := nameCheck(name, t.cookie)
		t.cookie += "." + b64.EncodeToString(mac[:])
	}
	return t, nil
}

// sign puts the first key's signature on a token, in place of another one, or none where
// Config.SendUnsigned says so.
func (st *Store) sign(name string, t *token) {
	plain := t.cookie[:tokenLen]
	if st.cfg.SendUnsigned {
		t.cookie, t.stale = plain, false
		return
	}
	mac := st.macs[0].sum(name, plain)
	t.cookie, t.stale = plain+"."+b64.EncodeToString(mac[:]), false
}

// tokenOf derives key and id: prefix{tag}:SHA-256(name ‖ 0 ‖ secret). Neither
// leads back to the secret, and no name's secret opens another name's session.
func (st *Store) tokenOf(name string, raw *[tagBytes + secretBytes]byte) token {
	var buf [160]byte
	b := append(append(buf[:0], name...), 0)
	sum := sha256.Sum256(append(b, raw[tagBytes:]...))
	return st.tokenAt(raw[:tagBytes], &sum)
}

func (st *Store) tokenAt(tag []byte, sum *[sha256.Size]byte) token {
	// One allocation holds both: <prefix>{<tag>}:<hash> and <tag>.<hash>.
	var buf [256]byte
	b := append(append(buf[:0], st.prefix()...), '{')
	b = b64.AppendEncode(b, tag)
	b = append(b, '}', ':')
	b = b64.AppendEncode(b, sum[:])
	n := len(b)
	b = append(b, b[n-hashLen-2-tagLen:n-hashLen-2]...)
	b = append(b, '.')
	b = append(b, b[n-hashLen:n]...)
	both := string(b)
	return token{key: both[:n], id: both[n:]}
}

// foreignToken is the token for an id that came from elsewhere: from redisstore,
// or from the app's KeyGen.
func (st *Store) foreignToken(name, id string) token {
	tag := sha256.Sum256([]byte(id))
	sum := sha256.Sum256([]byte(name + "\x00" + id))
	t := st.tokenAt(tag[:tagBytes], &sum)
	t.cookie, t.foreign = id, true
	return t
}

// parseToken checks a cookie's value without asking Redis. ok is false for
// whatever this store can't have sent.
func (st *Store) parseToken(name, value string) (t token, ok bool) {
	plain, mac, signed := strings.Cut(value, ".")
	if len(plain) != tokenLen || signed && len(mac) != macLen {
		return st.parseForeign(name, value)
	}
	var raw [tagBytes + secretBytes]byte
	var src [tokenLen]byte
	copy(src[:], plain)
	if n, err := b64.Decode(raw[:], src[:]); err != nil || n != len(raw) {
		return st.parseForeign(name, value)
	}
	stale := false
	switch {
	case signed:
		var sig, want [macBytes]byte
		var src [macLen]byte
		copy(src[:], mac)
		if n, err := b64.Decode(sig[:], src[:]); err != nil || n != len(sig) {
			return token{}, false
		}
		match := 0
		for i, m := range st.macs { // which one it was is no secret
			want = m.sum(name, plain)
			if match = subtle.ConstantTimeCompare(sig[:], want[:]); match == 1 {
				stale = i > 0 || st.cfg.SendUnsigned
				break
			}
		}
		if match == 0 && (st.macs == nil || st.cfg.AcceptUnsigned) {
			// A check that needs no key: it proves nothing but the name.
			want = nameCheck(name, plain)
			match = subtle.ConstantTimeCompare(sig[:], want[:])
			stale = st.macs != nil
		}
		if match == 0 {
			return token{}, false
		}
	case st.macs != nil && !st.cfg.AcceptUnsigned:
		return token{}, false
	case st.macs != nil:
		stale = !st.cfg.SendUnsigned
	}
	t = st.tokenOf(name, &raw)
	t.cookie, t.stale = value, stale
	return t, true
}

// parseForeign accepts ids of redisstore, if the store was told to.
func (st *Store) parseForeign(name, value string) (token, bool) {
	if len(value) < 16 || len(value) > maxForeignToken || !st.adopts(name) ||
		st.compat().KeyGen == nil && !redisstoreID(value) {
		return token{}, false
	}
	return st.foreignToken(name, value), true
}

// nameCheck binds a token to a session's name where no key is configured. It can
// be computed by anybody: it keeps names apart while the id is the key in Redis.
func nameCheck(name, token string) (mac [macBytes]byte) {
	sum := sha256.Sum256([]byte("redporch\x00" + name + "\x00" + token))
	copy(mac[:], sum[:])
	return mac
}

// newSigners returns what signs, first, and what else verifies: keys that HKDF (RFC 5869)
// derives from keys for this purpose, so that the same bytes may serve another one, and the
// keys themselves, with which versions before signed.
func newSigners(keys [][]byte, underived bool) []*signer {
	var plain, derived []*signer
	for _, k := range keys {
		own, err := hkdf.Key(sha256.New, k, nil, "redporch session: cookies", sha256.Size)
		if err != nil {
			panic(err) // no digest is longer
		}
		plain, derived = append(plain, newSigner(k)), append(derived, newSigner(own))
	}
	if underived {
		return append(plain, derived...)
	}
	return append(derived, plain...)
}

// signer computes signatures with one key. The states of a hash are kept, as
// they cost more than what they compute.
type signer struct{ pool sync.Pool }

func newSigner(key []byte) *signer {
	key = append([]byte(nil), key...)
	return &signer{sync.Pool{New: func() any { return &signing{mac: hmac.New(sha256.New, key)} }}}
}

type signing struct {
	mac hash.Hash
	buf []byte
}

// sum returns the first half of HMAC-SHA-256(key, name ‖ 0 ‖ token).
func (s *signer) sum(name, token string) (mac [macBytes]byte) {
	g := s.pool.Get().(*signing)
	g.mac.Reset()
	g.buf = append(append(append(g.buf[:0], name...), 0), token...)
	g.mac.Write(g.buf)
	g.buf = g.mac.Sum(g.buf[:0])
	copy(mac[:], g.buf)
	s.pool.Put(g)
	return mac
}

// keyOfID returns the key of the session with a public id, or "" if it isn't one.
func (st *Store) keyOfID(id string) string {
	if len(id) != idLen || id[tagLen] != '.' {
		return ""
	}
	for i := range len(id) {
		if c := id[i]; i != tagLen && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return st.prefix() + "{" + id[:tagLen] + "}:" + id[tagLen+1:]
}
