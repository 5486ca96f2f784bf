package cacheaside

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/maypok86/otter/v2"
)

// l1 is the first level: decoded values in this process. A nil *l1 is one that
// never has anything.
//
// It must never keep a value that was read before an invalidation and put after
// it. So a reader takes a mark before it asks Redis, and put refuses if an
// invalidation of the key, or of one with the same stripe, was seen since then.
//
// The caches know neither K nor V: otter is large, and the compiler would build it
// anew, for seconds, in every program and for every pair of types.
type l1[K comparable, V any] struct {
	byInt  *otter.Cache[uint64, held] // of keys of integer kinds
	byText *otter.Cache[string, held] // of strings, and of keys with a MarshalText
	keys   *keyCodec[K]
	cfg    *Config

	horizon atomic.Int64  // by mono, until when values may be served; 0: not at all
	epoch   atomic.Uint64 // changes when everything was dropped
	stripes [256]stripe
	tags    [256]atomic.Uint64 // change when a tag of that stripe was invalidated
}

type stripe struct {
	mu  sync.Mutex
	gen uint64
}

// kept is a value in the first level. It is never changed.
type kept[V any] struct {
	value   V
	missing bool
	until   int64   // by mono, served before this
	born    int64   // by mono
	expires int64   // by mono
	early   int64   // by mono, from when on XFetch may have it loaded again
	scale   float64 // of XFetch's draws, nanoseconds
	tags    []tagMark
}

func (e *kept[V]) age() time.Duration { return time.Duration(mono() - e.born) }
func (e *kept[V]) ttl() time.Duration { return max(time.Duration(e.expires-mono()), 0) }

// drawn decides by XFetch whether a value is to be loaded again. Each read draws, as if
// it had found the value at Redis.
func (e *kept[V]) drawn(now int64) bool {
	return float64(e.expires-now) < e.scale*-math.Log(1-rand.Float64())
}

// maxDraw is more than −ln of any random number drawn.
const maxDraw = 37

// l1Overhead is about what a value takes in the first level beside its text and its
// encoded form.
const l1Overhead = 256

// held is how the caches see a value.
type held struct {
	kept   any // *kept[V]
	weight uint32
}

// mark is what a reader remembers from before it asked Redis.
type mark struct {
	valid bool
	epoch uint64
	gen   uint64
	tags  []tagMark
}

type tagMark struct {
	stripe uint8
	gen    uint64
}

var start = time.Now()

// mono is the time since the process began, in nanoseconds. It costs half of
// what time.Now does.
func mono() int64 { return int64(time.Since(start)) }

func newL1[K comparable, V any](cfg *Config, keys *keyCodec[K]) *l1[K, V] {
	l := &l1[K, V]{keys: keys, cfg: cfg}
	if keys.integer {
		l.byInt = newStore[uint64](cfg)
	} else {
		l.byText = newStore[string](cfg)
	}
	return l
}

func newStore[K uint64 | string](cfg *Config) *otter.Cache[K, held] {
	// One sum bounds both: with an entry counted as its share at least, there are no more
	// of them than that many.
	least := uint32(0)
	if cfg.L1Entries > 0 {
		least = uint32(min(cfg.L1Weight/int64(cfg.L1Entries), math.MaxInt32))
	}
	return otter.Must(&otter.Options[K, held]{
		MaximumWeight: uint64(cfg.L1Weight),
		Weigher:       func(_ K, e held) uint32 { return max(e.weight, least) },
	})
}

// word returns the bits of a key of an integer kind. Without unsafe it would take
// reflection, on the path that answers in nanoseconds.
func word[K comparable](key K) uint64 {
	p := unsafe.Pointer(&key)
	switch unsafe.Sizeof(key) {
	case 1:
		return uint64(*(*uint8)(p))
	case 2:
		return uint64(*(*uint16)(p))
	case 4:
		return uint64(*(*uint32)(p))
	default:
		return *(*uint64)(p)
	}
}

// get returns what may be served for key now, or nil, and whether it is due to be loaded
// again in the background.
func (l *l1[K, V]) get(key K) (e *kept[V], due bool) {
	if l == nil {
		return nil, false
	}
	var h held
	var ok bool
	if l.byInt != nil {
		h, ok = l.byInt.GetIfPresent(word(key))
	} else if !l.keys.marshal { // of kind string
		h, ok = l.byText.GetIfPresent(*(*string)(unsafe.Pointer(&key)))
	} else if text, err := l.keys.append(nil, key); err == nil {
		h, ok = l.byText.GetIfPresent(bytesToString(text))
	}
	if !ok {
		return nil, false
	}
	e = h.kept.(*kept[V])
	now := mono()
	if now >= e.until || now >= l.horizon.Load() {
		return nil, false
	}
	for _, t := range e.tags {
		if l.tags[t.stripe].Load() != t.gen {
			return nil, false
		}
	}
	return e, now >= e.early && e.drawn(now)
}

// capture takes a mark for put.
func (l *l1[K, V]) capture(r *ref[K]) mark {
	if l == nil || l.horizon.Load() == 0 {
		return mark{}
	}
	m := mark{valid: true, epoch: l.epoch.Load()}
	s := &l.stripes[r.stripe%uint64(len(l.stripes))]
	s.mu.Lock()
	m.gen = s.gen
	s.mu.Unlock()
	for _, tag := range r.tags {
		i := uint8(tagHash(tag))
		m.tags = append(m.tags, tagMark{i, l.tags[i].Load()})
	}
	return m
}

// put keeps a fresh value that was read after m was taken, unless it was
// invalidated since.
func (l *l1[K, V]) put(r *ref[K], m mark, now *found[V]) {
	if l == nil || !m.valid || now.entry.TTL <= 0 {
		return
	}
	t := mono()
	e := &kept[V]{
		value:   now.entry.Value,
		missing: now.err != nil,
		born:    t - int64(now.entry.Age),
		expires: t + int64(now.entry.TTL),
		tags:    m.tags,
	}
	e.until = min(e.expires, t+int64(l.cfg.L1TTL))
	e.early = math.MaxInt64
	if now.err == nil && l.cfg.EarlyRefresh > 0 {
		e.scale = float64(max(now.raw.delta, 1)) * l.cfg.EarlyRefresh * float64(time.Millisecond)
		e.early = e.expires - int64(min(maxDraw*e.scale, float64(maxTTL)))
	}
	if e.until <= t {
		return
	}
	s := &l.stripes[r.stripe%uint64(len(l.stripes))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen != m.gen || l.epoch.Load() != m.epoch {
		return
	}
	h := held{e, uint32(min(now.raw.size+len(r.text)+l1Overhead, math.MaxInt32))}
	if l.byInt != nil {
		l.byInt.Set(word(r.key), h)
	} else {
		l.byText.Set(r.text, h)
	}
}

// drop forgets a key, and lets no put pass whose value was read before.
func (l *l1[K, V]) drop(r *ref[K]) {
	if l == nil {
		return
	}
	s := &l.stripes[r.stripe%uint64(len(l.stripes))]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	if l.byInt != nil {
		l.byInt.Invalidate(word(r.key))
	} else {
		l.byText.Invalidate(r.text)
	}
}

// dropTag forgets the keys with a tag.
func (l *l1[K, V]) dropTag(tag string) {
	if l != nil {
		l.tags[uint8(tagHash(tag))].Add(1)
	}
}

// purge forgets everything, and lets no put pass whose value was read before.
func (l *l1[K, V]) purge() {
	if l == nil {
		return
	}
	l.epoch.Add(1)
	for i := range l.stripes { // wait for a put that has checked the epoch
		l.stripes[i].mu.Lock()
		l.stripes[i].gen++
		l.stripes[i].mu.Unlock()
	}
	if l.byInt != nil {
		l.byInt.InvalidateAll()
	} else {
		l.byText.InvalidateAll()
	}
}

// size is about how many entries are kept.
func (l *l1[K, V]) size() int {
	switch {
	case l == nil:
		return 0
	case l.byInt != nil:
		return l.byInt.EstimatedSize()
	default:
		return l.byText.EstimatedSize()
	}
}
