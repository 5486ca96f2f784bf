package cacheaside

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
)

func sampleEntry() entry {
	e := entry{prefix: newPrefix(kindValue), kind: kindValue, written: 1_790_000_000_000, fresh: 60_000, delta: 12, codec: 7,
		version: 1 << 60, payload: []byte("payload")}
	for _, tag := range []string{"a", "b"} {
		v := tagVersion{hash: tagHash(tag)}
		copy(v.version[:], "0123456789abcdef")
		e.tags = append(e.tags, v)
	}
	return e
}

func TestEntryRoundTrip(t *testing.T) {
	for _, change := range []func(*entry){
		func(*entry) {},
		func(e *entry) { e.version = 0 },
		func(e *entry) { e.tags = nil },
		func(e *entry) { e.version, e.tags, e.payload = 0, nil, []byte{} },
		func(e *entry) { e.kind, e.prefix, e.payload = kindNegative, newPrefix(kindNegative), []byte{} },
		func(e *entry) { e.flags = flagCompressed },
	} {
		want := sampleEntry()
		change(&want)
		blob := appendEntry(nil, "key", &want)
		copy(blob[offClaim:], "1790000000123") // somebody refreshes: no damage
		var got entry
		if err := parseEntry(&got, "key", blob); err != nil {
			t.Errorf("parseEntry: %v", err)
			continue
		}
		got.flags &= flagCompressed
		if !reflect.DeepEqual(got, want) {
			t.Errorf("parseEntry = %+v; want %+v", got, want)
		}
		if err := parseEntry(&got, "another key", blob); err == nil {
			t.Error("an entry of another key was accepted")
		}
	}
}

// TestEntryDamage flips each bit and cuts at each length.
func TestEntryDamage(t *testing.T) {
	e := sampleEntry()
	blob := appendEntry(nil, "key", &e)
	for i := range blob {
		if i >= offClaim && i < offWritten {
			continue
		}
		for bit := range 8 {
			bad := bytes.Clone(blob)
			bad[i] ^= 1 << bit
			var got entry
			if err := parseEntry(&got, "key", bad); err == nil {
				t.Errorf("bit %d of byte %d flipped: accepted", bit, i)
			}
		}
		var got entry
		if err := parseEntry(&got, "key", blob[:i]); err == nil {
			t.Errorf("cut to %d bytes: accepted", i)
		}
	}
}

func FuzzEntry(f *testing.F) {
	e := sampleEntry()
	f.Add("key", appendEntry(nil, "key", &e), true)
	f.Add("", []byte("Vshort"), false)
	f.Add("k", []byte{}, false)
	p := packer{codec: JSON, id: 7, maxValue: 1 << 10, compressOver: 10}
	f.Fuzz(func(t *testing.T, key string, blob []byte, seal bool) {
		if seal && len(blob) >= minEntry { // get past the checksum
			blob = bytes.Clone(blob)
			blob = appendSum(blob[:len(blob)-sumSize], key)
		}
		var e entry
		if err := parseEntry(&e, key, blob); err != nil {
			return
		}
		var v any
		_ = p.unpack(&e, &v)
		again := appendEntry(nil, key, &e)
		var e2 entry
		if err := parseEntry(&e2, key, again); err != nil {
			t.Fatalf("what was read can't be written and read again: %v", err)
		}
		if e.version != e2.version || !bytes.Equal(e.payload, e2.payload) || e.expires() != e2.expires() || len(e.tags) != len(e2.tags) {
			t.Fatalf("changed from %+v to %+v", e, e2)
		}
	})
}

func appendSum(body []byte, key string) []byte {
	sum := checksum(key, body)
	return append(body, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"a":1}`), false)
	f.Add(s2.Encode(nil, []byte(strings.Repeat("x", 5000))), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, true)
	p := packer{codec: JSON, id: 7, maxValue: 1 << 12, compressOver: 10}
	f.Fuzz(func(t *testing.T, payload []byte, compressed bool) {
		e := entry{codec: 7, payload: payload}
		if compressed {
			e.flags = flagCompressed
		}
		var v any
		if err := p.unpack(&e, &v); err != nil {
			return
		}
		var back entry
		if err := p.pack(&back, v); err != nil && !errors.Is(err, errTooLarge) {
			t.Fatalf("what was decoded can't be encoded: %v", err)
		}
	})
}

// FuzzKey: unequal keys have unequal texts, and the text gives the key back.
func FuzzKey(f *testing.F) {
	f.Add("a", "b", int64(1), int64(-1), uint8(3))
	f.Add("", "\x00", int64(1)<<62, int64(10), uint8(0))
	ss, _ := newKeyCodec[string]()
	is, _ := newKeyCodec[int64]()
	type small uint8
	us, _ := newKeyCodec[small]()
	f.Fuzz(func(t *testing.T, a, b string, i, j int64, u uint8) {
		checkKeys(t, ss, a, b)
		checkKeys(t, is, i, j)
		checkKeys(t, us, small(u), small(i))
	})
}

func checkKeys[K comparable](t *testing.T, kc *keyCodec[K], a, b K) {
	ta, err := kc.append(nil, a)
	if err != nil {
		return // too long
	}
	tb, err := kc.append(nil, b)
	if err != nil {
		return
	}
	if (a == b) != bytes.Equal(ta, tb) {
		t.Fatalf("keys %v and %v: texts %q and %q", a, b, ta, tb)
	}
	if back, ok := kc.parse(string(ta)); !ok || back != a {
		t.Fatalf("parse(%q) = %v, %v; want %v", ta, back, ok, a)
	}
}

func TestKeyErrors(t *testing.T) {
	ss, _ := newKeyCodec[string]()
	if _, err := ss.append(nil, strings.Repeat("x", maxKey+1)); !errors.Is(err, ErrBadKey) {
		t.Errorf("a key of %d bytes: %v; want ErrBadKey", maxKey+1, err)
	}
	ps, _ := newKeyCodec[*netip.Addr]()
	if _, err := ps.append(nil, nil); !errors.Is(err, ErrBadKey) {
		t.Errorf("a nil key: %v; want ErrBadKey", err)
	}
	is, _ := newKeyCodec[int8]()
	if k, ok := is.parse("128"); ok {
		t.Errorf("parse(128) = %d; want none", k)
	}
}

// TestBomb: the size of what a payload claims to decompress to is bounded before
// anything is allocated for it.
func TestBomb(t *testing.T) {
	p := packer{codec: JSON, id: 7, maxValue: 1 << 10, compressOver: 10}
	bomb := s2.Encode(nil, make([]byte, 1<<24))
	for _, payload := range [][]byte{bomb, {0xff, 0xff, 0xff, 0xff, 0x0f, 0}} {
		e := entry{codec: 7, flags: flagCompressed, payload: payload}
		var v any
		var err error
		if n := testing.AllocsPerRun(1, func() { err = p.unpack(&e, &v) }); err == nil || n > 5 {
			t.Errorf("unpack of a bomb: %v, %v allocations; want an error and next to none", err, n)
		}
	}
}

// TestCompression: repetitive values shrink, others are left alone.
func TestCompression(t *testing.T) {
	p := packer{codec: JSON, id: 7, maxValue: 1 << 20, compressOver: 100}
	noise := make([]byte, 1000)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, tt := range []struct {
		v    any
		want bool
	}{{strings.Repeat("porch ", 100), true}, {"porch", false}, {noise, false}} {
		var e entry
		if err := p.pack(&e, tt.v); err != nil {
			t.Fatal(err)
		}
		if got := e.flags&flagCompressed != 0; got != tt.want {
			t.Errorf("%.20v: compressed = %v; want %v", tt.v, got, tt.want)
		}
		back := reflect.New(reflect.TypeOf(tt.v))
		if err := p.unpack(&e, back.Interface()); err != nil || !reflect.DeepEqual(back.Elem().Interface(), tt.v) {
			t.Errorf("%.20v came back as %.20v, %v", tt.v, back.Elem(), err)
		}
	}
}

// TestCodecPanics: a codec that panics is an error.
func TestCodecPanics(t *testing.T) {
	p := packer{codec: CodecFuncs("bad", func(any) ([]byte, error) { panic(1) }, func([]byte, any) error { panic(2) }), maxValue: 10}
	var e entry
	var v any
	if p.pack(&e, 1) == nil || p.unpack(&e, &v) == nil {
		t.Error("no error")
	}
}
