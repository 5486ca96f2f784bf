package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// An encrypted value is sealedMark, one byte that tells its key from others, a
// 12-byte nonce, and the AES-256-GCM ciphertext with its tag (NIST SP 800-38D).
// The session's name, its tag and the field's name are authenticated with it, so
// that a value can't be moved to another place.
const sealedMark = 0xE1

var errSealed = errors.New("value was not encrypted with any of the configured keys for this place")

func newSealer(key []byte) sealer {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length was checked
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(append([]byte("redporch key id\x00"), key...))
	return sealer{id: sum[0], aead: aead}
}

func sealedFor(name, tag, field string) []byte {
	return []byte(name + "\x00" + tag + "\x00" + field)
}

// seal returns what is stored for value.
func (st *Store) seal(name, tag, field, value string) string {
	if st.sealers == nil {
		return value
	}
	s := &st.sealers[0]
	n := s.aead.NonceSize()
	out := make([]byte, 2+n, 2+n+len(value)+s.aead.Overhead())
	out[0], out[1] = sealedMark, s.id
	rand.Read(out[2:])
	return string(s.aead.Seal(out, out[2:], []byte(value), sealedFor(name, tag, field)))
}

// open is the opposite of seal.
func (st *Store) open(name, tag, field, stored string) (string, error) {
	if stored == "" || stored[0] != sealedMark {
		if st.sealers != nil && !st.cfg.AcceptPlaintext {
			return "", errSealed
		}
		return stored, nil
	}
	for i := range st.sealers {
		s := &st.sealers[i]
		n := 2 + s.aead.NonceSize()
		if stored[1:2] != string([]byte{s.id}) || len(stored) < n {
			continue
		}
		if plain, err := s.aead.Open(nil, []byte(stored[2:n]), []byte(stored[n:]), sealedFor(name, tag, field)); err == nil {
			return string(plain), nil
		}
	}
	return "", errSealed
}
