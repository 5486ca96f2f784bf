package middleware

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/redporch/redporch/session"
)

// KeyFunc says on whose account a request goes: requests with one key share one
// limit. It returns "" if it doesn't know, see [RateLimitConfig.NoKey]. It must be
// safe for concurrent use.
//
// Keys of the functions below begin with their kind ("ip:", "user:"), so that a
// user named 192.0.2.1 is not a client at 192.0.2.1. The limiter hashes keys
// before they reach Redis. In place of a key of more than 256 bytes its SHA-256 is used.
// What reads a body for its key, such as http.Request.FormValue, stands inside of
// http.MaxBytesHandler: FormValue takes up to 10 MB otherwise.
type KeyFunc func(r *http.Request) string

// ClientIP limits by client address: an IPv4 address, or the /64 network of an
// IPv6 address, since one customer usually has that many and a client could
// otherwise change its address for every request.
//
// The address is the one [ClientAddr] has resolved, or the TCP peer's. The IPv4
// address inside one of NAT64 (64:ff9b::/96), 6to4 or Teredo counts as IPv4.
func ClientIP() KeyFunc { return ClientNetwork(32, 64) }

// ClientNetwork limits by the network of the client address: its first v4 bits
// (1 to 32) for IPv4, its first v6 bits (1 to 128) for IPv6. ClientNetwork(24, 48)
// with a larger limit beside ClientIP catches a client that has a whole network.
// It panics if a number is out of range.
func ClientNetwork(v4, v6 int) KeyFunc {
	if v4 < 1 || v4 > 32 || v6 < 1 || v6 > 128 {
		panic("middleware: ClientNetwork takes 1 to 32 bits of IPv4 and 1 to 128 bits of IPv6")
	}
	return func(r *http.Request) string {
		addr, resolved := clientAddr(r)
		if !resolved {
			if v := visitOf(r); v != nil {
				v.pass(usedClientIP)
			}
		}
		return addrKey(translated(addr), v4, v6)
	}
}

func addrKey(addr netip.Addr, v4, v6 int) string {
	if !addr.IsValid() {
		return ""
	}
	bits := v6
	if addr.Is4() {
		bits = v4
	}
	var buf [64]byte
	b := append(buf[:0], "ip:"...)
	if bits == addr.BitLen() {
		return string(addr.AppendTo(b))
	}
	p, err := addr.Prefix(bits)
	if err != nil { // bits were checked, so this can't be
		return ""
	}
	return string(p.AppendTo(b))
}

// Header limits by the value of a request header, such as an API key. The client
// chooses the value: use it only where a wrong one is refused, or join it with
// ClientIP.
func Header(name string) KeyFunc {
	name = http.CanonicalHeaderKey(name)
	prefix := "header:" + strings.ToLower(name) + ":"
	return func(r *http.Request) string {
		value := r.Header.Get(name)
		if value == "" {
			return ""
		}
		return prefix + value
	}
}

// User limits by what id returns for a request, the name of the user who is
// signed in. Where it returns "", nobody is.
func User(id func(r *http.Request) string) KeyFunc {
	return func(r *http.Request) string {
		user := id(r)
		if user == "" {
			return ""
		}
		return "user:" + user
	}
}

// SessionKey limits by session. It loads the session, so a limiter by client
// address should stand before it. A session that is new has no key: a client
// could make as many of them as it likes.
func SessionKey() KeyFunc {
	return func(r *http.Request) string {
		v := visitOf(r)
		if v == nil {
			return ""
		}
		h := v.holder("")
		if h == nil {
			v.pass(usedSessionKey)
			return ""
		}
		s, _ := h.load(r)
		if s.IsNew {
			return ""
		}
		return "session:" + session.ID(s)
	}
}

// Router finds the pattern that a request will be served by. *http.ServeMux is
// one.
type Router interface {
	Handler(r *http.Request) (h http.Handler, pattern string)
}

// Route limits by the pattern a request is routed by, such as "GET /item/{id}",
// so that each route has its own account. With nil for mux it is the pattern that
// was already matched, for limiters that are mounted on a route or inside a mux.
// Requests that match nothing share one key.
func Route(mux Router) KeyFunc {
	return func(r *http.Request) string {
		pattern := r.Pattern
		if mux != nil {
			_, pattern = mux.Handler(r)
		}
		return "route:" + chosenPattern(r, pattern)
	}
}

// Fixed puts all requests on one account. Name it after what it protects.
func Fixed(name string) KeyFunc {
	key := "fixed:" + name
	return func(*http.Request) string { return key }
}

// First uses the first of keys that knows: First(User(id), ClientIP()) limits
// users by name and everybody else by address.
func First(keys ...KeyFunc) KeyFunc {
	return func(r *http.Request) string {
		for _, key := range keys {
			if k := key(r); k != "" {
				return k
			}
		}
		return ""
	}
}

// Join limits by all of keys together: Join(Route(nil), ClientIP()) gives each
// client its own account on each route. No two different lists of keys join to
// the same one. If any of keys does not know, Join does not either.
func Join(keys ...KeyFunc) KeyFunc {
	return func(r *http.Request) string {
		var b []byte
		for _, key := range keys {
			k := key(r)
			if k == "" {
				return ""
			}
			b = strconv.AppendInt(b, int64(len(k)), 10)
			b = append(b, ':')
			b = append(b, k...)
		}
		return string(b)
	}
}
