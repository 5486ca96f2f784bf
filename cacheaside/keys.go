package cacheaside

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// maxKey bounds an encoded key. Redis would take far longer ones, at the price
// of memory that nobody accounts for.
const maxKey = 4096

// keyCodec turns keys into text and back. Two keys have the same text only if
// they are the same to Redis: integers in decimal, strings as they are, structs and
// arrays by their parts, others by their own MarshalText.
type keyCodec[K comparable] struct {
	marshal bool    // the text does not tell the key, and by MarshalText unequal keys may have the same
	integer bool    // of an integer kind
	parts   keyPart // of a struct or array
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
	case reflect.Struct, reflect.Array:
		parts, err := newKeyPart(t, "", true)
		if err != nil {
			return nil, fmt.Errorf("keys are %v; %w", t, err)
		}
		return &keyCodec[K]{marshal: true, parts: parts}, nil
	}
	return nil, fmt.Errorf("keys are %v; use a string or integer type, a struct or array of such, or one that implements encoding.TextMarshaler", t)
}

// append appends the text of key to dst.
func (kc *keyCodec[K]) append(dst []byte, key K) ([]byte, error) {
	n := len(dst)
	if kc.parts != nil {
		var err error
		if dst, err = kc.parts(dst, reflect.ValueOf(key)); err != nil {
			return nil, err
		}
		dst = dst[:max(len(dst)-1, n)] // the last comma
	} else if kc.marshal {
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

// keyPart appends a part of a struct or array, and a comma after each of its values. Their
// number is given by the type, and commas within are escaped, so no two keys have the same
// text.
type keyPart func(dst []byte, v reflect.Value) ([]byte, error)

// newKeyPart returns the keyPart of a type. path is where it is in the key, for errors;
// visible is false within fields that are not exported, whose methods can't be called.
func newKeyPart(t reflect.Type, path string, visible bool) (keyPart, error) {
	if path != "" && t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		if !visible {
			return nil, fmt.Errorf("their field %s implements encoding.TextMarshaler, so it must be exported", path)
		}
		return func(dst []byte, v reflect.Value) ([]byte, error) {
			text, err := marshalText(v.Interface())
			return append(appendEscaped(dst, bytesToString(text)), ','), err
		}, nil
	}
	switch t.Kind() {
	case reflect.String:
		return func(dst []byte, v reflect.Value) ([]byte, error) {
			return append(appendEscaped(dst, v.String()), ','), nil
		}, nil
	case reflect.Bool:
		return func(dst []byte, v reflect.Value) ([]byte, error) {
			return append(strconv.AppendBool(dst, v.Bool()), ','), nil
		}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(dst []byte, v reflect.Value) ([]byte, error) {
			return append(strconv.AppendInt(dst, v.Int(), 10), ','), nil
		}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return func(dst []byte, v reflect.Value) ([]byte, error) {
			return append(strconv.AppendUint(dst, v.Uint(), 10), ','), nil
		}, nil
	case reflect.Array:
		element, err := newKeyPart(t.Elem(), path+"[]", visible)
		if err != nil {
			return nil, err
		}
		return func(dst []byte, v reflect.Value) (_ []byte, err error) {
			for i := 0; i < v.Len() && err == nil; i++ {
				dst, err = element(dst, v.Index(i))
			}
			return dst, err
		}, nil
	case reflect.Struct:
		var at []int
		var parts []keyPart
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Name == "_" { // == does not look at it
				continue
			}
			part, err := newKeyPart(f.Type, strings.TrimPrefix(path+"."+f.Name, "."), visible && f.IsExported())
			if err != nil {
				return nil, err
			}
			at, parts = append(at, i), append(parts, part)
		}
		return func(dst []byte, v reflect.Value) (_ []byte, err error) {
			for i := 0; i < len(parts) && err == nil; i++ {
				dst, err = parts[i](dst, v.Field(at[i]))
			}
			return dst, err
		}, nil
	}
	return nil, fmt.Errorf("their part %s is %v; use strings, integers, bools, structs and arrays of such, and types that implement encoding.TextMarshaler", path, t)
}

// appendEscaped appends a string in which commas are told from those between parts.
func appendEscaped(dst []byte, s string) []byte {
	for i := range len(s) {
		if s[i] == ',' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return dst
}
