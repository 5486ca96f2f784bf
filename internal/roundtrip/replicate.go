package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrNotReplicated says that the master carried the command out, but too few
// replicas acknowledged it in time. Whatever it wrote is lost if the master fails
// before they have it.
var ErrNotReplicated = errors.New("too few replicas acknowledged the write")

// errUnplaced is on a command that could not be sent.
var errUnplaced = errors.New("no master is known for the key")

// A WAIT counts the writes of its own connection, and it blocks that connection.
// So calls that wait for replicas have a lane of their own, whose flights end with
// one WAIT for all of them: others are not held up, and however many callers wait,
// they hold as many connections as the lane has flights.
const (
	// waitShare of its time may a flight wait for replicas, in percent. A caller
	// that comes when one has just left must not miss its own deadline.
	waitShare = 40
	// maxDeliveries is how often a command is sent at most that the server has not
	// executed: to learn its script, to follow a slot that moves, to try again.
	maxDeliveries = 6
)

// receipt ends a call that waits for replicas. It is not sent, but takes what WAIT
// said of the call's commands.
type receipt struct {
	*redis.IntCmd
	pkg, op string
	want    int64

	mu     sync.Mutex // several masters may sign
	got    int64
	signed bool
}

// DoReplicated is Do for writes that replicas acknowledge before it returns. If
// fewer did in time than asked for, the error matches ErrNotReplicated, and the
// commands' values may be read all the same: the master has carried them out.
//
// The wait takes up to 40 % of Config.Timeout. Calls share their waits with each
// other and never with those of Do, whatever Config.NoCoalesce says. Nothing is
// sent a second time that may have been executed, since a repetition that finds
// nothing left to write would have nothing to wait for.
//
// On a cluster each master's commands wait for that master's replicas.
func (c *Conn) DoReplicated(ctx context.Context, op string, replicas int, cmds ...redis.Cmder) error {
	r := &receipt{IntCmd: redis.NewIntCmd(ctx, "wait"), pkg: c.cfg.Name, op: op, want: int64(replicas)}
	return c.Do(ctx, op, append(cmds, r)...)
}

// sign notes how many replicas have a command.
func (r *receipt) sign(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.signed || n < r.got {
		r.got, r.signed = n, true
	}
}

// close puts the outcome where Do looks for it.
func (r *receipt) close() {
	r.SetVal(r.got)
	if r.signed && r.got < r.want {
		r.SetErr(&Error{Package: r.pkg, Op: r.op, Kind: ErrNotReplicated, Err: fmt.Errorf("%d of %d", r.got, r.want)})
	}
}

// delivery is one command on its way.
type delivery struct {
	cmd     redis.Cmder
	receipt *receipt
	node    *redis.Client // that a redirect named; nil: by the key
	asking  bool
}

// execReplicated is exec for a flight of calls that wait for replicas.
func (e *engine) execReplicated(ctx context.Context, l *lane, cmds []redis.Cmder, timeout time.Duration) {
	var due []*delivery
	var receipts []*receipt
	first := 0
	for _, cmd := range cmds {
		r, ok := cmd.(*receipt)
		if !ok {
			due = append(due, &delivery{cmd: cmd})
			continue
		}
		for _, d := range due[first:] {
			d.receipt = r
		}
		first = len(due)
		receipts = append(receipts, r)
	}
	all := due
	wait := timeout * waitShare / 100
	until := time.Now().Add(wait)
	looked := 0
	for n := 0; n < maxDeliveries; {
		e.deliver(ctx, due, max(time.Until(until), time.Millisecond))
		var pause, stale bool
		if due, pause, stale = e.undelivered(ctx, due); len(due) == 0 {
			break
		}
		if looked++; !stale || looked > maxStale {
			n++
		}
		if n == maxDeliveries {
			break
		}
		if pause {
			d := firstBackoff << min(n, maxRetries)
			select {
			case <-ctx.Done():
			case <-time.After(d/2 + rand.N(d)):
			}
		}
		if ctx.Err() != nil {
			break // they keep the error they have
		}
		for _, d := range due {
			if isUnknownScript(d.cmd) {
				d.cmd.(runsScript).useSource()
			}
			d.cmd.SetErr(nil)
		}
	}
	sent := make([]redis.Cmder, len(all))
	for i, d := range all {
		sent[i] = d.cmd
	}
	switch outcomeOf(sent) {
	case answered:
		l.brk.report(false)
	case failed:
		l.failed()
	}
	for _, r := range receipts {
		r.close()
	}
}

// deliver sends each command to its master, followed by a WAIT on the same
// connection.
func (e *engine) deliver(ctx context.Context, due []*delivery, wait time.Duration) {
	if e.cluster == nil {
		e.deliverTo(ours{ctx}, e.rdb, due, wait)
		return
	}
	byNode := make(map[*redis.Client][]*delivery)
	for _, d := range due {
		node := d.node
		if node == nil {
			var err error
			if node, err = e.cluster.MasterForKey(ctx, firstKey(d.cmd)); err != nil {
				d.cmd.SetErr(errUnplaced)
				continue
			}
		}
		byNode[node] = append(byNode[node], d)
	}
	var all sync.WaitGroup
	for node, part := range byNode {
		all.Go(func() { e.deliverTo(ctx, node, part, wait) })
	}
	all.Wait()
}

func (e *engine) deliverTo(ctx context.Context, node redis.UniversalClient, part []*delivery, wait time.Duration) {
	want := int64(0)
	cmds := make([]redis.Cmder, 0, len(part)+1)
	for _, d := range part {
		if d.asking {
			cmds = append(cmds, redis.NewStatusCmd(ctx, "asking"))
		}
		cmds = append(cmds, d.cmd)
		want = max(want, d.receipt.want)
	}
	w := waitCmd{redis.NewIntCmd(ctx, "wait", want, max(wait.Milliseconds(), 1))}
	cmds = append(cmds, w)
	p := node.Pipeline()
	err := p.BatchProcess(ctx, cmds...)
	if err == nil {
		_, err = p.Exec(ctx)
	}
	if err != nil && !anyErr(cmds) {
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
	}
	for _, d := range part {
		if err := d.cmd.Err(); err == nil || err == redis.Nil {
			d.receipt.sign(w.Val()) // 0 if its own reply is missing
		}
	}
}

// waitCmd keeps go-redis from sending its pipeline again.
type waitCmd struct{ *redis.IntCmd }

func (waitCmd) NoRetry() bool { return true }

// undelivered returns those that no server has executed and another may, or the
// same one a moment later; and whether their connections had been closed.
func (e *engine) undelivered(ctx context.Context, due []*delivery) (again []*delivery, pause, stale bool) {
	stale = true
	for _, d := range due {
		err := d.cmd.Err()
		if err == nil || err == redis.Nil {
			continue
		}
		closed := isUnsent(err) && !isTimeout(err)
		stale = stale && closed
		if isUnknownScript(d.cmd) || closed {
			again = append(again, d)
			continue
		}
		if e.cluster != nil {
			addr, moved := redis.IsMovedError(err)
			if !moved {
				addr, d.asking = redis.IsAskError(err)
			} else {
				d.asking = false
			}
			if moved || d.asking {
				if d.node = e.master(ctx, addr); d.node == nil {
					e.nudge()
					d.asking, pause = false, true
				}
				again = append(again, d)
				continue
			}
			d.node = nil
		}
		kind, maybe := classify(err)
		switch {
		case maybe && err != errUnplaced:
		case kind != ErrUnavailable && kind != ErrTimeout && !redis.IsReadOnlyError(err):
		case isUnknownReply(err):
		case errors.Is(err, redis.ErrClosed), redis.HasErrorPrefix(err, "BUSY"), redis.HasErrorPrefix(err, "MISCONF"):
		default:
			again, pause = append(again, d), true
		}
	}
	return again, pause, stale
}

// master returns the client of the master with an address, or nil.
func (e *engine) master(ctx context.Context, addr string) (found *redis.Client) {
	var mu sync.Mutex
	_ = e.cluster.ForEachMaster(ctx, func(_ context.Context, m *redis.Client) error {
		if m.Options().Addr == addr {
			mu.Lock()
			found = m
			mu.Unlock()
		}
		return nil
	})
	return found
}
