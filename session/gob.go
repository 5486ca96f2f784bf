package session

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"strings"
)

func init() {
	gob.Register(map[any]any{}) // the fields with prefixOther
}

// gobEncode encodes a value of a type that has no native encoding. A type that
// was not registered with gob.Register is an error that names it.
func gobEncode(v any) (_ []byte, err error) {
	defer func() {
		if p := recover(); p != nil { // a GobEncode method of the app, or a nil pointer
			err = fmt.Errorf("%w: %T", ErrUnsupported, v)
		}
	}()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(&v); err != nil {
		return nil, fmt.Errorf("%w: %T: %w", ErrUnsupported, v, err)
	}
	return b.Bytes(), nil
}

// gobDecode is the opposite of gobEncode.
func gobDecode(s string) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, errors.New("gob: the type's decoder panicked")
		}
	}()
	if !gobFramed(s) {
		return nil, errMalformed
	}
	if err := gob.NewDecoder(strings.NewReader(s)).Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}

// gobFramed reports whether s is a sequence of gob messages that end where s
// ends, so that the decoder allocates no more for a message than s is long. A
// message is its length as a gob unsigned integer, and that many bytes: one byte
// below 128 is itself; else it is the negated count of the big-endian bytes that
// follow (package gob, "Encoding Details").
func gobFramed(s string) bool {
	for s != "" {
		n := uint64(s[0])
		s = s[1:]
		if n >= 128 {
			size := 256 - int(n)
			if size > 8 || size > len(s) {
				return false
			}
			n = 0
			for i := range size {
				n = n<<8 | uint64(s[i])
			}
			s = s[size:]
		}
		if n > uint64(len(s)) {
			return false
		}
		s = s[n:]
	}
	return true
}
