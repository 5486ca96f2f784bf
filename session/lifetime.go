package session

import (
	"context"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/sessions"
)

// meta is the field of a session's hash that says how long it lives. It is
// written by save.lua alone, as decimal numbers joined by commas.
type meta struct {
	created  int64 // milliseconds since the Unix epoch, by the server's clock
	absolute int64 // milliseconds from created to the absolute end
	idle     int64 // milliseconds from seen to the idle end
	seen     int64 // milliseconds from created to the last use that was written
	maxAge   int64 // seconds: the session's own MaxAge; 0: the store's; -1: none
}

func parseMeta(s string) (m meta, ok bool) {
	at := 0
	for i, f := range [...]*int64{&m.created, &m.absolute, &m.idle, &m.seen, &m.maxAge} {
		if i > 0 {
			if at == len(s) || s[at] != ',' {
				return meta{}, false
			}
			at++
		}
		if s[at:] == "-1" || strings.HasPrefix(s[at:], "-1,") {
			*f, at = -1, at+2
			continue
		}
		start, n := at, int64(0)
		for ; at < len(s) && '0' <= s[at] && s[at] <= '9'; at++ {
			if n = 10*n + int64(s[at]-'0'); n > math.MaxInt64/16 {
				return meta{}, false
			}
		}
		if at == start {
			return meta{}, false
		}
		*f = n
	}
	if at < len(s) {
		return meta{}, false
	}
	return m, true
}

func (m meta) createdAt() time.Time { return time.UnixMilli(m.created) }
func (m meta) seenAt() time.Time    { return time.UnixMilli(m.created + m.seen) }

// defaultIdle is the idle time of sessions without a MaxAge of their own.
func (st *Store) defaultIdle() time.Duration {
	if set := st.settings.Load(); set.followAge && set.options.MaxAge > 0 {
		return min(seconds(set.options.MaxAge), st.cfg.AbsoluteTimeout)
	}
	return st.cfg.IdleTimeout
}

// ownMaxAge is what meta keeps of o.MaxAge.
func (st *Store) ownMaxAge(o sessions.Options) int64 {
	switch def := st.settings.Load().options.MaxAge; {
	case o.MaxAge == def:
		return 0
	case o.MaxAge > 0:
		return int64(min(o.MaxAge, int(maxLife/time.Second)))
	}
	return -1
}

// maxAgeOf is the opposite of ownMaxAge.
func (st *Store) maxAgeOf(own int64) int {
	switch {
	case own > 0:
		return int(own)
	case own < 0:
		return 0
	}
	return st.settings.Load().options.MaxAge
}

// absoluteOf is how long a session with a MaxAge of its own lives at most.
func (st *Store) absoluteOf(own int64) time.Duration {
	if st.cfg.raise && own > 0 {
		return max(st.cfg.AbsoluteTimeout, seconds(int(own)))
	}
	return st.cfg.AbsoluteTimeout
}

// idleOf is the idle time a stored session has by today's configuration.
func (st *Store) idleOf(own int64) time.Duration {
	if own > 0 {
		return min(seconds(int(own)), st.absoluteOf(own))
	}
	return st.defaultIdle()
}

// standing compares what is left of a session's life with what today's
// configuration gives it.
func (st *Store) standing(m meta, ttl time.Duration, at time.Time) (expired, touch bool) {
	idle, longest := st.idleOf(m.maxAge), st.absoluteOf(m.maxAge)
	absolute := time.Duration(min(m.absolute, maxLife.Milliseconds())) * time.Millisecond
	if absolute > longest || absolute <= 0 {
		absolute = longest
		if !at.Before(m.createdAt().Add(absolute)) {
			return true, false
		}
	}
	if idle < time.Duration(min(m.idle, maxLife.Milliseconds()))*time.Millisecond && !at.Before(m.seenAt().Add(idle)) {
		return true, false
	}
	want := min(idle, m.createdAt().Add(absolute).Sub(at))
	every := st.cfg.TouchEvery
	if every == 0 || every >= idle {
		every = min(idle/10, time.Minute)
	}
	return false, want-ttl >= every || ttl > want+time.Second || ttl < 0
}

// touch prolongs a session in the background, once for requests that load it at
// the same time.
func (st *Store) touch(ctx context.Context, tok token) {
	if _, already := st.touching.LoadOrStore(tok.key, nil); already {
		return
	}
	ctx = context.WithoutCancel(ctx)
	begun := st.background(func() {
		defer st.touching.Delete(tok.key)
		args := st.prolong()
		if reply, err := st.runSave(ctx, "touch", tok.key, "", &args, nil, nil); err == nil && reply.status == replyDone {
			st.n.touched.Add(1)
		}
	})
	if !begun {
		st.touching.Delete(tok.key)
	}
}

// prolong is what save.lua needs to prolong a session and do nothing else.
func (st *Store) prolong() saveArgs {
	return saveArgs{mode: modeUpdate, idle: st.defaultIdle(), absolute: st.cfg.AbsoluteTimeout, raise: st.cfg.raise, maxAge: keepMaxAge}
}

// TTL returns how long s will live if it is not used, and how long at most. Both
// are zero for a session that is not stored. The times are those of the last load
// or save of s, less the time that has passed.
func (st *Store) TTL(s *sessions.Session) (idle, absolute time.Duration) {
	x := st.state(s)
	if x == nil || x.saved != stored {
		return 0, 0
	}
	now := st.now(x.tok.key)
	passed := now.Sub(x.at)
	idle = max(x.ttl-passed, 0)
	if x.blob != nil {
		return idle, idle
	}
	longest := st.absoluteOf(x.meta.maxAge)
	end := x.meta.createdAt().Add(min(time.Duration(min(x.meta.absolute, longest.Milliseconds()))*time.Millisecond, longest))
	return idle, max(end.Sub(now), 0)
}

// Touch prolongs the life of a stored session now, without saving its values. A
// persistent cookie is sent again with the next Commit or Save. The error matches
// [ErrSessionGone], [ErrSuperseded] too if the session has a new id, or
// [ErrUnavailable]; it is nil for a session that is not stored. One that could not be
// loaded is prolonged too.
func (st *Store) Touch(r *http.Request, s *sessions.Session) error {
	x := st.state(s)
	if x == nil {
		return nil
	}
	if x.saved == renewed {
		return st.goneAs(x)
	}
	known := x.saved == stored
	if !known && (x.saved != unasked || st.compat() != nil) {
		return nil
	}
	ctx := writeContext(r)
	if x.blob != nil {
		return st.touchBlob(ctx, s, x)
	}
	args := st.prolong()
	reply, err := st.runSave(ctx, "touch", x.tok.key, "", &args, nil, nil)
	if err != nil {
		return err
	}
	if reply.status != replyDone {
		return st.gone(reply.status)
	}
	st.n.touched.Add(1)
	if !known {
		return nil
	}
	st.took(x, reply)
	x.resend = x.resend || x.was.MaxAge > 0
	return nil
}
