package middleware

import (
	"crypto/rand"
	"net/http"
)

// RequestIDConfig tells RequestID where ids come from. The zero value makes a
// new one for each request and sends it as X-Request-Id.
type RequestIDConfig struct {
	// Header names the response header, and the request header if TrustIncoming
	// is set. Empty means "X-Request-Id".
	Header string

	// TrustIncoming takes over the id that a request brings, so that one id
	// follows it through several services. Set it only behind a proxy that sets
	// or removes the header: whoever chooses ids can make log lines lie. An id
	// longer than 128 bytes, or with characters other than letters, digits and
	// "-_.~+/=:", is replaced.
	TrustIncoming bool

	// Generate makes an id. Nil means 26 random characters (130 bits), which also
	// replace one that TrustIncoming would replace. It must be safe for concurrent use.
	Generate func() string
}

// RequestID gives each request an id, which handlers read with [RequestIDOf] and
// AccessLog logs. It panics if cfg.Header is no name of a header.
func RequestID(cfg RequestIDConfig) Middleware {
	if cfg.Header == "" {
		cfg.Header = "X-Request-Id"
	}
	if tokenLen(cfg.Header) != len(cfg.Header) {
		panic("middleware: RequestIDConfig.Header is no name of a header: " + cfg.Header)
	}
	cfg.Header = http.CanonicalHeaderKey(cfg.Header)
	if cfg.Generate == nil {
		cfg.Generate = rand.Text
	}
	return func(next http.Handler) http.Handler {
		return newLayer(kindRequestID, next, nil, func(v *visit, w http.ResponseWriter, r *http.Request, next http.Handler) {
			var id string
			if cfg.TrustIncoming {
				if id = r.Header.Get(cfg.Header); !validRequestID(id) {
					id = ""
				}
			}
			if id == "" {
				if id = cfg.Generate(); !validRequestID(id) {
					id = rand.Text()
				}
			}
			v.mu.Lock()
			v.requestID, v.idField = id, cfg.Header
			v.mu.Unlock()
			w.Header()[cfg.Header] = []string{id}
			next.ServeHTTP(w, r)
		})
	}
}

// RequestIDOf returns the id that RequestID gave to r, or "".
func RequestIDOf(r *http.Request) string {
	v := visitOf(r)
	if v == nil {
		return ""
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.requestID
}

func validRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.', c == '~', c == '+', c == '/', c == '=', c == ':':
		default:
			return false
		}
	}
	return true
}
