package cacheaside

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

// TestCheckGob: whatever package gob writes is let through.
func TestCheckGob(t *testing.T) {
	for i, data := range gobSamples(t) {
		if err := checkGob(data); err != nil {
			t.Errorf("sample %d, %d bytes: %v", i, len(data), err)
		}
	}
}

// TestGobBomb: a map that claims 2^20 elements in a few bytes is refused before anything
// is made for it. As a control, package gob alone takes more than a megabyte.
func TestGobBomb(t *testing.T) {
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
	if n := taken(Gob.Unmarshal); n > 1<<20 {
		t.Errorf("%d bytes for an entry of %d", n, len(bomb))
	}
}

// FuzzCheckGob: no input makes the walk panic, and what it lets through is decoded within
// a budget.
func FuzzCheckGob(f *testing.F) {
	for _, data := range gobSamples(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 || checkGob(data) != nil {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var v gobAll
		_ = Gob.Unmarshal(data, &v)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
			t.Errorf("%d bytes for %d of input", n, len(data))
		}
	})
}
