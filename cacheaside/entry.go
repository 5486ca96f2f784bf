package cacheaside

import (
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"hash/fnv"
	"time"
)

// The layout of a string in Redis. The scripts know the first 32 bytes of it.
const (
	kindValue    = 'V'
	kindNegative = 'N'
	kindLease    = 'L'
	kindFence    = 'F'
	kindUncached = 'U' // the last load's outcome is not cached; loads go side by side

	offKind     = 0
	offNonce    = 1  // 16 bytes, random, new for every write
	offFormat   = 17 // format, of V and N
	offFlags    = 18
	offClaim    = 19 // 13 digits: milliseconds until which a refresh is claimed
	offWritten  = 32 // int64, milliseconds since 1970
	offFresh    = 40 // int64, milliseconds of freshness
	offDelta    = 48 // uint32, milliseconds that loading took
	offCodec    = 52 // uint32, which codec wrote the payload
	offRest     = 56 // version, tags, payload
	sumSize     = 4  // CRC-32C at the end
	prefixSize  = 17 // kind and nonce: what a compare-and-set compares
	minEntry    = offRest + sumSize
	format      = '1'
	unclaimed   = "0000000000000"
	maxTagCount = 255
	tagSize     = 24 // hash and version
)

const (
	flagCompressed = 1 << iota
	flagVersion
	flagTags
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entry is a decoded value or negative answer, still with its payload encoded.
type entry struct {
	prefix  string // kind and nonce
	kind    byte
	flags   byte
	written int64 // milliseconds, by the server's clock as far as it is known
	fresh   int64 // milliseconds
	delta   int64 // milliseconds
	codec   uint32
	version uint64
	tags    []tagVersion
	payload []byte
	size    int // of the payload before compression
}

// tagVersion is the version that a tag had before the value was loaded.
type tagVersion struct {
	hash    uint64
	version [16]byte
}

func (e *entry) expires() int64 { return e.written + e.fresh }

// newPrefix returns a kind byte and a fresh nonce.
func newPrefix(kind byte) string {
	var b [prefixSize]byte
	b[0] = kind
	rand.Read(b[1:])
	return string(b[:])
}

// appendEntry appends e to dst. Its checksum covers key too, so that an entry
// delivered under another key does not pass for one of its own.
func appendEntry(dst []byte, key string, e *entry) []byte {
	start := len(dst)
	dst = append(dst, e.prefix...)
	flags := e.flags &^ (flagVersion | flagTags)
	if e.version != 0 {
		flags |= flagVersion
	}
	if len(e.tags) > 0 {
		flags |= flagTags
	}
	dst = append(dst, format, flags)
	dst = append(dst, unclaimed...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.written))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.fresh))
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(e.delta, 1<<31)))
	dst = binary.BigEndian.AppendUint32(dst, e.codec)
	if flags&flagVersion != 0 {
		dst = binary.BigEndian.AppendUint64(dst, e.version)
	}
	if flags&flagTags != 0 {
		dst = append(dst, byte(len(e.tags)))
		for _, t := range e.tags {
			dst = binary.BigEndian.AppendUint64(dst, t.hash)
			dst = append(dst, t.version[:]...)
		}
	}
	dst = append(dst, e.payload...)
	return binary.BigEndian.AppendUint32(dst, checksum(key, dst[start:]))
}

// parseEntry reads what appendEntry wrote. Its payload aliases b.
func parseEntry(e *entry, key string, b []byte) error {
	if len(b) == 0 || b[offKind] != kindValue && b[offKind] != kindNegative {
		return errForeign
	}
	if len(b) < minEntry || b[offFormat] != format {
		return errUnreadable
	}
	body := b[:len(b)-sumSize]
	if checksum(key, body) != binary.BigEndian.Uint32(b[len(b)-sumSize:]) {
		return errUnreadable
	}
	*e = entry{
		prefix:  bytesToString(b[:prefixSize]),
		kind:    b[offKind],
		flags:   b[offFlags],
		written: int64(binary.BigEndian.Uint64(b[offWritten:])),
		fresh:   int64(binary.BigEndian.Uint64(b[offFresh:])),
		delta:   int64(binary.BigEndian.Uint32(b[offDelta:])),
		codec:   binary.BigEndian.Uint32(b[offCodec:]),
	}
	rest := body[offRest:]
	if e.flags&flagVersion != 0 {
		if len(rest) < 8 {
			return errUnreadable
		}
		e.version = binary.BigEndian.Uint64(rest)
		rest = rest[8:]
	}
	if e.flags&flagTags != 0 {
		if len(rest) < 1 || len(rest) < 1+tagSize*int(rest[0]) {
			return errUnreadable
		}
		n := int(rest[0])
		e.tags = make([]tagVersion, n)
		for i := range n {
			at := rest[1+tagSize*i:]
			e.tags[i].hash = binary.BigEndian.Uint64(at)
			copy(e.tags[i].version[:], at[8:24])
		}
		rest = rest[1+tagSize*n:]
	}
	// A damaged clock value must not make an entry fresh for ever.
	if e.written < 0 || e.fresh < 0 || e.fresh > maxTTL.Milliseconds() || e.written > 1<<45 {
		return errUnreadable
	}
	e.payload = rest
	return nil
}

// checksum is the CRC-32C of key and body, without the claim, which is changed
// in place.
func checksum(key string, body []byte) uint32 {
	sum := crc32.Update(0, castagnoli, stringToBytes(key))
	sum = crc32.Update(sum, castagnoli, body[:offClaim])
	return crc32.Update(sum, castagnoli, body[offWritten:])
}

func codecID(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return h.Sum32()
}

func tagHash(tag string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(tag))
	return h.Sum64()
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }
