package session

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"
)

// load asks Redis for the session of tok, in one round trip, and fills s and x if
// it is there. With an error x remembers tok, so that a later save can merge.
func (st *Store) load(ctx context.Context, s *sessions.Session, x *state, tok token) (found bool, err error) {
	st.n.loads.Add(1)
	if compat := st.compat(); compat != nil {
		found, err = st.loadEither(ctx, s, x, tok, compat)
	} else {
		found, err = st.loadHash(ctx, s, x, tok)
	}
	st.loaded(s, x, tok, found, err)
	return found, err
}

// loaded notes how a load ended.
func (st *Store) loaded(s *sessions.Session, x *state, tok token, found bool, err error) {
	switch {
	case err != nil:
		st.n.unavailable.Add(1)
		x.tok, x.saved = tok, unasked
	case found:
		st.n.hits.Add(1)
		if tok.stale && st.compat() == nil { // else the cookie may be a key in Redis
			st.sign(x.name, &tok)
			x.resend = true
		}
		x.tok, x.saved = tok, stored
		s.ID, s.IsNew = tok.id, false
	default:
		st.n.misses.Add(1)
	}
}

func (st *Store) loadHash(ctx context.Context, s *sessions.Session, x *state, tok token) (bool, error) {
	// One allocation, and not one with x: commands hold the request's context, which
	// holds gorilla's registry, which holds the session. The table must not.
	q := new(question)
	q.about(ctx, tok.key)
	if err := st.conn.Do(ctx, "load", q.cmds[:]...); err != nil {
		return false, err
	}
	return st.fill(ctx, s, x, tok, q.hash.Val(), q.life.Val()), nil
}

// question is what Redis is asked for a session in a hash, with its answers.
type question struct {
	key           string
	hgetall, pttl [2]any
	hash          redis.MapStringStringCmd
	life          redis.IntCmd
	cmds          [2]redis.Cmder
}

func (q *question) about(ctx context.Context, key string) {
	q.key = key
	q.hgetall = [2]any{"hgetall", &q.key}
	q.pttl = [2]any{"pttl", &q.key}
	q.hash = *redis.NewMapStringStringCmd(ctx, q.hgetall[:]...)
	q.life = *redis.NewIntCmd(ctx, q.pttl[:]...)
	q.cmds = [2]redis.Cmder{&q.hash, &q.life}
}

// fill takes a session out of its hash. It reports false for one that is not
// there or has expired by today's configuration.
func (st *Store) fill(ctx context.Context, s *sessions.Session, x *state, tok token, hash map[string]string, pttl int64) bool {
	m, ok := parseMeta(hash[fieldMeta])
	if !ok {
		if next := hash[fieldNext]; len(next) == hashLen && x.saved != renewed {
			x.tok, x.saved, x.next = tok, renewed, next
		}
		return false
	}
	at, ttl := st.now(tok.key), time.Duration(pttl)*time.Millisecond
	expired, due := st.standing(m, ttl, at)
	if expired {
		return false
	}
	x.meta, x.ttl, x.at = m, ttl, at
	switch {
	case m.maxAge > 0:
		s.Options.MaxAge = int(m.maxAge)
	case m.maxAge < 0:
		s.Options.MaxAge = 0
	}
	if due {
		st.touch(ctx, tok)
		x.resend = s.Options.MaxAge > 0
	}
	st.decode(ctx, s, x, tok, hash)
	return true
}

// decode fills Values and the base that later saves are compared with.
func (st *Store) decode(ctx context.Context, s *sessions.Session, x *state, tok token, hash map[string]string) {
	if x.base = x.inline[:0]; len(hash)-1 > len(x.inline) { // one field is the meta
		x.base = make([]entry, 0, len(hash))
	}
	x.other, x.lost, x.bytes, x.user = nil, nil, 0, ""
	st.openBond(x, tok.id, hash[fieldBond])
	var lists map[string]int // where in the base each is
	for name, held := range hash {
		if len(name) == 1 {
			switch name {
			case fieldMeta, fieldLabel, fieldBond:
				continue
			case fieldUser:
				x.user = held
				continue
			}
		}
		if name == "" {
			continue
		}
		x.bytes += len(name) + len(held)
		value, err := st.open(x, tok.tag(), name, held)
		if err == nil {
			f := field{name: name, held: held}
			if st.sealers != nil {
				plain := value
				f.plain = &plain
			}
			switch name[0] {
			case prefixItem:
				if len(name) > itemSuffix {
					if lists == nil {
						lists = make(map[string]int)
					}
					x.item(f, lists)
					continue
				}
				err = errMalformed
			case prefixOther:
				err = x.others(s, f)
			default:
				var key, v any
				if key, err = fieldKey(name); err == nil {
					if v, err = decodeValue(value); err == nil {
						s.Values[key] = v
						x.base = append(x.base, entry{key: key, field: f})
						continue
					}
				}
			}
		}
		if err != nil {
			x.lost = append(x.lost, field{name: name, held: held})
			st.undecodable(ctx, Event{Name: x.name, ID: tok.id, User: x.user}, err)
		}
	}
	if lists != nil {
		st.lists(ctx, s, x, tok)
	}
}

// item files an element under its list. The entries of lists come without a
// field of their own until lists has joined them.
func (x *state) item(f field, at map[string]int) {
	key := f.name[1 : len(f.name)-itemSuffix]
	if i, ok := at[key]; ok {
		e := &x.base[i]
		*e.list = append(*e.list, f)
		return
	}
	at[key] = len(x.base)
	x.base = append(x.base, entry{key: key, list: &[]field{f}})
}

// lists puts the elements of each list in order and into Values.
func (st *Store) lists(ctx context.Context, s *sessions.Session, x *state, tok token) {
	single := make(map[any]int, len(x.base)) // entries with a field
	for i := range x.base {
		if x.base[i].field.name != "" {
			single[x.base[i].key] = i
		}
	}
	for i := range x.base {
		e := &x.base[i]
		items := e.items()
		if len(items) == 0 {
			continue
		}
		slices.SortFunc(items, func(a, b field) int { return cmp.Compare(a.name, b.name) })
		list := make([]any, 0, len(items))
		items = slices.DeleteFunc(items, func(f field) bool {
			v, err := decodeValue(f.value())
			if err != nil {
				st.undecodable(ctx, Event{Name: x.name, ID: tok.id, User: x.user}, err)
				return true
			}
			list = append(list, v)
			return false
		})
		e.setItems(items)
		// The same key may have a field as well: an empty list's, or a value that
		// another request put in the list's place. The list is then appended to a
		// list, and otherwise wins.
		if j, ok := single[e.key]; ok {
			if head, ok := s.Values[e.key].([]any); ok {
				list = append(slices.Clip(head), list...)
			}
			e.field, x.base[j] = x.base[j].field, entry{}
		}
		if len(list) > 0 {
			s.Values[e.key] = list
		}
	}
	x.base = slices.DeleteFunc(x.base, func(e entry) bool { return e.empty() })
}

// others decodes a field with prefixOther.
func (x *state) others(s *sessions.Session, f field) error {
	m, err := decodeOthers(f.value())
	if err != nil {
		return err
	}
	for k, v := range m {
		s.Values[k] = v
	}
	x.other = append(x.other, f)
	return nil
}

func decodeOthers(value string) (map[any]any, error) {
	v, err := gobDecode(value)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[any]any)
	if !ok {
		return nil, errMalformed
	}
	return m, nil
}

// goneAs counts a session that was not there any more, and returns the error that says
// why.
func (st *Store) goneAs(x *state) error {
	st.n.gone.Add(1)
	if x.saved == renewed {
		return ErrSuperseded
	}
	return ErrSessionGone
}

// gone is goneAs for what a script answered.
func (st *Store) gone(status int64) error {
	st.n.gone.Add(1)
	if status == replySuperseded {
		return ErrSuperseded
	}
	return ErrSessionGone
}

// Reload loads s again and discards changes that were not saved. The error
// matches ErrSessionGone if the session is not in Redis any more, ErrSuperseded too if
// it has a new id, and
// ErrUnavailable if Redis could not be asked; s is unchanged then. A session that
// is not stored stays as it is.
func (st *Store) Reload(r *http.Request, s *sessions.Session) error {
	x := st.state(s)
	if x == nil || x.saved != stored && x.saved != unasked && x.saved != renewed {
		return nil
	}
	fresh := sessions.NewSession(st, x.name)
	*fresh.Options = st.settings.Load().options
	y := &state{home: x.home, name: x.name}
	found, err := st.load(r.Context(), fresh, y, x.tok)
	if err != nil {
		return err
	}
	if !found {
		return st.goneAs(y)
	}
	y.was = *fresh.Options
	if s.Options == nil {
		s.Options = fresh.Options
	}
	s.Options.MaxAge = fresh.Options.MaxAge
	s.ID, s.IsNew, s.Values = fresh.ID, false, fresh.Values
	y.was, y.resend = *s.Options, y.resend || x.resend
	*x = *y
	return nil
}
