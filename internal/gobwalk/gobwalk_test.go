package gobwalk

import (
	"bytes"
	"encoding/gob"
	"math"
	"runtime"
	"testing"
	"time"
)

type gobInner struct {
	N    int8
	Any  any
	M    map[string][]float64
	Next *gobInner
}

type gobAll struct {
	B     bool
	U     uint64
	F     float32
	C     complex128
	S     string
	Bytes []byte
	T     time.Time
	Arr   [3]int
	L     []gobInner
	M     map[gobKey]map[int]*gobInner
	Any   []any
	Empty struct{ X int }
}

type gobKey struct{ A, B string }

// decode is what those do who use this package.
func decode(data []byte, v any) error {
	if err := Check(data); err != nil {
		return err
	}
	return gob.NewDecoder(bytes.NewReader(data)).Decode(v)
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gobSamples(t testing.TB) (all [][]byte) {
	gob.Register(gobInner{})
	gob.Register(map[string]any{})
	gob.Register([]any{})
	gob.Register(time.Time{})
	deep := gobInner{N: -7, Any: map[string]any{"x": []any{1, "two", gobInner{Any: 3.5}, nil, time.Unix(1, 2)}}, M: map[string][]float64{"a": {1, math.Inf(1)}, "b": nil}}
	deep.Next = &gobInner{Next: &gobInner{Any: deep}}
	for _, v := range []any{
		1, int64(-1 << 62), "text", []byte("bytes"), 1.5, true, complex(1, 2), time.Now(), []string{"a", ""}, [2]uint8{1, 255},
		map[string]int{}, map[string]int{"a": 1, "b": -300}, map[gobKey]gobKey{{"a", "b"}: {"c", ""}}, deep, &deep,
		gobAll{}, gobAll{true, 1 << 63, 0.5, 1i, "s", make([]byte, 300), time.Unix(5, 6), [3]int{1, 2, 3}, []gobInner{deep, {}},
			map[gobKey]map[int]*gobInner{{"k", ""}: {1: &deep, -1: {}}}, []any{deep, nil, 1, "x", []any{deep}}, struct{ X int }{4}},
		[]any{map[string]any{"n": nil}, 1}, []gobAll{{}, {S: "x"}},
	} {
		all = append(all, encoded(t, v))
	}
	return all
}

// TestCheck: whatever package gob writes is let through.
func TestCheck(t *testing.T) {
	for i, data := range gobSamples(t) {
		if err := Check(data); err != nil {
			t.Errorf("sample %d, %d bytes: %v", i, len(data), err)
		}
		if err := Check(string(data)); err != nil {
			t.Errorf("sample %d as a string: %v", i, err)
		}
	}
}

// uints writes numbers below 128 and type ids as package gob does.
func uints(numbers ...int) (b []byte) {
	for _, n := range numbers {
		switch {
		case n >= 1<<16:
			b = append(b, 0xfc, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		case n >= 128:
			b = append(b, 0xfe, byte(n>>8), byte(n))
		default:
			b = append(b, byte(n))
		}
	}
	return b
}

func messages(all ...[]byte) (b []byte) {
	for _, m := range all {
		b = append(append(b, uints(len(m))...), m...)
	}
	return b
}

// TestFormsRefused: what no encoder writes, and what package gob would read in another way
// than the walk does, is refused. Type ids are written doubled, negative ones doubled less
// one.
func TestFormsRefused(t *testing.T) {
	const id = 65
	mapType := []byte{4, 2, 2 * idString, 1, 2 * idInt, 0, 0}           // MapT {Key, Elem}
	ownBytes := []byte{2, 1, 1, 1, 'x', 0, 0, 0}                        // after MapT: BinaryMarshalerT {CommonType {Name}}
	structOf := []byte{3, 2, 1, 1, 1, 'X', 1, 2 * idInterface, 0, 0, 0} // StructT {Field: one, X}
	define := func(id int, wire []byte) []byte { return append(uints(2*id-1), wire...) }
	empty := append(uints(2*id), 0, 0)
	for what, c := range map[string]struct {
		data []byte
		ok   bool
	}{
		"a map":                                {messages(define(id, mapType), empty), true},
		"a map that claims more than there is": {messages(define(id, mapType), append(uints(2*id, 0, 1<<27), 1, 'a', 0)), false},
		"a type of gob's own, defined":         {messages(define(idBytes, mapType), append(uints(2*id), 0, 0)), false},
		"a type defined twice":                 {messages(define(id, mapType), define(id, mapType), empty), false},
		"a type without a kind":                {messages(define(id, []byte{0}), empty), false},
		"a map that is bytes as well":          {messages(define(id, append(bytes.Clone(mapType[:6]), ownBytes...)), empty), false},
		"a struct whose interface is nil":      {messages(define(id, structOf), append(uints(2*id), 1, 0, 0)), false},
		"a struct without it":                  {messages(define(id, structOf), append(uints(2*id), 0)), true},
		"a message longer than the data":       {[]byte{0xfc, 0x3f, 0xff, 0xff, 0xff}, false},
		"a length of nine bytes":               {[]byte{0xf7, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false},
		"bytes behind the value":               {messages(define(id, mapType), append(empty, 7)), false},
	} {
		if err := Check(c.data); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBomb: a map that claims 2^20 elements in a few bytes is refused before anything
// is made for it. As a control, package gob alone takes more than a megabyte.
func TestBomb(t *testing.T) {
	good := encoded(t, map[string]int{})
	// The last message: its length, type (2 bytes), 0, and the count 0.
	bomb := bytes.Clone(good[:len(good)-1])
	bomb[len(bomb)-4] += 3
	bomb = append(bomb, 0xFD, 0x10, 0, 0)
	taken := func(decode func([]byte, any) error) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var v map[string]int
		if err := decode(bomb, &v); err == nil {
			t.Error("decoded without an error")
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	alone := taken(func(b []byte, v any) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(v) })
	if alone < 1<<20 {
		t.Errorf("package gob alone takes %d bytes; this is no bomb", alone)
	}
	if n := taken(decode); n > 1<<20 {
		t.Errorf("%d bytes for an entry of %d", n, len(bomb))
	}
}

// FuzzCheck: no input makes the walk panic, and what it lets through is decoded within
// a budget.
func FuzzCheck(f *testing.F) {
	for _, data := range gobSamples(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 || Check(data) != nil {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var v gobAll
		_ = decode(data, &v)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
			t.Errorf("%d bytes for %d of input", n, len(data))
		}
	})
}
