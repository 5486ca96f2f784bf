package cacheaside

import (
	"math/rand/v2"
	"sync/atomic"
)

// Stats counts what a cache of this process did since it was made.
type Stats struct {
	L1Hits        uint64 // values from this process
	RedisHits     uint64 // fresh values from Redis
	StaleHits     uint64 // values past their TTL
	NegativeHits  uint64 // ErrNotFound from the cache
	Misses        uint64 // callers that had to wait for a load, here or elsewhere
	Loads         uint64 // calls of the loader; a bulk load counts its keys
	LoadErrors    uint64 // those that failed, ErrNotFound aside
	Fills         uint64 // loaded values that Redis accepted
	FillsRefused  uint64 // that it refused, as they were invalidated meanwhile
	Uncacheable   uint64 // loaded values that the codec refused, or that are larger than MaxValue
	Refreshes     uint64 // loads in the background
	Unreadable    uint64 // stored values that were damaged or foreign
	RedisErrors   uint64 // calls that Redis did not answer properly
	Invalidations uint64 // keys and tags invalidated by this process
	Remote        uint64 // announcements of other processes' invalidations
	Queued        uint64 // failed invalidations that wait to be tried again, at present
	FencesLost    uint64 // see ErrFenceLost
	BusLost       uint64 // times that the connection for announcements was lost
	BusRefused    uint64 // times that Redis refused to announce (SUBSCRIBE): the first level stays empty
	HookPanics    uint64 // panics and Goexits in the app's functions, loaders aside
	HookDropped   uint64 // events not given to OnInvalidate as it fell behind
	L1Entries     uint64 // values in this process, at present
}

type counters struct {
	l1Hits, redisHits striped

	stale, negative, misses, loads, loadErrors, fills, refused, refreshes atomic.Uint64
	unreadable, redisErrors, invalidations, remote, uncacheable           atomic.Uint64
	fencesLost, busLost, busRefused, hookPanics, hookDropped              atomic.Uint64
}

// striped is a counter for the hot path: callers on different processors seldom
// meet on one cache line.
type striped [8]struct {
	n atomic.Uint64
	_ [56]byte
}

func (s *striped) add() { s[rand.Uint32()%8].n.Add(1) }

func (s *striped) sum() (n uint64) {
	for i := range s {
		n += s[i].n.Load()
	}
	return n
}

// Stats returns the counts of this cache.
func (c *Cache[K, V]) Stats() Stats {
	s := &c.stats
	return Stats{
		L1Hits:        s.l1Hits.sum(),
		RedisHits:     s.redisHits.sum(),
		StaleHits:     s.stale.Load(),
		NegativeHits:  s.negative.Load(),
		Misses:        s.misses.Load(),
		Loads:         s.loads.Load(),
		LoadErrors:    s.loadErrors.Load(),
		Fills:         s.fills.Load(),
		FillsRefused:  s.refused.Load(),
		Uncacheable:   s.uncacheable.Load(),
		Refreshes:     s.refreshes.Load(),
		Unreadable:    s.unreadable.Load(),
		RedisErrors:   s.redisErrors.Load(),
		Invalidations: s.invalidations.Load(),
		Remote:        s.remote.Load(),
		Queued:        uint64(c.pending.count()),
		FencesLost:    s.fencesLost.Load(),
		BusLost:       s.busLost.Load(),
		BusRefused:    s.busRefused.Load(),
		HookPanics:    s.hookPanics.Load(),
		HookDropped:   s.hookDropped.Load(),
		L1Entries:     uint64(c.l1.size()),
	}
}
