package session

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

type point struct{ X, Y int }

func init() { gob.Register(&point{}); gob.Register(map[int]string{}) }

func samples() []any {
	zone := time.FixedZone("CEST", 7200)
	return []any{
		nil, true, false, 0, -1, math.MinInt, math.MaxInt, int8(-128), int16(-3), int32(7), int64(math.MinInt64),
		uint(3), uint8(255), uint16(9), uint32(9), uint64(math.MaxUint64), float32(1.5), math.Inf(-1), 0.1,
		"", "hello", "\x00\xff", []byte{}, []byte(nil), []byte("b"),
		time.Time{}, time.Unix(1, 999999999).UTC(), time.Date(2026, 7, 1, 12, 0, 0, 5, zone), time.Duration(-5),
		[]string{}, []string(nil), []string{"a", ""}, map[string]string{}, map[string]string(nil), map[string]string{"a": "b", "": "c"},
		map[string]any(nil), map[string]any{"list": []any{1, "two", nil, map[string]any{"deep": uint8(3)}}, "p": &point{1, 2}},
		[]any(nil), []any{}, []any{[]any{}}, &point{3, 4}, map[int]string{1: "x"}, []int{1, 2}, complex(1, 2),
	}
}

func TestCodecKeepsTypesExactly(t *testing.T) {
	for _, v := range samples() {
		b, err := appendValue(nil, v, 0)
		if err != nil {
			t.Errorf("encode %#v: %v", v, err)
			continue
		}
		got, err := decodeValue(string(b))
		if err != nil || !reflect.DeepEqual(got, v) && !alike(got, v) {
			t.Errorf("decode(encode(%#v)) = %#v, %v", v, got, err)
		}
		if !matches(string(b), v) {
			t.Errorf("matches(encode(%#v)) = false", v)
		}
		for _, other := range samples() {
			if !reflect.DeepEqual(other, v) && matches(string(b), other) {
				t.Errorf("encode(%#v) matches %#v", v, other)
			}
		}
	}
}

// alike compares times, whose zones are distinct pointers.
func alike(a, b any) bool {
	x, ok := a.(time.Time)
	y, ok2 := b.(time.Time)
	return ok && ok2 && sameTime(x, y)
}

func TestTimeKeepsClockAndDropsMonotonic(t *testing.T) {
	now := time.Now()
	b, _ := appendValue(nil, now, 0)
	v, _ := decodeValue(string(b))
	got := v.(time.Time)
	if !got.Equal(now) || got.Location() != time.Local || strings.Contains(got.String(), "m=") {
		t.Errorf("%v came back as %v; want the same instant, local, without monotonic reading", now, got)
	}
	if !matches(string(b), now) {
		t.Error("a monotonic reading makes a time differ")
	}
}

// Changes in place are noticed, and equal values from another process are not.
func TestMatchesSeesChangesInPlace(t *testing.T) {
	p := &point{1, 2}
	m := map[string]any{"a": []any{1, []string{"x"}}, "p": p}
	b, err := appendValue(nil, m, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 { // maps are walked in another order each time
		if !matches(string(b), m) {
			t.Fatalf("run %d: an unchanged value does not match", i)
		}
	}
	for name, change := range map[string]func(undo bool){
		"pointer": func(undo bool) { p.Y = map[bool]int{true: 2, false: 9}[undo] },
		"slice":   func(undo bool) { m["a"].([]any)[1].([]string)[0] = map[bool]string{true: "x", false: "y"}[undo] },
		"map": func(undo bool) {
			if m["b"] = 1; undo {
				delete(m, "b")
			}
		},
	} {
		if change(false); matches(string(b), m) {
			t.Errorf("a change of a %s in place goes unnoticed", name)
		}
		if change(true); !matches(string(b), m) {
			t.Errorf("after undoing the change of the %s the value still differs", name)
		}
	}
}

func TestEncodeRefusesWhatItCannotStore(t *testing.T) {
	loop := map[string]any{}
	loop["self"] = loop
	var nilPoint *point
	for _, v := range []any{loop, make(chan int), func() {}, nilPoint, struct{ A int }{1}} {
		if _, err := appendValue(nil, v, 0); err == nil {
			t.Errorf("encode %T = nil error; want one", v)
		}
	}
}

type named string
type number int

func init() { gob.Register(named("")); gob.Register(number(0)) }

func TestFieldNamesRoundTrip(t *testing.T) {
	for _, key := range []any{"", "a", "\x00", 1, int64(1), uint8(1), true, 1.5, time.Second, named("x"), number(7)} {
		for range 2 { // the second time from memory
			name, other, err := fieldName(key)
			if err != nil || other {
				t.Fatalf("fieldName(%#v) = other %v, %v", key, other, err)
			}
			if got, err := fieldKey(name); err != nil || got != key {
				t.Errorf("fieldKey(fieldName(%#v)) = %#v, %v", key, got, err)
			}
		}
	}
	if _, other, err := fieldName(point{1, 2}); !other || err != nil {
		t.Errorf("fieldName(struct) = other %v, %v; want true", other, err)
	}
	if _, _, err := fieldName(math.NaN()); err == nil {
		t.Error("fieldName(NaN) = nil error; want one, as it can never be found again")
	}
}

// A gob that claims more than it holds is refused before package gob allocates for it: a
// message longer than the data, and a map, in an app that registered no type, of more entries
// than there are bytes. Package gob alone allocates for the map, as a control.
func TestGobClaimsNoMoreThanThereIs(t *testing.T) {
	for _, v := range []any{&point{1, 2}, map[int]string{1: strings.Repeat("x", 300)}, []int{1, 2}, map[any]any{point{1, 2}: map[any]any{nil: nil}}} {
		b, err := gobEncode(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gobDecode(string(b)); err != nil {
			t.Errorf("the gob of a %T is refused: %v", v, err)
		}
		for n := 1; n < len(b); n++ {
			if _, err := gobDecode(string(b[:n])); err == nil {
				t.Errorf("the first %d of %d bytes of a %T decode", n, len(b), v)
			}
		}
	}
	allocated := func(decode func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		decode()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	// The last message of an empty map: its length, the type's number, the length of the value,
	// 0, and the count.
	b, err := gobEncode(map[any]any{})
	if err != nil {
		t.Fatal(err)
	}
	last := len(b) - 1
	for last -= 4; int(b[last]) != len(b)-last-1; last-- {
	}
	bomb := append(bytes.Clone(b[:len(b)-3]), 6, 0, 0xfc, 0, 0x10, 0, 0) // 2^20 entries
	bomb[last] += 4
	if n := allocated(func() {
		var v any
		_ = gob.NewDecoder(bytes.NewReader(bomb)).Decode(&v)
	}); n < 8<<20 {
		t.Errorf("package gob alone allocates %d bytes: this is no bomb", n)
	}
	for _, s := range []string{string(bomb), "\x02\x00", "\xfc\x3f\xff\xff\xff", "\xf8\xff\xff\xff\xff\xff\xff\xff\xff", "\xf7\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xfc\x00"} {
		var v any
		var err error
		if n := allocated(func() { v, err = gobDecode(s) }); err == nil || n > 1<<20 {
			t.Errorf("gobDecode(%q) = %v, %v with %d bytes allocated; want an error and few", s, v, err, n)
		}
	}
}

// Lists in lists that each claim the rest of the bytes are refused before anything is
// allocated for them: all elements together are no more than there are bytes.
func TestNestedListsClaimNoMoreThanThereIs(t *testing.T) {
	for _, kind := range []byte{kindList, kindMap, kindStrings} {
		var b []byte
		const size = 1 << 20
		for range maxDepth - 1 {
			b = append(b, kindList)
			b = binary.AppendUvarint(b, uint64(size-len(b)-200))
		}
		b = append(b, kind)
		b = binary.AppendUvarint(b, uint64(size/2-len(b)-200))
		b = append(b, make([]byte, size-len(b))...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := decodeValue(string(b))
		runtime.ReadMemStats(&after)
		if spent := after.TotalAlloc - before.TotalAlloc; err == nil || spent > 20*size {
			t.Errorf("kind %d: %T, %v, and %d bytes allocated for %d; want an error and at most 20 times as many", kind, v, err, spent, size)
		}
	}
}

// Arbitrary bytes from Redis neither panic nor make the decoder, gob included, allocate
// without bound.
func FuzzDecode(f *testing.F) {
	for _, v := range samples() {
		if b, err := appendValue(nil, v, 0); err == nil {
			f.Add(string(b))
		}
	}
	f.Add(strings.Repeat("\x17\x02", 100))
	f.Add("\x14\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
	f.Fuzz(func(t *testing.T, raw string) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := decodeValue(raw)
		runtime.ReadMemStats(&after)
		// 200 bytes for each byte of input covers a map's entry of two bytes.
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20+uint64(len(raw))*200 {
			t.Fatalf("decoding %d bytes allocated %d", len(raw), spent)
		}
		matches(raw, v)
		if err != nil {
			return
		}
		// What was decoded can be stored again as the same.
		b, err := appendValue(nil, v, 0)
		if err != nil {
			t.Fatalf("encode(decode(%q)) = %v", raw, err)
		}
		again, err := decodeValue(string(b))
		if err != nil || fmt.Sprintf("%#v", again) != fmt.Sprintf("%#v", v) && !matches(string(b), v) {
			t.Fatalf("%q: %#v became %#v, %v", raw, v, again, err)
		}
	})
}

func FuzzField(f *testing.F) {
	for _, key := range []any{"", "a", 1, true, 1.5, named("x")} {
		name, _, _ := fieldName(key)
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" {
			return
		}
		key, err := fieldKey(name)
		if err != nil {
			return
		}
		_ = map[any]bool{key: true} // must be hashable
	})
}

// The cookie parser agrees with net/http's.
func FuzzCookieValues(f *testing.F) {
	f.Add("s", "a=b; s=1; s=\"2\";s = 3; S=4; s=5")
	f.Add("s", ";;; s; s=; s==; s=\"")
	f.Add("__Host-sid", " __Host-sid=abc\t;x")
	f.Fuzz(func(t *testing.T, name, line string) {
		r := &http.Request{Header: http.Header{"Cookie": {line, "s=second"}}}
		var want, got []string
		for _, c := range r.CookiesNamed(name) {
			want = append(want, c.Value)
		}
		cookieValues(r.Header, name, func(v string) bool {
			got = append(got, v)
			return true
		})
		if (&http.Cookie{Name: name, Value: "x"}).String() == "" {
			return // no name that net/http would send
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("cookieValues(%q, %q) = %q; net/http says %q", line, name, got, want)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	key := make([]byte, 32) // of each fuzzing process its own, so seeds are forgeries there
	rand.Read(key)
	st := &Store{macs: []*signer{newSigner(key)}}
	st.settings.Store(&settings{home: home{prefix: "p:"}})
	tok, _ := st.newToken("s", "")
	f.Add(tok.cookie)
	f.Add(strings.Repeat("A", tokenLen))
	f.Fuzz(func(t *testing.T, value string) {
		if got, ok := st.parseToken("s", value); ok && got.id != tok.id {
			t.Fatalf("parseToken(%q) accepts what was never issued", value)
		}
	})
}

func FuzzParseMeta(f *testing.F) {
	f.Add("1,2,3,4,-1")
	f.Fuzz(func(t *testing.T, s string) {
		if m, ok := parseMeta(s); ok {
			if back := fmt.Sprintf("%d,%d,%d,%d,%d", m.created, m.absolute, m.idle, m.seen, m.maxAge); len(back) > len(s) {
				t.Fatalf("parseMeta(%q) = %+v", s, m)
			}
		}
	})
}
