package roundtrip

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"
)

// The classes of error. Every error a Conn returns matches at least one of
// these, or is the caller's own context.Canceled, by errors.Is.
var (
	// ErrUnavailable says that Redis could not be asked, or did not answer as a
	// working server would: it is down, too slow, loading, failing over, or
	// refuses (see ErrRefused). Whether to fail open or closed is up to the
	// caller. It is true of ErrTimeout, ErrRefused and ErrOverloaded as well.
	ErrUnavailable = errors.New("redis is unavailable")

	// ErrTimeout says that no answer came in time. The command may have been
	// executed, see MaybeExecuted.
	ErrTimeout = errors.New("redis did not answer in time")

	// ErrRefused says that Redis answered and will keep refusing until somebody
	// changes its configuration: out of memory, no permission, not
	// authenticated, read-only.
	ErrRefused = errors.New("redis refused the command")

	// ErrOverloaded says that this process did not get to asking Redis in time, since it
	// had too much else to do: the call waited in its own queues, or for a connection of a
	// pool that was all in use. It was not executed, and it says nothing of Redis. It
	// matches ErrUnavailable too.
	ErrOverloaded = errors.New("the process is overloaded")

	// ErrBug says that the command was wrong for the data or the topology
	// (WRONGTYPE, CROSSSLOT, an error of a script's own). What other error replies say is
	// ErrRefused or ErrUnavailable. It never matches ErrUnavailable:
	// failing open on a bug would hide it.
	ErrBug = errors.New("redis rejected the command as wrong")
)

// Error is the type of every error a Conn returns.
type Error struct {
	// Package and Op say what was attempted, such as "session" and "load".
	Package, Op string
	// Kind is ErrUnavailable, ErrTimeout, ErrRefused, ErrOverloaded, ErrBug, or
	// context.Canceled.
	Kind error
	// MaybeExecuted is true when Redis may have executed the command although no
	// answer was seen.
	MaybeExecuted bool
	// Err is the cause. It never contains keys or arguments.
	Err error
}

func (e *Error) Error() string {
	s := e.Op + ": " + e.Kind.Error()
	if e.Package != "" {
		s = e.Package + ": " + s
	}
	if e.Err != nil && e.Err != e.Kind {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives errors.Is and errors.As the class and the cause.
func (e *Error) Unwrap() []error {
	kinds := []error{e.Kind}
	if e.Kind == ErrTimeout || e.Kind == ErrRefused || e.Kind == ErrOverloaded {
		kinds = append(kinds, ErrUnavailable)
	}
	if e.Err != nil {
		kinds = append(kinds, e.Err)
	}
	return kinds
}

// MaybeExecuted reports whether err leaves open that Redis executed the command.
// It is false for a nil error and for errors that prove the opposite: refused
// connections, an open breaker, a call that left before its flight took off.
func MaybeExecuted(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.MaybeExecuted
}

var (
	errBreakerOpen = errors.New("circuit breaker is open after repeated failures")
	errQueued      = errors.New("the call waited too long for its turn")
	errCrowded     = errors.New("too many earlier calls are still unanswered")
)

// Classify wraps the error of one command for the caller: nil for nil and for
// redis.Nil, which is an answer.
func (c *Conn) Classify(op string, err error) error {
	if err == nil || err == redis.Nil {
		return nil
	}
	var already *Error
	if errors.As(err, &already) {
		return err
	}
	kind, maybe := classify(err)
	return &Error{Package: c.cfg.Name, Op: op, Kind: kind, MaybeExecuted: maybe, Err: scrub(err)}
}

// classify tells the class of a go-redis error, and whether the command may have
// been executed nevertheless.
func classify(err error) (kind error, maybe bool) {
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled, true
	case isOurs(err):
		return ErrOverloaded, false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout, !isDial(err) && !isUnsent(err)
	case errors.Is(err, redis.ErrClosed):
		return ErrUnavailable, false
	}
	if isReply(err) {
		kind, known := replyKind(err.Error())
		if !known {
			tell(scrub(err).Error())
		}
		return kind, false
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return ErrTimeout, !isDial(err) && !isUnsent(err)
	}
	// Everything else comes from the wire: reset, EOF, garbage. Only a failed
	// dial, and a connection that was found closed, prove that nothing was sent.
	return ErrUnavailable, !isDial(err) && !isUnsent(err)
}

// isOurs reports whether err says that this process did not get to asking Redis.
func isOurs(err error) bool {
	return errors.Is(err, errQueued) || errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted)
}

// isReply reports whether err is an error that the server answered with, and not
// one of the network.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && !errors.Is(err, io.EOF)
}

func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// scrub drops what a server puts into an error text beyond its first line; Redis
// repeats arguments there ("called with args beginning with: …").
func scrub(err error) error {
	text := err.Error()
	if i := strings.Index(text, ", with args beginning with"); i > 0 {
		return errors.New(text[:i])
	}
	return err
}
