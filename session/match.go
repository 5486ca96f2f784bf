package session

import (
	"math"
	"reflect"
	"time"
)

// matches reports whether raw is an encoding of v. It is how a save finds out what
// changed: values are compared with the bytes that were loaded, so that a map,
// slice or pointer that was changed in place is noticed, while nothing is
// allocated for the types with a native encoding. Encodings of maps and of gob
// values differ between runs and processes, so bytes are never compared as such.
func matches(raw string, v any) bool {
	r := reader{rest: raw}
	return r.match(v, 0) && !r.bad && r.rest == ""
}

func (r *reader) match(v any, depth int) bool {
	if depth > maxDepth {
		return false
	}
	start := r.rest
	kind := r.byte()
	switch v := v.(type) {
	case nil:
		return kind == kindNil
	case bool:
		return v && kind == kindTrue || !v && kind == kindFalse
	case int:
		return kind == kindInt && r.varint() == int64(v)
	case int8:
		return kind == kindInt8 && r.varint() == int64(v)
	case int16:
		return kind == kindInt16 && r.varint() == int64(v)
	case int32:
		return kind == kindInt32 && r.varint() == int64(v)
	case int64:
		return kind == kindInt64 && r.varint() == v
	case uint:
		return kind == kindUint && r.uvarint() == uint64(v)
	case uint8:
		return kind == kindUint8 && r.uvarint() == uint64(v)
	case uint16:
		return kind == kindUint16 && r.uvarint() == uint64(v)
	case uint32:
		return kind == kindUint32 && r.uvarint() == uint64(v)
	case uint64:
		return kind == kindUint64 && r.uvarint() == v
	case float32:
		return kind == kindFloat32 && r.uint32() == math.Float32bits(v)
	case float64:
		return kind == kindFloat64 && r.uint64() == math.Float64bits(v)
	case string:
		return kind == kindString && r.matchString(v)
	case []byte:
		if kind != kindBytes {
			return false
		}
		s, ok := r.string()
		return ok == (v != nil) && s == string(v)
	case time.Time:
		return kind == kindTime && sameTime(r.time(), v)
	case time.Duration:
		return kind == kindDuration && r.varint() == int64(v)
	case []string:
		if kind != kindStrings || !r.matchLength(len(v), v == nil, 1) {
			return false
		}
		for _, s := range v {
			if !r.matchString(s) {
				return false
			}
		}
		return true
	case map[string]string:
		if kind != kindStringMap || !r.matchLength(len(v), v == nil, 2) {
			return false
		}
		for range len(v) {
			k, _ := r.string()
			s, ok := v[k]
			if !ok || !r.matchString(s) {
				return false
			}
		}
		return true
	case map[string]any:
		if kind != kindMap || !r.matchLength(len(v), v == nil, 2) {
			return false
		}
		for range len(v) {
			k, _ := r.string()
			e, ok := v[k]
			if !ok || !r.match(e, depth+1) {
				return false
			}
		}
		return true
	case []any:
		if kind != kindList || !r.matchLength(len(v), v == nil, 1) {
			return false
		}
		for _, e := range v {
			if !r.match(e, depth+1) {
				return false
			}
		}
		return true
	}
	if kind != kindGob {
		e, ok := pointee(v)
		if !ok {
			return false
		}
		r.rest = start
		return r.match(e, depth+1)
	}
	s, _ := r.string()
	if r.bad {
		return false
	}
	was, err := gobDecode(s)
	if err != nil {
		return false
	}
	if reflect.DeepEqual(was, v) {
		return true
	}
	// A pointer to a type that is registered as a value comes back as the value.
	p := reflect.ValueOf(v)
	return p.Kind() == reflect.Pointer && !p.IsNil() && reflect.DeepEqual(was, p.Elem().Interface())
}

func (r *reader) matchString(v string) bool {
	s, _ := r.string()
	return s == v && !r.bad
}

func (r *reader) matchLength(n int, isNil bool, size int) bool {
	if isNil {
		n = -1
	}
	return r.length(size) == n && !r.bad
}

// sameTime reports whether a and b are encoded alike: the same instant on the
// same clock face.
func sameTime(a, b time.Time) bool {
	if !a.Equal(b) || (a.Location() == time.UTC) != (b.Location() == time.UTC) {
		return false
	}
	an, ao := a.Zone()
	bn, bo := b.Zone()
	return an == bn && ao == bo
}
