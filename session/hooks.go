package session

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Hooks are told what happens. Each may be nil, must be safe for concurrent use,
// and runs on the goroutine that caused it, so it should be quick. A panic in a
// hook is swallowed.
type Hooks struct {
	// Created is called when a session was stored for the first time.
	Created func(ctx context.Context, e Event)
	// Destroyed is called when a session was deleted by its own request.
	Destroyed func(ctx context.Context, e Event)
	// Regenerated is called when a session got a new id. Event.OldID is the former.
	Regenerated func(ctx context.Context, e Event)
	// Revoked is called for each session that Revoke, RevokeUser or the limit of
	// sessions per user deleted.
	Revoked func(ctx context.Context, e Event)
	// Adopted is called when a session was taken over from redisstore's layout or
	// from Config.Legacy.
	Adopted func(ctx context.Context, e Event)
	// Undecodable is called at each load that met a value it could not decode, with
	// the reason. The value stays untouched in Redis.
	Undecodable func(ctx context.Context, e Event, err error)
	// Call is called after each exchange with Redis.
	Call func(c Call)
}

// Event says which session something happened to.
type Event struct {
	Name  string // of the session, which is its cookie's; empty if not known
	ID    string // public id, see ID
	OldID string // for Regenerated, the id it had before
	User  string // the user the session is bound to, if known
}

// Call describes one exchange with Redis.
type Call struct {
	Op        string        // "load", "save", "destroy", …
	Commands  int           // that were sent
	Duration  time.Duration // from entry to return
	Coalesced bool          // it shared a round trip with other calls
	Err       error
}

// Stats counts what a Store did since it was made.
type Stats struct {
	Loads       uint64 // sessions asked of Redis
	Hits        uint64 // of these, found
	Misses      uint64 // of these, unknown or expired
	Refused     uint64 // cookies refused without asking Redis: forged or malformed
	Unavailable uint64 // loads that failed
	Created     uint64
	Saved       uint64 // saves of a session that existed
	Unchanged   uint64 // commits that had nothing to write
	Touched     uint64 // lives prolonged by a mere load
	Gone        uint64 // saves of a session that had vanished
	Regenerated uint64
	Destroyed   uint64
	Revoked     uint64
	Adopted     uint64
	Undecodable uint64 // values that could not be decoded
}

type counters struct {
	loads, hits, misses, refused, unavailable, created, saved, unchanged, touched,
	gone, regenerated, destroyed, revoked, adopted, undecodable atomic.Uint64
}

// Stats returns what the store counted since it was made. It is safe for
// concurrent use; the numbers are not read at one instant.
func (st *Store) Stats() Stats {
	n := &st.n
	return Stats{
		Loads: n.loads.Load(), Hits: n.hits.Load(), Misses: n.misses.Load(), Refused: n.refused.Load(),
		Unavailable: n.unavailable.Load(), Created: n.created.Load(), Saved: n.saved.Load(),
		Unchanged: n.unchanged.Load(), Touched: n.touched.Load(), Gone: n.gone.Load(),
		Regenerated: n.regenerated.Load(), Destroyed: n.destroyed.Load(), Revoked: n.revoked.Load(),
		Adopted: n.adopted.Load(), Undecodable: n.undecodable.Load(),
	}
}

func tell(hook func(context.Context, Event), ctx context.Context, e Event) {
	if hook == nil {
		return
	}
	defer func() { recover() }()
	hook(ctx, e)
}

func (st *Store) undecodable(ctx context.Context, e Event, err error) {
	st.n.undecodable.Add(1)
	if hook := st.cfg.Hooks.Undecodable; hook != nil {
		defer func() { recover() }()
		hook(ctx, e, err)
	}
}

// onCall translates the seam's event into ours.
func onCall(hook func(Call)) func(roundtrip.Event) {
	if hook == nil {
		return nil
	}
	return func(e roundtrip.Event) {
		defer func() { recover() }()
		hook(Call{Op: e.Op, Commands: e.Commands, Duration: e.Duration, Coalesced: e.Coalesced, Err: e.Err})
	}
}
