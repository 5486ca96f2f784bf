package middleware

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/redporch/redporch/cacheaside"
)

// CachedConfig tells Cached how to write a value. The zero value writes JSON that
// browsers may keep but must ask about.
type CachedConfig[V any] struct {
	// Encode writes a value. Nil means JSON. The same value must give the same
	// bytes, or every request is answered in full.
	Encode func(value V) (body []byte, contentType string, err error)

	// CacheControl is the response's Cache-Control. Empty means
	// "private, no-cache": kept by the client alone, and asked about each time.
	CacheControl string

	// Error, when set, answers when there is no value, in place of 404 for
	// cacheaside.ErrNotFound, 400 for an error of the key function or a key that
	// can't be cached (cacheaside.ErrBadKey), 504 for a loader that took too long
	// and 500 for any other error.
	Error func(w http.ResponseWriter, r *http.Request, err error)

	// Logger gets errors that are answered with 500. Nil means slog.Default().
	Logger *slog.Logger
}

// ErrBadKey is what Cached wraps the errors of a key function in.
var ErrBadKey = errors.New("middleware: request names no valid key")

// Cached is a handler that serves the values of a cache: GET and HEAD, with a
// strong ETag, so that a client that has the value already is answered with 304
// and no body. AccessLog tells where the value came from.
//
// It caches values, not responses: what it sends depends on the key alone. key
// takes it from the request; an error there answers 400. Cached panics if c or key
// is nil.
func Cached[K comparable, V any](c *cacheaside.Cache[K, V], key func(r *http.Request) (K, error), cfg CachedConfig[V]) http.Handler {
	if c == nil || key == nil {
		panic("middleware: Cached without a cache or key function")
	}
	if cfg.Encode == nil {
		cfg.Encode = func(value V) ([]byte, string, error) {
			body, err := json.Marshal(value)
			return append(body, '\n'), "application/json", err
		}
	}
	if cfg.CacheControl == "" {
		cfg.CacheControl = "private, no-cache"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		k, err := key(r)
		if err != nil {
			cfg.fail(w, r, errors.Join(ErrBadKey, err))
			return
		}
		entry, err := c.GetEntry(r.Context(), k)
		if entry.Source != cacheaside.SourceNone {
			NoteCache(r, entry.Source.String())
		}
		if err != nil {
			cfg.fail(w, r, err)
			return
		}
		body, contentType, err := cfg.Encode(entry.Value)
		if err != nil {
			cfg.fail(w, r, err)
			return
		}
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Cache-Control", cfg.CacheControl)
		h.Set("Etag", etag(contentType, body))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

// etag returns a strong entity tag (RFC 9110, section 8.8.3): 128 bits of the
// SHA-256 of what is sent.
func etag(contentType string, body []byte) string {
	h := sha256.New()
	h.Write([]byte(contentType))
	h.Write([]byte{0})
	h.Write(body)
	return `"` + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16]) + `"`
}

func (cfg *CachedConfig[V]) fail(w http.ResponseWriter, r *http.Request, err error) {
	if cfg.Error != nil {
		cfg.Error(w, r, err)
		return
	}
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, cacheaside.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, ErrBadKey), errors.Is(err, cacheaside.ErrBadKey):
		status = http.StatusBadRequest
	case errors.Is(err, cacheaside.ErrLoadTimeout), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusGatewayTimeout
	case r.Context().Err() == nil:
		loggerOr(cfg.Logger).LogAttrs(r.Context(), slog.LevelError, "cached value could not be served", slog.String("error", err.Error()))
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, http.StatusText(status), status)
}

// NoteCache tells AccessLog where a value came from, for handlers that ask a cache
// themselves: NoteCache(r, entry.Source.String()). Of several notes the last
// counts.
func NoteCache(r *http.Request, source string) {
	if v := visitOf(r); v != nil {
		v.mu.Lock()
		v.cache = source
		v.mu.Unlock()
	}
}
