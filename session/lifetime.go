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

// life returns the idle time that a save with o gives, and what meta keeps of
// o.MaxAge.
func (st *Store) life(o sessions.Options) (idle time.Duration, maxAge int64) {
	switch def := st.settings.Load().options.MaxAge; {
	case o.MaxAge == def:
		return st.defaultIdle(), 0
	case o.MaxAge > 0:
		return min(seconds(o.MaxAge), st.cfg.AbsoluteTimeout), int64(o.MaxAge)
	}
	return st.defaultIdle(), -1
}

// idleOf is the idle time a stored session has by today's configuration.
func (st *Store) idleOf(m meta) time.Duration {
	if m.maxAge > 0 {
		return min(seconds(int(min(m.maxAge, math.MaxInt32))), st.cfg.AbsoluteTimeout)
	}
	return st.defaultIdle()
}

// standing compares what is left of a session's life with what today's
// configuration gives it.
func (st *Store) standing(m meta, ttl time.Duration, at time.Time) (expired, touch bool) {
	idle := st.idleOf(m)
	absolute := time.Duration(m.absolute) * time.Millisecond
	if absolute > st.cfg.AbsoluteTimeout || absolute <= 0 {
		absolute = st.cfg.AbsoluteTimeout
		if !at.Before(m.createdAt().Add(absolute)) {
			return true, false
		}
	}
	if idle < time.Duration(m.idle)*time.Millisecond && !at.Before(m.seenAt().Add(idle)) {
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
func (st *Store) touch(ctx context.Context, tok token, m meta) {
	if _, already := st.touching.LoadOrStore(tok.key, nil); already {
		return
	}
	ctx = context.WithoutCancel(ctx)
	begun := st.background(func() {
		defer st.touching.Delete(tok.key)
		args := saveArgs{mode: modeTouch, idle: st.idleOf(m), absolute: st.cfg.AbsoluteTimeout, maxAge: m.maxAge}
		if reply, err := st.runSave(ctx, "touch", tok.key, "", &args); err == nil && reply.status == replyDone {
			st.n.touched.Add(1)
		}
	})
	if !begun {
		st.touching.Delete(tok.key)
	}
}

// TTL returns how long s will live if it is not used, and how long at most. Both
// are zero for a session that is not stored. The times are those of the last load
// or save of s, less the time that has passed.
func (st *Store) TTL(s *sessions.Session) (idle, absolute time.Duration) {
	x := st.state(s)
	if x == nil || x.saved != stored {
		return 0, 0
	}
	passed := now().Sub(x.at)
	idle = max(x.ttl-passed, 0)
	if x.blob != nil {
		return idle, idle
	}
	end := x.meta.createdAt().Add(min(time.Duration(x.meta.absolute)*time.Millisecond, st.cfg.AbsoluteTimeout))
	return idle, max(end.Sub(now()), 0)
}

// Touch prolongs the life of a stored session now, without saving its values. The
// error matches [ErrSessionGone] or [ErrUnavailable]; it is nil for a session that is
// not stored.
func (st *Store) Touch(r *http.Request, s *sessions.Session) error {
	x := st.state(s)
	if x == nil || x.saved != stored {
		return nil
	}
	ctx := writeContext(r)
	if x.blob != nil {
		return st.touchBlob(ctx, s, x)
	}
	args := saveArgs{mode: modeUpdate, idle: st.idleOf(x.meta), absolute: st.cfg.AbsoluteTimeout, maxAge: x.meta.maxAge}
	reply, err := st.runSave(ctx, "touch", x.tok.key, "", &args)
	if err != nil {
		return err
	}
	if reply.status != replyDone {
		st.n.gone.Add(1)
		return ErrSessionGone
	}
	x.took(reply)
	st.n.touched.Add(1)
	return nil
}
