package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/gorilla/sessions"
)

// An encrypted value is a mark, one byte that tells its key from others, a 12-byte nonce,
// and the AES-256-GCM ciphertext with its tag (NIST SP 800-38D), under a key that HKDF
// (RFC 5869) derives from Config.EncryptionKeys for this purpose.
//
// What is authenticated with it keeps it in its place: the name of the field, and 16
// random bytes of the session, its bond. The bond is stored in the field e, encrypted
// itself and authenticated with the session's public id, which follows from the secret in
// the cookie. Who writes to Redis can neither choose nor read a bond, so what is encrypted
// for one session does not open in another one, under whatever key in Redis.
//
// A new id has a new bond: who knew the old id, and copied the session then, does not get
// to read what is stored afterwards. The values are encrypted anew; one that another
// request has stored meanwhile stays as it is, so the field holds the earlier bonds too. Of
// those there are maxBonds - 1 at most: later ids go on with the bond that they find, since
// one that was dropped would take values with it. For the same reason the field is only
// written over what the request has read there: who finds another bond reads it and tries
// again.
//
// A session that began without a bond, under StorePlaintext or before there were bonds,
// gets one with the first save of something encrypted. Values from before there were bonds
// have another mark, the key itself, and the session's name, the tag of its key and the
// name of the field authenticated with them; they are encrypted anew then.
const (
	sealedUnbound = 0xE1
	sealedMark    = 0xE2

	bondBytes = 16
	maxBonds  = 32
)

var errSealed = errors.New("value was not encrypted with any of the configured keys for this place")

// sealer is one of Config.EncryptionKeys.
type sealer struct {
	id      byte
	aead    cipher.AEAD
	unbound cipher.AEAD
}

func newSealer(key []byte) sealer {
	derived, err := hkdf.Key(sha256.New, key, nil, "redporch session: values", 32)
	if err != nil {
		panic(err) // no digest is longer
	}
	sum := sha256.Sum256(append([]byte("redporch key id\x00"), key...))
	return sealer{id: sum[0], aead: newGCM(derived), unbound: newGCM(key)}
}

func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length was checked
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// bond is what keeps encrypted values in their session.
type bond struct {
	all   [][bondBytes]byte // the newest first, maxBonds at most; not changed in place
	stale bool              // it is stored under another key than the first
}

// sealing says how the values of a session are encrypted.
type sealing uint8

const (
	unsealed sealing = iota // no bond was stored
	bonded                  // by the bond
	unknown                 // the stored bond can't be read, so nothing is
)

// newBond returns a bond for a session's next id.
func (x *state) newBond() *bond {
	var fresh [bondBytes]byte
	rand.Read(fresh[:])
	if x.bond == nil {
		return &bond{all: [][bondBytes]byte{fresh}}
	}
	if len(x.bond.all) >= maxBonds {
		return &bond{all: x.bond.all}
	}
	return &bond{all: append([][bondBytes]byte{fresh}, x.bond.all...)}
}

// seals reports whether values are stored encrypted.
func (st *Store) seals() bool { return st.sealers != nil && !st.cfg.StorePlaintext }

// bondField is the field e for a session's id.
func (st *Store) bondField(b *bond, name, id string) field {
	var plain []byte
	for i := range b.all {
		plain = append(plain, b.all[i][:]...)
	}
	return field{name: fieldBond, held: st.sealAs(sealedMark, bondFor(name, id), string(plain))}
}

// openBond reads the field e; held is "" if there is none.
func (st *Store) openBond(x *state, id, held string) {
	if x.bond, x.sealing, x.held = nil, unsealed, held; st.sealers == nil || held == "" {
		return
	}
	x.sealing = unknown
	plain, err := st.openAs(sealedMark, bondFor(x.name, id), held)
	if err != nil || plain == "" || len(plain)%bondBytes != 0 || len(plain) > maxBonds*bondBytes {
		return
	}
	b := &bond{all: make([][bondBytes]byte, len(plain)/bondBytes), stale: held[1] != st.sealers[0].id}
	for i := range b.all {
		copy(b.all[i][:], plain[i*bondBytes:])
	}
	x.bond, x.sealing = b, bonded
}

func bondFor(name, id string) []byte { return []byte("bond\x00" + name + "\x00" + id) }

func boundTo(bond *[bondBytes]byte, field string) []byte {
	return append(append(make([]byte, 0, bondBytes+6+len(field)), "value\x00"...), append(bond[:], field...)...)
}

func unboundFor(name, tag, field string) []byte {
	return []byte(name + "\x00" + tag + "\x00" + field)
}

// seal returns what is stored for value.
func (st *Store) seal(x *state, tag, field, value string) string {
	if !st.seals() {
		return value
	}
	return st.sealAs(sealedMark, boundTo(&x.bond.all[0], field), value)
}

func (st *Store) sealAs(mark byte, data []byte, value string) string {
	s := &st.sealers[0]
	aead := s.aead
	if mark == sealedUnbound {
		aead = s.unbound
	}
	n := aead.NonceSize()
	out := make([]byte, 2+n, 2+n+len(value)+aead.Overhead())
	out[0], out[1] = mark, s.id
	rand.Read(out[2:])
	return string(aead.Seal(out, out[2:], []byte(value), data))
}

// open is the opposite of seal.
func (st *Store) open(x *state, tag, field, stored string) (string, error) {
	mark := byte(0)
	if stored != "" {
		mark = stored[0]
	}
	switch mark {
	case sealedUnbound:
		if x.sealing != unsealed {
			return "", errSealed
		}
		return st.openAs(mark, unboundFor(x.name, tag, field), stored)
	case sealedMark:
		if x.bond == nil {
			return "", errSealed
		}
		for i := range x.bond.all {
			if plain, err := st.openAs(mark, boundTo(&x.bond.all[i], field), stored); err == nil {
				return plain, nil
			}
		}
		return "", errSealed
	}
	if st.sealers != nil && !st.cfg.AcceptPlaintext && !st.cfg.StorePlaintext {
		return "", errSealed
	}
	return stored, nil
}

func (st *Store) openAs(mark byte, data []byte, stored string) (string, error) {
	for i := range st.sealers {
		s := &st.sealers[i]
		aead := s.aead
		if mark == sealedUnbound {
			aead = s.unbound
		}
		n := 2 + aead.NonceSize()
		if len(stored) < n || stored[0] != mark || stored[1] != s.id {
			continue
		}
		if plain, err := aead.Open(nil, []byte(stored[2:n]), []byte(stored[n:]), data); err == nil {
			return string(plain), nil
		}
	}
	return "", errSealed
}

// rebond gives a session a new bond, and c what it takes to encrypt what is stored with it,
// or to store it in plain under StorePlaintext: a value that c does not change anyway is
// replaced if it is still what was loaded. With all that is every value, for a new id; else
// those that do not open beside a bond.
func (st *Store) rebond(x *state, s *sessions.Session, all bool) (c changes, err error) {
	old := x.bond
	x.bond = x.newBond()
	defer func() {
		if err != nil {
			x.bond = old
		}
	}()
	if c, err = st.diff(x, s, x.tok.tag()); err != nil {
		return c, err
	}
	again := func(f field) field {
		if !all && (f.held == "" || f.held[0] != sealedUnbound) {
			return f
		}
		next := field{name: f.name, held: st.seal(x, x.tok.tag(), f.name, f.value()), plain: f.plain}
		c.reseal = append(c.reseal, resealed{f.name, f.held, next.held})
		c.bytes += len(next.held) - len(f.held)
		return next
	}
	for i := range x.base {
		if slices.ContainsFunc(c.edits, func(e edit) bool { return e.at == i }) {
			continue
		}
		next := x.base[i]
		if next.field.name != "" {
			next.field = again(next.field)
		}
		var items []field
		for _, f := range next.items() {
			items = append(items, again(f))
		}
		next.setItems(items)
		c.edits = append(c.edits, edit{at: i, next: next})
	}
	// A list that was changed in part, and the entries that share a field.
	for i := range c.edits {
		e := &c.edits[i]
		items := slices.Clone(e.next.items())
		for j, f := range items {
			if slices.ContainsFunc(x.base[e.at].items(), func(was field) bool { return was == f }) {
				items[j] = again(f)
			}
		}
		e.next.setItems(items)
		if f := e.next.field; f.name != "" && f == x.base[e.at].field {
			e.next.field = again(f)
		}
	}
	for i, f := range c.other {
		if slices.Contains(x.other, f) {
			c.other = slices.Clone(c.other)
			c.other[i] = again(f)
		}
	}
	return c, nil
}

// resealed is a field that is encrypted anew unless it was changed.
type resealed struct{ name, was, held string }

// weakKey says what is wrong with a key that is easily guessed, or "".
func weakKey(k []byte) string {
	for period := 1; period <= (len(k)+1)/2; period++ {
		if slices.Equal(k[period:], k[:len(k)-period]) {
			return fmt.Sprintf("repeats its first %d bytes; use random ones, such as those of openssl rand -base64 32", period)
		}
	}
	return ""
}
