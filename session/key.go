package session

import "github.com/gorilla/sessions"

// Key is the name of a value and its type, for access without assertions:
//
//	const Cart = session.Key[[]string]("cart")
//
//	items, ok := Cart.Get(s)
//	Cart.Set(s, append(items, "tea"))
//
// It reads and writes s.Values under the plain string, so code that uses Values
// directly sees the same value. Like Values it must not be used by several
// goroutines at once.
type Key[T any] string

// Get returns the value. ok is false if there is none, or one of another type.
func (k Key[T]) Get(s *sessions.Session) (value T, ok bool) {
	value, ok = s.Values[string(k)].(T)
	return value, ok
}

// Or returns the value, or fallback if Get would not find one.
func (k Key[T]) Or(s *sessions.Session, fallback T) T {
	if v, ok := k.Get(s); ok {
		return v
	}
	return fallback
}

// Set stores the value in s, which has to be saved as after any other change.
func (k Key[T]) Set(s *sessions.Session, value T) {
	if s.Values == nil {
		s.Values = make(map[any]any)
	}
	s.Values[string(k)] = value
}

// Delete removes the value from s.
func (k Key[T]) Delete(s *sessions.Session) { delete(s.Values, string(k)) }
