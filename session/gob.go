package session

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"strings"

	"github.com/redporch/redporch/internal/gobwalk"
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
	// Package gob makes a map of whatever size it claims.
	if err := gobwalk.Check(s); err != nil {
		return nil, err
	}
	if err := gob.NewDecoder(strings.NewReader(s)).Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}
