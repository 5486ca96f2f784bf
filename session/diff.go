package session

import (
	"reflect"
	"slices"

	"github.com/gorilla/sessions"
)

// changes is the difference between Values and what Redis holds, and what it does to
// the base when it is written.
type changes struct {
	set    []field
	expect []field // what is replaced, with Config.DetectConflicts
	detect bool
	del    []string
	reseal []resealed
	edits  []edit // in the order of the base
	added  []entry
	other  []field
	bytes  int
}

// apply makes the changes to the base.
func (x *state) apply(c *changes) {
	gone := false
	for i := range c.edits {
		e := &c.edits[i]
		x.base[e.at] = e.next
		gone = gone || e.next.empty()
	}
	if gone {
		x.base = slices.DeleteFunc(x.base, func(e entry) bool { return e.empty() })
	}
	x.base = append(x.base, c.added...)
	x.other, x.bytes = c.other, c.bytes
	x.lost = slices.DeleteFunc(x.lost, func(f field) bool {
		return slices.ContainsFunc(c.set, func(n field) bool { return n.name == f.name })
	})
}

func (c *changes) none() bool { return len(c.set) == 0 && len(c.del) == 0 }

// put adds a field to be set and returns it.
func (c *changes) put(st *Store, x *state, tag, name string, value []byte) field {
	f := field{name: name, held: string(value)}
	if st.sealers != nil {
		plain := f.held
		f.plain, f.held = &plain, st.seal(x, tag, name, plain)
	}
	c.set = append(c.set, f)
	c.bytes += len(f.name) + len(f.held)
	return f
}

// drop adds a field to be deleted.
func (c *changes) drop(f field) {
	c.del = append(c.del, f.name)
	c.bytes -= len(f.name) + len(f.held)
}

// consume is drop for an element of a list: of two requests that take it out, one is too
// late.
func (c *changes) consume(f field) {
	c.expects(f)
	c.drop(f)
}

// fresh expects that there is no field called name, or the one that could not be decoded.
func (c *changes) fresh(x *state, name string) {
	f := field{name: name}
	for _, l := range x.lost {
		if l.name == name {
			f.held = l.held
			c.bytes -= len(name) + len(l.held)
		}
	}
	c.expects(f)
}

// replaced takes a field's old value out of the count.
func (c *changes) replaced(f field) {
	c.bytes -= len(f.name) + len(f.held)
	c.expects(f)
}

// expects notes what Redis has to hold for the save to be no conflict.
func (c *changes) expects(fs ...field) {
	if c.detect {
		c.expect = append(c.expect, fs...)
	}
}

// unchanged reports whether diff would find nothing to write. It is the common
// case, and allocates nothing for native types.
func (x *state) unchanged(s *sessions.Session) bool {
	if len(x.other) > 0 || len(s.Values) != len(x.base) {
		return false
	}
	for i := range x.base {
		e := &x.base[i]
		v, ok := s.Values[e.key]
		if !ok || e.list == nil && !matches(e.field.value(), v) || e.list != nil && !e.same(v) {
			return false
		}
	}
	return true
}

// same reports whether v is the list that the entry's fields hold.
func (e *entry) same(v any) bool {
	list, ok := v.([]any)
	items := e.items()
	if !ok || len(list) != len(items) {
		return false
	}
	for i := range items {
		if !matches(items[i].value(), list[i]) {
			return false
		}
	}
	return true
}

// diff finds out what changed since the session was loaded or saved. tag is that
// of the token that the values will be stored under.
func (st *Store) diff(x *state, s *sessions.Session, tag string) (c changes, err error) {
	c.bytes, c.other, c.detect = x.bytes, x.other, st.cfg.DetectConflicts
	found := 0 // entries of base whose key is in Values
	for i := range x.base {
		e := &x.base[i]
		v, ok := s.Values[e.key]
		if ok {
			found++
		}
		if ok && e.list == nil && matches(e.field.value(), v) {
			continue
		}
		if !ok {
			c.dropEntry(e)
			c.edits = append(c.edits, edit{at: i})
			continue
		}
		next, err := st.replace(&c, x, e, v, tag)
		if err != nil {
			return c, err
		}
		c.edits = append(c.edits, edit{i, next})
	}
	if found < len(s.Values) || len(x.other) > 0 {
		err = st.additions(&c, x, s, tag)
	}
	return c, err
}

func (c *changes) dropEntry(e *entry) {
	if e.field.name != "" {
		c.expects(e.field)
		c.drop(e.field)
	}
	for _, f := range e.items() {
		c.consume(f)
	}
}

// replace writes a value whose key has an entry already.
func (st *Store) replace(c *changes, x *state, e *entry, v any, tag string) (entry, error) {
	next := entry{key: e.key}
	name := e.field.name
	if key, ok := e.key.(string); ok && name == "" {
		name = string(prefixString) + key
	}
	if list, ok := v.([]any); ok && len(list) > 0 && name[0] == prefixString {
		if e.field.name != "" { // an empty list's, or another value
			c.expects(e.field)
			c.drop(e.field)
		}
		items, err := st.items(c, x, e.key.(string), e.items(), list, tag)
		next.setItems(items)
		return next, err
	}
	for _, f := range e.items() {
		c.consume(f)
	}
	if e.field.name != "" && matches(e.field.value(), v) {
		next.field = e.field
		return next, nil
	}
	b, err := appendValue(nil, v, 0)
	if err != nil {
		return next, err
	}
	c.replaced(field{name: name, held: e.field.held, plain: e.field.plain})
	if e.field.name == "" {
		c.bytes += len(name)
	}
	next.field = c.put(st, x, tag, name, b)
	return next, nil
}

// items writes a list of which the elements was are stored. Elements that are
// still there in the same order keep their fields; what was added behind them gets
// new ones. So two requests that add flashes don't meet, and one that reads them
// removes those it has seen. A list that was changed otherwise is written anew.
func (st *Store) items(c *changes, x *state, key string, was []field, list []any, tag string) ([]field, error) {
	kept := make([]field, 0, len(list))
	at := 0
	for at < len(was) && len(kept) < len(list) {
		if matches(was[at].value(), list[len(kept)]) {
			kept = append(kept, was[at])
		} else {
			c.consume(was[at])
		}
		at++
	}
	for _, f := range was[at:] {
		c.consume(f)
	}
	for _, v := range list[len(kept):] {
		b, err := appendValue(nil, v, 0)
		if err != nil {
			return nil, err
		}
		kept = append(kept, c.put(st, x, tag, string(prefixItem)+key+newItemSuffix(), b))
	}
	return kept, nil
}

// additions writes what has no entry yet.
func (st *Store) additions(c *changes, x *state, s *sessions.Session, tag string) error {
	known := make(map[any]bool, len(x.base))
	for i := range x.base {
		known[x.base[i].key] = true
	}
	var others map[any]any
	for k, v := range s.Values {
		if known[k] {
			continue
		}
		name, other, err := fieldName(k)
		if err != nil {
			return err
		}
		if other {
			if others == nil {
				others = make(map[any]any)
			}
			others[k] = v
			continue
		}
		next := entry{key: k}
		if list, ok := v.([]any); ok && len(list) > 0 && name[0] == prefixString {
			items, err := st.items(c, x, name[1:], nil, list, tag)
			if err != nil {
				return err
			}
			next.setItems(items)
		} else {
			b, err := appendValue(nil, v, 0)
			if err != nil {
				return err
			}
			c.fresh(x, name)
			next.field = c.put(st, x, tag, name, b)
		}
		c.added = append(c.added, next)
	}
	return st.diffOthers(c, x, others, tag)
}

// diffOthers writes the entries that share one field.
func (st *Store) diffOthers(c *changes, x *state, others map[any]any, tag string) error {
	was := make(map[any]any)
	for _, f := range x.other {
		m, err := decodeOthers(f.value())
		if err != nil {
			return err
		}
		for k, v := range m {
			was[k] = v
		}
	}
	if len(was) == len(others) && (len(was) == 0 || reflect.DeepEqual(was, others)) {
		return nil
	}
	c.expects(x.other...)
	for _, f := range x.other {
		c.drop(f)
	}
	c.other = nil
	if len(others) == 0 {
		return nil
	}
	g, err := gobEncode(others)
	if err != nil {
		return err
	}
	name := string(prefixOther)
	c.del = slices.DeleteFunc(c.del, func(n string) bool { return n == name })
	if len(x.other) == 0 {
		c.fresh(x, name)
	}
	c.other = []field{c.put(st, x, tag, name, g)}
	return nil
}
