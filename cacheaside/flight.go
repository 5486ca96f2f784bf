package cacheaside

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A flight is one attempt to get one key's value on behalf of all callers of this
// process that wait for it.
//
// Which of them may have its result is the heart of the matter: a value must not
// reach a caller that arrived after the value was superseded. Callers take seats
// in the order of their arrival, and the flight notes how many were taken before
// each step:
//
//   - before it asks Redis: whoever had a seat may have what Redis answered;
//   - before it calls the loader: whoever had a seat may have what was loaded;
//   - before it sends the fill: if Redis accepted the fill, and the versions of the
//     key's tags that were read along with it are those from before the load, then
//     no invalidation came between lease and fill, by key, tag or Clear, and whoever
//     had a seat by then may have the value.
//
// The others look again. A caller that arrives while a flight loads without a
// lease, so that no fill will vouch for the value, takes a seat in the next one,
// which starts when this one has ended. So does one that arrives after an
// invalidation by this process that concerns the key.
type flight[K comparable, V any] struct {
	ctx  context.Context // of its first caller, without its cancellation
	ref  ref[K]
	seen sighting[V]

	seats    int // taken so far; guarded by the shard's lock, as are the next two
	waiting  int // callers still there
	boarding bool
	next     *flight[K, V]

	done chan struct{} // closed when result and share are set
	result[V]
	share int // seats below it may have the result
}

// sighting is what the first caller of a flight saw at Redis.
type sighting[V any] struct {
	direct  bool          // don't ask Redis
	force   bool          // load, whatever the key holds
	expired *entry        // to be refreshed
	old     *Entry[V]     // its value
	replace *string       // unreadable, to be replaced
	left    time.Duration // of Config.Timeout, for what Redis is asked from now on
}

type result[V any] struct {
	entry Entry[V]
	err   error
}

// flights holds the flights of a cache by the key in Redis.
type flights[K comparable, V any] [64]flightShard[K, V]

type flightShard[K comparable, V any] struct {
	mu sync.Mutex
	m  map[string]*flight[K, V]
}

func (fs *flights[K, V]) shard(r *ref[K]) *flightShard[K, V] { return &fs[r.stripe%uint64(len(fs))] }

// join takes a seat in the key's flight. If own is true the flight is new and the
// caller has to run it. With fresh it is one whose steps all come after this
// call, so that the seat is good for any result.
func (fs *flights[K, V]) join(ctx context.Context, r *ref[K], seen sighting[V], fresh bool) (f *flight[K, V], seat int, own bool) {
	s := fs.shard(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	f = s.m[r.entry]
	switch {
	case f == nil:
		f, own = newFlight[K, V](ctx, r, seen), true
		if s.m == nil {
			s.m = make(map[string]*flight[K, V])
		}
		s.m[r.entry] = f
	case fresh || !f.boarding:
		if f.next == nil {
			f.next = newFlight[K, V](ctx, r, seen)
		}
		f = f.next
		f.seen.force = f.seen.force || seen.force
	}
	seat = f.seats
	f.seats++
	f.waiting++
	return f, seat, own
}

func newFlight[K comparable, V any](ctx context.Context, r *ref[K], seen sighting[V]) *flight[K, V] {
	return &flight[K, V]{ctx: context.WithoutCancel(ctx), ref: *r, seen: seen, boarding: true, done: make(chan struct{})}
}

// seal tells how many seats are taken.
func (fs *flights[K, V]) seal(f *flight[K, V]) int {
	s := fs.shard(&f.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.seats
}

// shut is seal, and sends later callers to the next flight.
func (fs *flights[K, V]) shut(f *flight[K, V]) int {
	s := fs.shard(&f.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.boarding = false
	return f.seats
}

// bar sends callers who come from now on to the key's next flight.
func (fs *flights[K, V]) bar(r *ref[K]) {
	s := fs.shard(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.m[r.entry]; f != nil {
		f.boarding = false
	}
}

// barTag is bar for all keys with a tag, or for all keys if tag is empty.
func (fs *flights[K, V]) barTag(tag string) {
	for i := range fs {
		s := &fs[i]
		s.mu.Lock()
		for _, f := range s.m {
			if tag == "" || slices.Contains(f.ref.tags, tag) {
				f.boarding = false
			}
		}
		s.mu.Unlock()
	}
}

// leave gives up a seat whose caller has stopped waiting.
func (fs *flights[K, V]) leave(f *flight[K, V]) {
	s := fs.shard(&f.ref)
	s.mu.Lock()
	f.waiting--
	s.mu.Unlock()
}

// empty reports whether nobody waits for f.
func (fs *flights[K, V]) empty(f *flight[K, V]) bool {
	s := fs.shard(&f.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.waiting == 0
}

// land publishes the result to the first share seats, and returns the next
// flight, if callers wait for one.
func (fs *flights[K, V]) land(f *flight[K, V], res result[V], share int) (next *flight[K, V]) {
	s := fs.shard(&f.ref)
	s.mu.Lock()
	f.result, f.share = res, share
	next = f.next
	if next != nil {
		s.m[f.ref.entry] = next
	} else {
		delete(s.m, f.ref.entry)
	}
	s.mu.Unlock()
	close(f.done)
	return next
}

// refreshes is the set of keys that are being refreshed in the background.
type refreshes struct {
	mu sync.Mutex
	m  map[string]struct{}
}

// maxRefreshes bounds the background refreshes of a cache at the same time.
const maxRefreshes = 64

func (rs *refreshes) begin(entry string) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if _, busy := rs.m[entry]; busy || len(rs.m) >= maxRefreshes {
		return false
	}
	if rs.m == nil {
		rs.m = make(map[string]struct{})
	}
	rs.m[entry] = struct{}{}
	return true
}

func (rs *refreshes) end(entry string) {
	rs.mu.Lock()
	delete(rs.m, entry)
	rs.mu.Unlock()
}
