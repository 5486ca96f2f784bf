// Package gobwalk looks through a gob before package encoding/gob decodes it.
package gobwalk

import (
	"errors"
	"math"
)

// errClaims says that a gob claims more than its bytes can hold. Package gob makes
// maps of whatever size they claim, so 80 bytes could take gigabytes.
var errClaims = errors.New("gob claims more elements than its bytes can hold")

var errForm = errors.New("gob is not of a known form")

// Check walks over a gob, by its own type definitions, and refuses it if the count of a map,
// slice or array is more than the bytes that are left, so that all counts together are no
// more than there are bytes. It allocates for the type definitions only. Source: package
// encoding/gob, "Encoding Details".
//
// A struct may have fields that the Go type which receives it lacks. What they hold package
// gob skips in a way of its own, which goes wrong where an interface in it is nil or is the
// first of its type. So crafted data can still claim more, if the program has registered a
// struct, or decodes into one.
func Check[T string | []byte](data T) (err error) {
	g := &walker[T]{rest: data, types: map[int64]wireType{}}
	defer func() {
		if value := recover(); value != nil {
			var ok bool
			if err, ok = value.(failure); !ok {
				panic(value)
			}
			err = errors.Unwrap(err)
		}
	}()
	for len(g.rest) > 0 {
		g.message()
		if id := g.typeID(false); id != 0 {
			g.value(id, 0)
		}
		if len(g.buf) > 0 {
			g.fail(errForm)
		}
	}
	return nil
}

// failure is how the walk ends early.
type failure struct{ error }

func (e failure) Unwrap() error { return e.error }

type walker[T string | []byte] struct {
	rest  T // messages to come
	buf   T // of the present one
	types map[int64]wireType
}

// wireType is a type that a gob defines.
type wireType struct {
	kind   byte  // 'l' list, 'm' map, 's' struct, 'b' bytes
	key    int64 // of maps
	elem   int64 // of lists and maps
	fields []int64
}

const (
	idBool = 1 + iota
	idInt
	idUint
	idFloat
	idBytes
	idString
	idComplex
	idInterface
)

// firstOwnID is the first id that a gob may define. Below are those of package gob.
const firstOwnID = 64

// maxDepth bounds the recursion.
const maxDepth = 1000

func (g *walker[T]) fail(err error) { panic(failure{err}) }

// message makes the next message the present one.
func (g *walker[T]) message() {
	g.buf, g.rest = g.rest, g.rest[:0]
	n := g.uint()
	if n > uint64(len(g.buf)) {
		g.fail(errForm)
	}
	g.buf, g.rest = g.buf[:n], g.buf[n:]
}

func (g *walker[T]) uint() (n uint64) {
	if len(g.buf) == 0 {
		g.fail(errForm)
	}
	b := g.buf[0]
	g.buf = g.buf[1:]
	if b < 128 {
		return uint64(b)
	}
	size := -int(int8(b))
	if size > 8 || size > len(g.buf) {
		g.fail(errForm)
	}
	for i := range size {
		n = n<<8 | uint64(g.buf[i])
	}
	g.buf = g.buf[size:]
	return n
}

func (g *walker[T]) int() int64 {
	u := g.uint()
	if u&1 != 0 {
		return ^int64(u >> 1)
	}
	return int64(u >> 1)
}

func (g *walker[T]) skip() {
	n := g.uint()
	if n > uint64(len(g.buf)) {
		g.fail(errClaims)
	}
	g.buf = g.buf[n:]
}

// count reads how many elements follow, each of at least so many bytes.
func (g *walker[T]) count(bytes uint64) uint64 {
	n := g.uint()
	if n > uint64(len(g.buf)+len(g.rest))/bytes {
		g.fail(errClaims)
	}
	return n
}

// typeID reads type definitions, and returns the type of the value that follows, 0 if
// none does.
func (g *walker[T]) typeID(inInterface bool) int64 {
	for {
		if len(g.buf) == 0 {
			if len(g.rest) == 0 {
				return 0
			}
			g.message()
		}
		id := g.int()
		if id >= 0 {
			return id
		}
		if id > -firstOwnID || id == math.MinInt64 {
			g.fail(errForm)
		}
		g.define(-id)
		if len(g.buf) > 0 {
			if !inInterface {
				g.fail(errForm)
			}
			g.uint() // the size of what follows
		}
	}
}

// structure reads a struct of the definition of a type.
func (g *walker[T]) structure(field func(n uint64)) {
	for n := uint64(0); ; {
		delta := g.uint()
		if delta == 0 {
			return
		}
		if n += delta; n > 16 {
			g.fail(errForm)
		}
		field(n)
	}
}

// define reads the definition of a type, a wireType of package gob.
func (g *walker[T]) define(id int64) {
	var t wireType
	common := func() {
		g.structure(func(n uint64) {
			if n == 1 {
				g.skip() // the name
			} else {
				g.int()
			}
		})
	}
	g.structure(func(kind uint64) {
		if t.kind != 0 {
			g.fail(errForm) // of two kinds: package gob would choose by the type that receives it
		}
		t = wireType{kind: " llsmbbb"[min(kind, 7)]}
		g.structure(func(n uint64) {
			switch {
			case n == 1:
				common()
			case kind == 3: // the fields of a struct
				for range g.count(1) {
					var field int64
					g.structure(func(n uint64) {
						if n == 1 {
							g.skip()
						} else {
							field = g.int()
						}
					})
					t.fields = append(t.fields, field)
				}
			case kind == 4 && n == 2:
				t.key = g.int()
			case n == 2 || n == 3 && kind == 4:
				t.elem = g.int()
			default: // the length of an array
				g.int()
			}
		})
	})
	if _, twice := g.types[id]; twice || t.kind == 0 {
		g.fail(errForm)
	}
	g.types[id] = t
}

// value walks over a value that stands alone: in a message, or in an interface.
func (g *walker[T]) value(id int64, depth int) {
	if g.types[id].kind != 's' {
		if g.uint() != 0 {
			g.fail(errForm)
		}
	}
	g.walk(id, depth)
}

func (g *walker[T]) walk(id int64, depth int) {
	if depth > maxDepth {
		g.fail(errForm)
	}
	switch id {
	case idBool, idInt, idUint, idFloat:
		g.uint()
		return
	case idComplex:
		g.uint()
		g.uint()
		return
	case idBytes, idString:
		g.skip()
		return
	case idInterface:
		before := len(g.buf)
		g.skip() // the name of its type
		if before-len(g.buf) == 1 {
			return // nil
		}
		id := g.typeID(true)
		g.uint() // the size of what follows
		g.value(id, depth+1)
		return
	}
	t := g.types[id]
	switch t.kind {
	case 'b':
		g.skip()
	case 'l':
		for range g.count(1) {
			g.walk(t.elem, depth+1)
		}
	case 'm':
		for range g.count(2) {
			g.walk(t.key, depth+1)
			g.walk(t.elem, depth+1)
		}
	case 's':
		for n := uint64(0); ; {
			delta := g.uint()
			if delta == 0 {
				return
			}
			if delta > uint64(len(t.fields))-n {
				g.fail(errForm)
			}
			n += delta
			if t.fields[n-1] == idInterface && len(g.buf) > 0 && g.buf[0] == 0 {
				g.fail(errForm) // a nil one is left out
			}
			g.walk(t.fields[n-1], depth+1)
		}
	default:
		g.fail(errForm)
	}
}
