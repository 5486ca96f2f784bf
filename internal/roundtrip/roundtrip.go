package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// DefaultTimeout bounds a call when Config.Timeout is zero.
const DefaultTimeout = 250 * time.Millisecond

// directCallers is the number of calls that may travel alone at the same time.
// Beyond it they share flights. See BenchmarkCallers for why it is small.
const directCallers = 2

// Config tells a Conn how to behave. The zero value is usable.
type Config struct {
	// Name begins error texts, usually the name of the package. Empty: none.
	Name string

	// Timeout bounds each call from entry to return; a context that ends sooner
	// wins. Zero means DefaultTimeout; negative is an error.
	Timeout time.Duration

	// NoCoalesce sends every call alone, whatever the load.
	NoCoalesce bool

	// NoBreaker lets every call try, even after repeated failures.
	NoBreaker bool

	// RoutingProxy says that a proxy sends each command to the server that its first key
	// belongs to, so that keys meet in a script only if they have the same hash tag. It
	// holds for all Conns of the client.
	RoutingProxy bool

	// OnCall, when set, is told of each finished call, on the caller's goroutine.
	// It must be safe for concurrent use.
	OnCall func(Event)
}

// Event describes a finished call. It contains no keys, arguments or addresses.
type Event struct {
	Op        string        // as given to Do, such as "load"
	Commands  int           // commands in the call, ≥ 1
	Duration  time.Duration // from entry to return
	Coalesced bool          // the call shared a flight
	Err       error         // nil, or an *Error
}

// Conn sends commands to one Redis. It is safe for concurrent use.
type Conn struct {
	cfg Config
	eng *engine
}

// New returns a Conn over rdb, which stays the caller's to close. It dials
// nothing. The error lists everything that is wrong with rdb and cfg.
func New(rdb redis.UniversalClient, cfg Config) (*Conn, error) {
	var errs []error
	if cfg.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout %v is negative; use zero for %v", cfg.Timeout, DefaultTimeout))
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if err := check(rdb); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c := &Conn{cfg: cfg, eng: engineFor(rdb)}
	if cfg.RoutingProxy {
		c.eng.slotted.Store(true)
	}
	for t := int64(cfg.Timeout); ; {
		longest := c.eng.longest.Load()
		if t <= longest || c.eng.longest.CompareAndSwap(longest, t) {
			return c, nil
		}
	}
}

// Client returns the client the Conn was made from.
func (c *Conn) Client() redis.UniversalClient { return c.eng.rdb }

// Inner returns the go-redis client that Client passes its calls on to, as far as that can
// be seen: a type of somebody's own is seen through if it embeds it, or has a method
// Unwrap() redis.UniversalClient.
func (c *Conn) Inner() redis.UniversalClient { return c.eng.inner }

// IsCluster reports whether keys of different hash slots can't meet in a script: the
// client comes down to a *redis.ClusterClient, the server has answered CROSSSLOT to another
// one, or Config.RoutingProxy says so. So it may become true while the Conn is in use.
func (c *Conn) IsCluster() bool {
	return c.eng.cluster != nil || c.eng.slotted.Load()
}

// Available reports whether the breaker lets calls for key pass: false means
// that Redis failed several times in a row and no probe has succeeded since.
func (c *Conn) Available(key string) bool { return !c.eng.pairFor(key).breaker.open() }

// Do sends cmds in one round trip and waits for their replies. A command's value
// may be read only if Do returned nil, or if only the error of another command of
// this call was returned; after ErrTimeout or context.Canceled the commands still
// belong to the flight. The error is the first that any command met; redis.Nil is
// an answer, not an error, and stays on the command.
//
// Commands of one call are sent in order, with other calls' between them. A
// script that the server did not know runs after the rest of its call. On a
// cluster the first command's first key decides which server's breaker and
// flights the call uses; keys of other slots are allowed.
func (c *Conn) Do(ctx context.Context, op string, cmds ...redis.Cmder) error {
	if err := c.DoEach(ctx, op, cmds...); err != nil {
		return err
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && err != redis.Nil {
			return c.Classify(op, err)
		}
	}
	return nil
}

// DoEach is Do for calls whose commands may fail apart from each other. Its
// error is non-nil only when no command may be read: none was sent, or the wait
// ended first. Otherwise each command holds its own outcome; pass its Err to
// Classify.
func (c *Conn) DoEach(ctx context.Context, op string, cmds ...redis.Cmder) error {
	return c.DoEachBy(ctx, time.Time{}, op, cmds...)
}

// DoEachBy is DoEach for a call that began some time ago, and was to end at by. While
// Redis answers, it is sent nevertheless and given Config.Timeout, since the time that has
// passed was this process' own, unless that was eight times as much: ErrOverloaded. After
// a failure it ends at by. Zero means no such time.
func (c *Conn) DoEachBy(ctx context.Context, by time.Time, op string, cmds ...redis.Cmder) error {
	if c.cfg.OnCall == nil {
		_, err := c.send(ctx, op, cmds, by)
		return err
	}
	start := time.Now()
	coalesced, err := c.send(ctx, op, cmds, by)
	ev := Event{Op: op, Commands: len(cmds), Duration: time.Since(start), Coalesced: coalesced, Err: err}
	for i := 0; err == nil && ev.Err == nil && i < len(cmds); i++ {
		ev.Err = c.Classify(op, cmds[i].Err())
	}
	c.cfg.OnCall(ev)
	return err
}

// Run runs a script and returns its command, whose reply is read with the
// methods of redis.Cmd.
func (c *Conn) Run(ctx context.Context, op string, cmd *ScriptCmd) (*redis.Cmd, error) {
	if err := c.Do(ctx, op, cmd); err != nil {
		return nil, err
	}
	return cmd.Cmd, nil
}

func (c *Conn) send(ctx context.Context, op string, cmds []redis.Cmder, by time.Time) (coalesced bool, err error) {
	if len(cmds) == 0 {
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, c.gone(op, err, false)
	}
	pair := c.eng.pairFor(firstKey(cmds[0]))
	l := &pair.repeatable
	if isOnce(cmds) {
		l = &pair.once
	}
	_, waits := cmds[len(cmds)-1].(*receipt)
	if waits {
		l = &pair.replicated
	}
	if !c.cfg.NoBreaker && !l.brk.allow() {
		return false, &Error{Package: c.cfg.Name, Op: op, Kind: ErrUnavailable, Err: errBreakerOpen}
	}
	gathered := !by.IsZero() && c.eng.cluster == nil
	if n := c.eng.inflight.Add(1); !waits && (n <= directCallers || c.cfg.NoCoalesce || gathered) {
		err = c.direct(ctx, op, l, cmds, by)
	} else {
		coalesced = true
		err = c.join(ctx, op, l, cmds, by)
	}
	c.eng.inflight.Add(-1)
	return coalesced, err
}

// gone is the error of a call whose context ended.
func (c *Conn) gone(op string, cause error, maybe bool) error {
	kind := context.Canceled
	if !errors.Is(cause, context.Canceled) {
		kind = ErrTimeout
	}
	return &Error{Package: c.cfg.Name, Op: op, Kind: kind, MaybeExecuted: maybe, Err: cause}
}

// direct sends cmds at once, on a connection of their own.
func (c *Conn) direct(ctx context.Context, op string, l *lane, cmds []redis.Cmder, by time.Time) error {
	by, err := l.deadline(by, c.cfg.Timeout)
	if err != nil {
		return c.Classify(op, err)
	}
	own, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	if c.eng.bounded {
		// The socket itself obeys the deadline: no second goroutine needed.
		c.eng.exec(own, l, cmds, ctx)
		return nil
	}
	if l.overdue.Load() >= maxOverdue {
		return &Error{Package: c.cfg.Name, Op: op, Kind: ErrUnavailable, Err: errCrowded}
	}
	// A read on this client's sockets can't be interrupted, so somebody else
	// does it and the caller stops waiting in time.
	var ended atomic.Bool // by whichever comes first: the reply, or the deadline
	done := make(chan struct{})
	go func() {
		c.eng.exec(own, l, cmds, ctx)
		if !ended.CompareAndSwap(false, true) {
			l.overdue.Add(-1)
		}
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-own.Done():
	}
	late := time.Since(by) > c.cfg.Timeout/4
	if late && ctx.Err() == nil {
		// So was this goroutine, and perhaps the other, which has the reply.
		timer := l.timers.get()
		timer.Reset(c.cfg.Timeout / 4)
		await(ctx, done, timer.C)
		l.timers.put(timer)
	}
	l.overdue.Add(1)
	if !ended.CompareAndSwap(false, true) {
		l.overdue.Add(-1)
		<-done
		return nil
	}
	if ctx.Err() == nil && !late {
		l.failed()
	}
	return c.late(ctx, op, true)
}

// late is the error of a call that stopped waiting.
func (c *Conn) late(ctx context.Context, op string, maybe bool) error {
	if err := ctx.Err(); err != nil {
		return c.gone(op, err, maybe)
	}
	return &Error{Package: c.cfg.Name, Op: op, Kind: ErrTimeout, MaybeExecuted: maybe, Err: context.DeadlineExceeded}
}

func isOnce(cmds []redis.Cmder) bool {
	for _, cmd := range cmds {
		if cmd.NoRetry() {
			return true
		}
	}
	return false
}
