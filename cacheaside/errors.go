package cacheaside

import (
	"errors"
	"fmt"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	// ErrNotFound is what a loader returns, possibly wrapped, for a key that does
	// not exist at the source. The answer is cached for Config.NegativeTTL.
	ErrNotFound = errors.New("cacheaside: not found")

	// ErrNotModified is what a loader returns, possibly wrapped, if the value that
	// Previous gave it is still right. That is cached anew.
	ErrNotModified = errors.New("cacheaside: not modified")

	// ErrUnavailable says that Redis could not be asked. Get and its kin don't
	// return it: they load instead.
	ErrUnavailable = roundtrip.ErrUnavailable

	// ErrInvalidationQueued says that an invalidation could not be carried out
	// now. It is tried again in the background, and until it has succeeded this
	// process loads the keys instead of reading them from the cache. Other
	// processes may see the old values until then. It comes along with
	// ErrUnavailable. Update returns it only if the write is done.
	ErrInvalidationQueued = errors.New("cacheaside: invalidation failed and is queued")

	// ErrFenceLost says that a fence did not hold until it was lifted: the write
	// outlived Config.FenceTTL, or Redis lost the fence or could not be asked.
	// Update returns it only if the write is done. The keys were invalidated
	// afterwards, but a reader may have seen the old value after another had seen
	// the new one. From Fence.Done it says nothing about the write.
	ErrFenceLost = errors.New("cacheaside: fence was lost before the write ended")

	// ErrLoadTimeout says that the loader did not return within
	// Config.LoadTimeout.
	ErrLoadTimeout = errors.New("cacheaside: loader did not return in time")

	// ErrVetoed wraps the error of a BeforeInvalidate hook.
	ErrVetoed = errors.New("cacheaside: invalidation was vetoed")

	// ErrBadKey says that a key can't be cached: its text is longer than 4,096 bytes, or
	// its MarshalText failed. Nothing was loaded or invalidated.
	ErrBadKey = errors.New("cacheaside: key can't be encoded")

	// ErrClosed is returned after Close.
	ErrClosed = errors.New("cacheaside: cache is closed")

	errGoexit      = errors.New("runtime.Goexit was called")
	errUnreadable  = errors.New("stored entry is damaged or of a foreign format")
	errForeign     = errors.New("stored value was not written by this cache")
	errTooLarge    = errors.New("encoded value is larger than MaxValue")
	errSlow        = fmt.Errorf("%w: nothing was left of Timeout", ErrTimeout)
	errReply       = errors.New("cacheaside: Redis answered in an unexpected form")
	errKeyTooLarge = fmt.Errorf("%w: longer than %d bytes", ErrBadKey, maxKey)
)

// PanicError is the error that callers get when a loader, or another function of the
// app without which there is no answer, panics or calls runtime.Goexit.
type PanicError struct {
	Value any    // what it panicked with; an error for Goexit
	Stack []byte // of its goroutine
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("cacheaside: loader or another function of the app panicked: %v", e.Value)
}

// Unwrap returns Value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// ManyError tells which keys of a GetMany failed, and why. Keys that were not
// found are not among them.
type ManyError[K comparable] struct {
	Errs map[K]error
}

func (e *ManyError[K]) Error() string {
	for _, err := range e.Errs {
		return fmt.Sprintf("cacheaside: %d keys failed, one of them with: %v", len(e.Errs), err)
	}
	return "cacheaside: no key failed"
}

// Unwrap returns the keys' errors.
func (e *ManyError[K]) Unwrap() []error {
	errs := make([]error, 0, len(e.Errs))
	for _, err := range e.Errs {
		errs = append(errs, err)
	}
	return errs
}
