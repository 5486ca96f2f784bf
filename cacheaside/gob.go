package cacheaside

import (
	"errors"
	"math"
)

// errGobClaims says that a gob claims more than its bytes can hold. Package gob makes
// maps of whatever size they claim, so 80 bytes could take gigabytes.
var errGobClaims = errors.New("gob claims more elements than its bytes can hold")

var errGobForm = errors.New("gob is not of a known form")

// checkGob walks over a gob, by its own type definitions, and refuses it if the count
// of a map, slice or array is more than the bytes that are left. Source: package
// encoding/gob, "Encoding Details".
func checkGob(data []byte) (err error) {
	g := &gobWalk{rest: data, types: map[int64]gobType{}}
	defer func() {
		if value := recover(); value != nil {
			var ok bool
			if err, ok = value.(gobError); !ok {
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
			g.fail(errGobForm)
		}
	}
	return nil
}

// gobError is how the walk ends early.
type gobError struct{ error }

func (e gobError) Unwrap() error { return e.error }

type gobWalk struct {
	rest  []byte // messages to come
	buf   []byte // of the present one
	types map[int64]gobType
}

// gobType is a type that a gob defines.
type gobType struct {
	kind   byte  // 'l' list, 'm' map, 's' struct, 'b' bytes
	key    int64 // of maps
	elem   int64 // of lists and maps
	fields []int64
}

const (
	gobBool = 1 + iota
	gobInt
	gobUint
	gobFloat
	gobBytes
	gobString
	gobComplex
	gobInterface
)

// maxGobDepth bounds the recursion.
const maxGobDepth = 1000

func (g *gobWalk) fail(err error) { panic(gobError{err}) }

// message makes the next message the present one.
func (g *gobWalk) message() {
	g.buf, g.rest = g.rest, nil
	n := g.uint()
	if n > uint64(len(g.buf)) {
		g.fail(errGobForm)
	}
	g.buf, g.rest = g.buf[:n:n], g.buf[n:]
}

func (g *gobWalk) uint() (n uint64) {
	if len(g.buf) == 0 {
		g.fail(errGobForm)
	}
	b := g.buf[0]
	g.buf = g.buf[1:]
	if b < 128 {
		return uint64(b)
	}
	size := -int(int8(b))
	if size > 8 || size > len(g.buf) {
		g.fail(errGobForm)
	}
	for _, b := range g.buf[:size] {
		n = n<<8 | uint64(b)
	}
	g.buf = g.buf[size:]
	return n
}

func (g *gobWalk) int() int64 {
	u := g.uint()
	if u&1 != 0 {
		return ^int64(u >> 1)
	}
	return int64(u >> 1)
}

func (g *gobWalk) skip() {
	n := g.uint()
	if n > uint64(len(g.buf)) {
		g.fail(errGobClaims)
	}
	g.buf = g.buf[n:]
}

// count reads how many elements follow, each of at least so many bytes.
func (g *gobWalk) count(bytes uint64) uint64 {
	n := g.uint()
	if n > uint64(len(g.buf)+len(g.rest))/bytes {
		g.fail(errGobClaims)
	}
	return n
}

// typeID reads type definitions, and returns the type of the value that follows, 0 if
// none does.
func (g *gobWalk) typeID(inInterface bool) int64 {
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
		if id == math.MinInt64 {
			g.fail(errGobForm)
		}
		g.define(-id)
		if len(g.buf) > 0 {
			if !inInterface {
				g.fail(errGobForm)
			}
			g.uint() // the size of what follows
		}
	}
}

// structure reads a struct of the definition of a type.
func (g *gobWalk) structure(field func(n uint64)) {
	for n := uint64(0); ; {
		delta := g.uint()
		if delta == 0 {
			return
		}
		if n += delta; n > 16 {
			g.fail(errGobForm)
		}
		field(n)
	}
}

// define reads the definition of a type, a wireType of package gob.
func (g *gobWalk) define(id int64) {
	var t gobType
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
		t = gobType{kind: " llsmbbb"[min(kind, 7)]}
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
	g.types[id] = t
}

// value walks over a value that stands alone: in a message, or in an interface.
func (g *gobWalk) value(id int64, depth int) {
	if g.types[id].kind != 's' {
		if g.uint() != 0 {
			g.fail(errGobForm)
		}
	}
	g.walk(id, depth)
}

func (g *gobWalk) walk(id int64, depth int) {
	if depth > maxGobDepth {
		g.fail(errGobForm)
	}
	switch id {
	case gobBool, gobInt, gobUint, gobFloat:
		g.uint()
		return
	case gobComplex:
		g.uint()
		g.uint()
		return
	case gobBytes, gobString:
		g.skip()
		return
	case gobInterface:
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
				g.fail(errGobForm)
			}
			n += delta
			g.walk(t.fields[n-1], depth+1)
		}
	default:
		g.fail(errGobForm)
	}
}
