package cacheaside

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
)

// maxKey bounds an encoded key. Redis would take far longer ones, at the price
// of memory that nobody accounts for.
const maxKey = 4096

// keyCodec turns keys into text and back. Two keys have the same text only if
// they are the same to Redis: integers in decimal, strings as they are, others
// by their own MarshalText.
type keyCodec[K comparable] struct {
	marshal bool // by MarshalText: unequal keys may have the same text
	integer bool // of an integer kind
}

func newKeyCodec[K comparable]() (*keyCodec[K], error) {
	t := reflect.TypeFor[K]()
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return &keyCodec[K]{marshal: true}, nil
	}
	switch t.Kind() {
	case reflect.String:
		return &keyCodec[K]{}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return &keyCodec[K]{integer: true}, nil
	}
	return nil, fmt.Errorf("keys are %v; use a string or integer type, or one that implements encoding.TextMarshaler", t)
}

// append appends the text of key to dst.
func (kc *keyCodec[K]) append(dst []byte, key K) ([]byte, error) {
	n := len(dst)
	if kc.marshal {
		text, err := marshalText(key)
		if err != nil {
			return nil, err
		}
		dst = append(dst, text...)
	} else {
		switch k := any(key).(type) {
		case string:
			dst = append(dst, k...)
		case int:
			dst = strconv.AppendInt(dst, int64(k), 10)
		case int64:
			dst = strconv.AppendInt(dst, k, 10)
		default:
			switch v := reflect.ValueOf(key); {
			case v.Kind() == reflect.String:
				dst = append(dst, v.String()...)
			case v.CanInt():
				dst = strconv.AppendInt(dst, v.Int(), 10)
			default:
				dst = strconv.AppendUint(dst, v.Uint(), 10)
			}
		}
	}
	if len(dst)-n > maxKey {
		return nil, errKeyTooLarge
	}
	return dst, nil
}

// marshalText is the user's code, which may panic for a nil pointer.
func marshalText(key any) (text []byte, err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%w: MarshalText panicked", ErrBadKey)
		}
	}()
	text, err = key.(encoding.TextMarshaler).MarshalText()
	if err != nil {
		return nil, fmt.Errorf("%w: MarshalText failed", ErrBadKey)
	}
	return text, nil
}

// parse is append's inverse, for the kinds that have one.
func (kc *keyCodec[K]) parse(text string) (key K, ok bool) {
	if kc.marshal {
		return key, false
	}
	switch v := reflect.ValueOf(&key).Elem(); {
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return key, false
		}
		v.SetInt(n)
	default:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return key, false
		}
		v.SetUint(n)
	}
	return key, true
}
