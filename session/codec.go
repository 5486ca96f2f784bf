package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"time"
)

// A value is stored as one byte for its Go type and then its content. Lengths
// are stored plus one, so that nil slices and maps come back as nil. The numbers
// are in Redis: never reuse or reorder them.
const (
	kindNil byte = iota + 1
	kindFalse
	kindTrue
	kindInt
	kindInt8
	kindInt16
	kindInt32
	kindInt64
	kindUint
	kindUint8
	kindUint16
	kindUint32
	kindUint64
	kindFloat32
	kindFloat64
	kindString
	kindBytes
	kindTime
	kindDuration
	kindStrings   // []string
	kindStringMap // map[string]string
	kindMap       // map[string]any
	kindList      // []any
	kindGob       // a type the app registered with gob
)

// maxDepth is how deep maps and lists may be nested. It ends the walk through a
// map that contains itself, and bounds the stack that hostile bytes can claim.
const maxDepth = 64

var (
	errDepth     = fmt.Errorf("maps and lists are nested more than %d deep", maxDepth)
	errMalformed = errors.New("malformed value")
)

// appendValue appends the encoding of v to b.
func appendValue(b []byte, v any, depth int) ([]byte, error) {
	if depth > maxDepth {
		return b, errDepth
	}
	switch v := v.(type) {
	case nil:
		return append(b, kindNil), nil
	case bool:
		if v {
			return append(b, kindTrue), nil
		}
		return append(b, kindFalse), nil
	case int:
		return binary.AppendVarint(append(b, kindInt), int64(v)), nil
	case int8:
		return binary.AppendVarint(append(b, kindInt8), int64(v)), nil
	case int16:
		return binary.AppendVarint(append(b, kindInt16), int64(v)), nil
	case int32:
		return binary.AppendVarint(append(b, kindInt32), int64(v)), nil
	case int64:
		return binary.AppendVarint(append(b, kindInt64), v), nil
	case uint:
		return binary.AppendUvarint(append(b, kindUint), uint64(v)), nil
	case uint8:
		return binary.AppendUvarint(append(b, kindUint8), uint64(v)), nil
	case uint16:
		return binary.AppendUvarint(append(b, kindUint16), uint64(v)), nil
	case uint32:
		return binary.AppendUvarint(append(b, kindUint32), uint64(v)), nil
	case uint64:
		return binary.AppendUvarint(append(b, kindUint64), v), nil
	case float32:
		return binary.LittleEndian.AppendUint32(append(b, kindFloat32), math.Float32bits(v)), nil
	case float64:
		return binary.LittleEndian.AppendUint64(append(b, kindFloat64), math.Float64bits(v)), nil
	case string:
		return appendString(append(b, kindString), v), nil
	case []byte:
		b = append(b, kindBytes)
		if v == nil {
			return append(b, 0), nil
		}
		return append(binary.AppendUvarint(b, uint64(len(v))+1), v...), nil
	case time.Time:
		return appendTime(append(b, kindTime), v), nil
	case time.Duration:
		return binary.AppendVarint(append(b, kindDuration), int64(v)), nil
	case []string:
		b = append(b, kindStrings)
		if v == nil {
			return append(b, 0), nil
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		for _, s := range v {
			b = appendString(b, s)
		}
		return b, nil
	case map[string]string:
		b = append(b, kindStringMap)
		if v == nil {
			return append(b, 0), nil
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		for k, s := range v {
			b = appendString(appendString(b, k), s)
		}
		return b, nil
	case map[string]any:
		b = append(b, kindMap)
		if v == nil {
			return append(b, 0), nil
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		var err error
		for k, e := range v {
			if b, err = appendValue(appendString(b, k), e, depth+1); err != nil {
				return b, err
			}
		}
		return b, nil
	case []any:
		b = append(b, kindList)
		if v == nil {
			return append(b, 0), nil
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		var err error
		for _, e := range v {
			if b, err = appendValue(b, e, depth+1); err != nil {
				return b, err
			}
		}
		return b, nil
	}
	if e, ok := pointee(v); ok {
		return appendValue(b, e, depth+1)
	}
	g, err := gobEncode(v)
	if err != nil {
		return b, err
	}
	return append(binary.AppendUvarint(append(b, kindGob), uint64(len(g))+1), g...), nil
}

// pointee returns what a pointer leads to if that has an encoding of its own, as which it
// comes back: gob would send it under the same name, in other bytes, and the value that
// was loaded would be taken for changed.
func pointee(v any) (any, bool) {
	e := reflect.ValueOf(v)
	for range maxDepth {
		if e.Kind() != reflect.Pointer || e.IsNil() {
			break
		}
		e = e.Elem()
	}
	switch e.Kind() {
	case reflect.Pointer, reflect.Interface:
		return nil, false
	}
	switch v := e.Interface().(type) {
	case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64,
		string, []byte, time.Time, time.Duration, []string, map[string]string, map[string]any, []any:
		return v, true
	}
	return nil, false
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))+1), s...)
}

// A time is stored as seconds and nanoseconds of the instant and, unless it is
// UTC, its zone's offset and abbreviation. The monotonic reading is left out.
func appendTime(b []byte, t time.Time) []byte {
	utc := t.Location() == time.UTC
	if utc {
		b = append(b, 0)
	} else {
		b = append(b, 1)
	}
	b = binary.AppendVarint(b, t.Unix())
	b = binary.AppendUvarint(b, uint64(t.Nanosecond()))
	if !utc {
		name, offset := t.Zone()
		b = appendString(binary.AppendVarint(b, int64(offset)), name)
	}
	return b
}

// reader takes encoded values apart. The strings it returns share the memory of
// the bytes it reads, which come from Redis and are never changed.
type reader struct {
	rest string
	used int // elements and bytes that lengths have claimed, together
	size int // of the whole; 0: rest, at the first length
	bad  bool
}

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		r.bad = true
		return 0
	}
	c := r.rest[0]
	r.rest = r.rest[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	var x uint64
	for i := 0; i < len(r.rest) && i < binary.MaxVarintLen64; i++ {
		c := r.rest[i]
		if c < 0x80 {
			if i == binary.MaxVarintLen64-1 && c > 1 {
				break
			}
			r.rest = r.rest[i+1:]
			return x | uint64(c)<<(7*i)
		}
		x |= uint64(c&0x7f) << (7 * i)
	}
	r.bad = true
	return 0
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	x := int64(u >> 1)
	if u&1 != 0 {
		x = ^x
	}
	return x
}

// length reads the length of something whose elements take at least size bytes
// each, or -1 for nil. What can't fit in the bytes that are left is refused before
// anything is allocated for it, and so are lists in lists that each claim the rest:
// each element and each byte of a string takes a byte of its own, so all lengths together
// are below the number of bytes.
func (r *reader) length(size int) int {
	u := r.uvarint()
	if r.bad || u == 0 {
		return -1
	}
	if r.size == 0 {
		r.size = len(r.rest)
	}
	if u-1 > uint64(len(r.rest)/size) || int(u-1) > r.size-r.used {
		r.bad = true
		return -1
	}
	r.used += int(u - 1)
	return int(u - 1)
}

// string reads a string or, in place of a nil slice of bytes, ok = false.
func (r *reader) string() (s string, ok bool) {
	n := r.length(1)
	if n < 0 {
		return "", false
	}
	s, r.rest = r.rest[:n], r.rest[n:]
	return s, true
}

func (r *reader) fixed(n int) string {
	if len(r.rest) < n {
		r.bad = true
		return "\x00\x00\x00\x00\x00\x00\x00\x00"[:n]
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *reader) uint32() uint32 {
	s := r.fixed(4)
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func (r *reader) uint64() uint64 {
	lo := r.uint32()
	return uint64(lo) | uint64(r.uint32())<<32
}

func (r *reader) time() time.Time {
	zoned := r.byte()
	sec, nsec := r.varint(), r.uvarint()
	if zoned > 1 || nsec >= 1e9 {
		r.bad = true
		return time.Time{}
	}
	t := time.Unix(sec, int64(nsec)).UTC()
	if zoned == 0 {
		return t
	}
	offset := r.varint()
	name, _ := r.string()
	if offset < -48*3600 || offset > 48*3600 {
		r.bad = true
		return time.Time{}
	}
	local := t.Local()
	if n, o := local.Zone(); int64(o) == offset && n == name {
		return local
	}
	return t.In(time.FixedZone(name, int(offset)))
}

// decodeValue returns the value that raw holds.
func decodeValue(raw string) (any, error) {
	r := reader{rest: raw}
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if r.bad || r.rest != "" {
		return nil, errMalformed
	}
	return v, nil
}

func (r *reader) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	var v any
	switch r.byte() {
	case kindNil:
	case kindFalse:
		v = false
	case kindTrue:
		v = true
	case kindInt:
		v = int(r.varint())
	case kindInt8:
		v = int8(r.varint())
	case kindInt16:
		v = int16(r.varint())
	case kindInt32:
		v = int32(r.varint())
	case kindInt64:
		v = r.varint()
	case kindUint:
		v = uint(r.uvarint())
	case kindUint8:
		v = uint8(r.uvarint())
	case kindUint16:
		v = uint16(r.uvarint())
	case kindUint32:
		v = uint32(r.uvarint())
	case kindUint64:
		v = r.uvarint()
	case kindFloat32:
		v = math.Float32frombits(r.uint32())
	case kindFloat64:
		v = math.Float64frombits(r.uint64())
	case kindString:
		s, _ := r.string()
		v = s
	case kindBytes:
		if s, ok := r.string(); ok {
			v = []byte(s)
		} else {
			v = []byte(nil)
		}
	case kindTime:
		v = r.time()
	case kindDuration:
		v = time.Duration(r.varint())
	case kindStrings:
		n := r.length(1)
		if n < 0 {
			v = []string(nil)
			break
		}
		list := make([]string, n)
		for i := range list {
			list[i], _ = r.string()
		}
		v = list
	case kindStringMap:
		n := r.length(2)
		if n < 0 {
			v = map[string]string(nil)
			break
		}
		m := make(map[string]string, n)
		for range n {
			k, _ := r.string()
			m[k], _ = r.string()
		}
		v = m
	case kindMap:
		n := r.length(2)
		if n < 0 {
			v = map[string]any(nil)
			break
		}
		m := make(map[string]any, n)
		for range n {
			k, _ := r.string()
			e, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			m[k] = e
		}
		v = m
	case kindList:
		n := r.length(1)
		if n < 0 {
			v = []any(nil)
			break
		}
		list := make([]any, n)
		for i := range list {
			e, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list[i] = e
		}
		v = list
	case kindGob:
		s, _ := r.string()
		if r.bad {
			return nil, errMalformed
		}
		return gobDecode(s)
	default:
		r.bad = true
	}
	if r.bad {
		return nil, errMalformed
	}
	return v, nil
}

// isScalar reports whether v is of a type whose encoding is a fixed function of
// its value and which can be a map key, so that its encoding can name a field.
func isScalar(v any) bool {
	switch v := v.(type) {
	case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, string, time.Duration:
		return true
	case float32:
		return v == v
	case float64:
		return v == v
	}
	return false
}
