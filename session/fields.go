package session

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Names of hash fields. Those of one byte are about the session itself, the
// others start with one of the next group and hold a value of Values.
const (
	fieldMeta  = "m" // "created,absolute,idle,seen,maxage", see meta
	fieldUser  = "u" // the user the session is bound to
	fieldLabel = "l" // what Config.Label returned
	fieldBond  = "e" // of encrypted values, see bond
	fieldNext  = "n" // alone at the key of an id that another one has superseded: its hash

	prefixString = 's' // + key: Values[key] for a string key
	prefixItem   = 'f' // + key + itemSuffix: one element of a []any, such as a flash
	prefixKey    = 'k' // + encoded key: a key of another basic type
	prefixGob    = 'g' // + gob of the key: a key of a named basic type
	prefixOther  = 'o' // (+ itemSuffix): all entries with other keys, as one gob map
)

// itemSuffix is how many bytes at the end of an item's field name order it among
// the others of its list: 8 for time and sequence, 4 against collisions.
const itemSuffix = 12

var itemClock atomic.Uint64

// newItemSuffix returns a suffix that sorts behind all that this process made
// before, and behind those of others as far as the clocks agree.
func newItemSuffix() string {
	var b [itemSuffix]byte
	for {
		last := itemClock.Load()
		next := max(uint64(time.Now().UnixMicro())<<8, last+1)
		if itemClock.CompareAndSwap(last, next) {
			binary.BigEndian.PutUint64(b[:], next)
			break
		}
	}
	rand.Read(b[8:])
	return string(b[:])
}

// fieldName returns the name of the field for Values[key]. other is true for a
// key that has no field of its own.
func fieldName(key any) (name string, other bool, err error) {
	if s, ok := key.(string); ok {
		return string(prefixString) + s, false, nil
	}
	if isScalar(key) {
		b, err := appendValue([]byte{prefixKey}, key, 0)
		return string(b), false, err
	}
	if key == nil {
		return "", false, fmt.Errorf("%w: nil as a key", ErrUnsupported)
	}
	switch reflect.TypeOf(key).Kind() {
	case reflect.Bool, reflect.String,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		// gob writes such a type as its registered name and the basic type's
		// fixed number, so the bytes are the same in every process.
		g, err := gobEncode(key)
		if err != nil {
			return "", false, err
		}
		return string(prefixGob) + string(g), false, nil
	}
	if f := reflect.ValueOf(key); f.CanFloat() && f.Float() != f.Float() {
		return "", false, fmt.Errorf("%w: NaN as a key", ErrUnsupported)
	}
	return "", true, nil
}

// fieldKey is the opposite of fieldName, for names that start with prefixString,
// prefixKey or prefixGob.
func fieldKey(name string) (any, error) {
	if key, ok := knownKeys.get(name); ok {
		return key, nil
	}
	switch name[0] {
	case prefixString:
		return knownKeys.remember(name, strings.Clone(name[1:])), nil
	case prefixKey:
		key, err := decodeValue(name[1:])
		if err == nil && !isScalar(key) {
			err = errMalformed
		}
		return key, err
	case prefixGob:
		key, err := gobDecode(name[1:])
		if err == nil && (key == nil || !reflect.TypeOf(key).Comparable()) {
			err = errMalformed
		}
		if err != nil {
			return nil, err
		}
		return knownKeys.remember(name, key), nil
	}
	return nil, errMalformed
}

// knownKeys keeps decoded keys by the names of their fields, so that the few that
// an app uses are decoded and allocated once. What hostile data adds is bounded.
var knownKeys keyCache

type keyCache struct {
	m  atomic.Pointer[map[string]any] // replaced as a whole
	mu sync.Mutex
}

const maxKnownKeys = 512

func (c *keyCache) get(name string) (key any, ok bool) {
	if m := c.m.Load(); m != nil {
		key, ok = (*m)[name]
	}
	return key, ok
}

func (c *keyCache) remember(name string, key any) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[string]any)
	if m := c.m.Load(); m != nil {
		if len(*m) >= maxKnownKeys || len(name) > 128 {
			return key
		}
		maps.Copy(next, *m)
	}
	next[strings.Clone(name)] = key
	c.m.Store(&next)
	return key
}
