package cacheaside

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"unsafe"

	"github.com/klauspost/compress/s2"

	"github.com/redporch/redporch/internal/gobwalk"
)

// Codec turns values into bytes and back. Its methods must be safe for concurrent
// use.
type Codec interface {
	// Name tells codecs apart. An entry written by a codec of another name is
	// taken for a miss, so change it when the format changes.
	Name() string

	// Marshal returns v, a value of the cache's type, as bytes.
	Marshal(v any) ([]byte, error)

	// Unmarshal reads what Marshal wrote into v, a pointer to a zero value. It
	// must neither keep nor change data, and bear arbitrary bytes.
	Unmarshal(data []byte, v any) error
}

// JSON is the default codec, encoding/json.
var JSON = CodecFuncs("json", json.Marshal, json.Unmarshal)

// Gob is encoding/gob. Each value carries its type's description, so it pays for
// large values only. What claims more elements than its bytes can hold is refused.
var Gob = CodecFuncs("gob",
	func(v any) ([]byte, error) {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(v)
		return b.Bytes(), err
	},
	func(data []byte, v any) error {
		if err := gobwalk.Check(data); err != nil {
			return err
		}
		return gob.NewDecoder(bytes.NewReader(data)).Decode(v)
	})

// CodecFuncs makes a Codec of two functions such as msgpack.Marshal and
// msgpack.Unmarshal.
func CodecFuncs(name string, marshal func(v any) ([]byte, error), unmarshal func(data []byte, v any) error) Codec {
	return codecFuncs{name, marshal, unmarshal}
}

type codecFuncs struct {
	name      string
	marshal   func(v any) ([]byte, error)
	unmarshal func(data []byte, v any) error
}

func (c codecFuncs) Name() string                       { return c.name }
func (c codecFuncs) Marshal(v any) ([]byte, error)      { return c.marshal(v) }
func (c codecFuncs) Unmarshal(data []byte, v any) error { return c.unmarshal(data, v) }

// packer is a codec with compression and limits.
type packer struct {
	codec        Codec
	id           uint32
	older        uint32 // what versions wrote that did not tell caches apart by it
	compressOver int    // negative: never
	maxValue     int
}

// newPacker returns the packer of a cache called name. Its id tells codecs apart, and
// caches whose prefixes and names run into the same text: "a:" and "b" with a key
// "c:1", "a:b:" and "c" with a key "1".
func newPacker(cfg *Config, name string) packer {
	codec := cfg.Codec.Name()
	return packer{codec: cfg.Codec, id: codecID(codec + "\x00" + cfg.Prefix + "\x00" + name), older: codecID(codec), compressOver: cfg.CompressOver, maxValue: cfg.MaxValue}
}

// pack encodes v into e's payload.
func (p *packer) pack(e *entry, v any) (err error) {
	defer func() { // the codec is the user's
		if r := recover(); r != nil {
			err = fmt.Errorf("codec panicked: %v", r)
		}
	}()
	data, err := p.codec.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > p.maxValue {
		return errTooLarge
	}
	e.codec, e.size = p.id, len(data)
	if p.compressOver >= 0 && len(data) > p.compressOver {
		if small := s2.Encode(nil, data); len(small) < len(data) {
			data = small
			e.flags |= flagCompressed
		}
	}
	e.payload = data
	return nil
}

// unpack decodes e's payload into v, a pointer.
func (p *packer) unpack(e *entry, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("codec panicked: %v", r)
		}
	}()
	if e.codec != p.id && e.codec != p.older {
		return errForeign
	}
	data := e.payload
	if e.flags&flagCompressed != 0 {
		// The length is checked before anything is allocated for it.
		n, err := s2.DecodedLen(data)
		if err != nil {
			return errUnreadable
		}
		if n > p.maxValue {
			return errTooLarge
		}
		if data, err = s2.Decode(nil, data); err != nil {
			return errUnreadable
		}
	}
	e.size = len(data)
	return p.codec.Unmarshal(data, v)
}

// bytesToString and stringToBytes avoid a copy. What they return is only read.
func bytesToString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
func stringToBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
