package ratelimit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNever says that Wait was asked for more units than a policy ever admits.
var ErrNever = errors.New("ratelimit: more units than a policy can admit at once")

// ErrTooLate says that Wait's deadline is too near: the call would be admitted
// only after it. errors.Is finds context.DeadlineExceeded in it as well.
var ErrTooLate = fmt.Errorf("ratelimit: the call would be admitted only after the %w", context.DeadlineExceeded)

// closedRetry is the RetryAfter of calls that a failure policy denies, since
// nobody knows when Redis will be back.
const closedRetry = time.Second

// Wait blocks until a unit is taken for key, and returns nil then. It fails at
// once, with ErrTooLate, if ctx ends before that can be, and with ErrNever if it
// never can.
//
// Callers that wait for one key by one Limiter, in this process, are admitted in the
// order in which they came, and asked for together: so a large cost is not passed over,
// and those behind it wait for it. Calls that do not wait, other limiters and other
// processes keep no such order. Units that this process gives back (Cancel, Commit,
// Refund, Reset, Unban) are offered at once; whether other processes have is asked every
// [Config.MaxStale].
//
// What was taken for a caller whose ctx ended meanwhile is given back. A limiter that
// holds units (see Holds) is refused, since nobody could end the lease; use Reserve.
// Other errors are those of Allow, and that of ctx.
func (l *Limiter) Wait(ctx context.Context, key string) error { return l.WaitN(ctx, key, 1) }

// WaitN is Wait for n units at once. n is 1 or more.
func (l *Limiter) WaitN(ctx context.Context, key string, n int64) error {
	if n < 1 {
		return fmt.Errorf("ratelimit: cost %d is less than 1", n)
	}
	if err := l.lends("Wait"); err != nil {
		return err
	}
	if n > l.set.fits {
		return ErrNever
	}
	if err := ctx.Err(); err != nil {
		return ended(err, false)
	}
	w := &waiter{n: n, ctx: ctx, deadline: never, done: make(chan struct{})}
	if at, ok := ctx.Deadline(); ok {
		w.deadline = at.Sub(base)
	}
	q, first := l.waits.join(l, key, w)
	if first {
		// Nobody waits: the caller asks by itself.
		r, err := l.take(ctx, key, n)
		if others, _ := l.waits.settle(q, []*waiter{w}, &r, err); others {
			go q.drive()
		}
	}
	select {
	case <-w.done:
		return w.err
	default:
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		l.waits.leave(q, w)
		<-w.done
	}
	return w.err
}

// lends returns an error if the limiter's units are held until somebody gives them back,
// which the caller of what could not.
func (l *Limiter) lends(what string) error {
	for i := range l.set.policies {
		if p := &l.set.policies[i]; l.set.leased && p.algo == concurrency {
			return fmt.Errorf("ratelimit: %s with policy %q, a Concurrency, would hold units until the lease ends; use Reserve", what, p.name)
		}
	}
	return nil
}

// never is a time that does not come.
const never = Never

// waits holds the queues of those who wait.
type waits struct {
	mu    sync.Mutex
	byKey map[string][]*waitQueue // one for each set of policies
	n     atomic.Int64            // queues
}

// waitQueue is a line of callers that wait for a key. There is one as long as somebody
// waits or asks, and a goroutine for it as long as more than one caller is there, or one
// that was denied.
type waitQueue struct {
	l       *Limiter
	key     string
	waiting list.List     // of *waiter; the first is admitted first
	wake    chan struct{} // something has changed

	// What the last decision has left: cost denied and more are denied until then, or
	// free units are there.
	denied int64 // 0: not known
	until  time.Duration
	free   int64
	news   bool // units may have been given back since that was asked for
}

// waiter is a caller that waits.
type waiter struct {
	n        int64
	ctx      context.Context
	deadline time.Duration // since base
	at       *list.Element // nil: is being asked for, or done
	gone     bool          // while it was being asked for
	done     chan struct{}
	err      error // once done
}

func (w *waiter) end(err error) {
	w.err = err
	close(w.done)
}

// join puts w into the queue of key. first reports that nobody else is there: then w is
// not in line, and its caller asks.
func (ws *waits) join(l *Limiter, key string, w *waiter) (q *waitQueue, first bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	at := slices.IndexFunc(ws.byKey[key], func(q *waitQueue) bool { return q.l.set == l.set })
	if at < 0 {
		key = strings.Clone(key) // which may be a piece of a request
		q = &waitQueue{l: l, key: key, wake: make(chan struct{}, 1)}
		if ws.byKey == nil {
			ws.byKey = make(map[string][]*waitQueue)
		}
		ws.byKey[key] = append(ws.byKey[key], q)
		ws.n.Add(1)
		return q, true
	}
	q = ws.byKey[key][at]
	if w.deadline < q.until && q.denied > 0 && (w.n >= q.denied || q.waiting.Len() > 0) {
		w.end(ErrTooLate)
		return q, false
	}
	w.at = q.waiting.PushBack(w)
	return q, false
}

// leave takes a caller out whose context has ended.
func (ws *waits) leave(q *waitQueue, w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	select {
	case <-w.done:
		return
	default:
	}
	if w.gone = w.at == nil; !w.gone {
		if w.at == q.waiting.Front() {
			q.signal()
		}
		q.waiting.Remove(w.at)
	}
	w.end(ended(w.ctx.Err(), w.gone))
}

func (q *waitQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// returned tells those who wait for key that units may have been given back.
func (ws *waits) returned(key string) {
	if ws.n.Load() == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, q := range ws.byKey[key] {
		q.denied, q.news = 0, true
		q.signal()
	}
}

// drive asks for those who wait until nobody does.
func (q *waitQueue) drive() {
	ws := &q.l.waits
	for {
		batch, pause := ws.next(q)
		if batch == nil {
			if pause == 0 {
				return
			}
			q.sleep(pause)
			continue
		}
		sum := int64(0)
		for _, w := range batch {
			sum += w.n
		}
		ctx := context.WithoutCancel(batch[0].ctx) // others may depend on it
		res, err := q.l.Reserve(ctx, q.key, sum)
		if _, unused := ws.settle(q, batch, &res.Result, err); unused > 0 {
			go func() { _ = res.Commit(ctx, sum-unused) }() // what can't be given back stays taken
		}
	}
}

// sleep waits until a decision may be another one.
func (q *waitQueue) sleep(pause time.Duration) {
	timer := timers.Get().(*time.Timer)
	timer.Reset(pause)
	select {
	case <-timer.C:
		ws := &q.l.waits
		ws.mu.Lock()
		q.denied = 0
		ws.mu.Unlock()
	case <-q.wake:
	}
	timer.Stop()
	timers.Put(timer)
}

// next returns those who are to be asked for now, or nil and how long to wait for that; 0
// if nobody waits, and then the queue is gone.
func (ws *waits) next(q *waitQueue) (batch []*waiter, pause time.Duration) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for {
		front := q.waiting.Front()
		if front == nil {
			ws.remove(q)
			return nil, 0
		}
		head, now := front.Value.(*waiter), time.Since(base)
		if q.denied > 0 && head.n >= q.denied && now < q.until {
			if head.deadline >= q.until { // and so all behind it wait at least as long
				for e := front.Next(); e != nil; {
					w := e.Value.(*waiter)
					if e = e.Next(); w.deadline < q.until {
						q.drop(w, ErrTooLate)
					}
				}
				pause = q.until - now
				if stale := q.l.cfg.MaxStale; stale > 0 {
					pause = min(pause, stale)
				}
				return nil, pause
			}
			q.drop(head, ErrTooLate)
			continue
		}
		sum := int64(0)
		for e := front; e != nil; e = q.waiting.Front() {
			w := e.Value.(*waiter)
			if len(batch) > 0 && sum+w.n > q.free {
				break
			}
			q.waiting.Remove(e)
			w.at = nil
			sum += w.n
			batch = append(batch, w)
		}
		q.denied, q.free, q.news = 0, 0, false
		return batch, 0
	}
}

func (q *waitQueue) drop(w *waiter, err error) {
	q.waiting.Remove(w.at)
	w.at = nil
	w.end(err)
}

// remove ends a queue. The mutex is held.
func (ws *waits) remove(q *waitQueue) {
	qs := ws.byKey[q.key]
	if i := slices.Index(qs, q); i >= 0 {
		qs = slices.Delete(qs, i, i+1)
		ws.n.Add(-1)
	}
	if ws.byKey[q.key] = qs; len(qs) == 0 {
		delete(ws.byKey, q.key)
	}
}

// settle tells a batch what was decided about it. It reports whether callers wait, and how
// many units were taken for callers who had left.
func (ws *waits) settle(q *waitQueue, batch []*waiter, r *Result, err error) (others bool, unused int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	end := func(err error) {
		for _, w := range batch {
			if !w.gone {
				w.end(err)
			} else if err == nil {
				unused += w.n
			}
		}
	}
	now := time.Since(base)
	switch retry := r.RetryAfter; {
	case err != nil:
		end(err)
	case r.Allowed:
		end(nil)
		if q.free = r.Remaining; r.Policy != "" && q.free == 0 && r.NextAfter > 0 && !q.news {
			q.denied, q.until = 1, later(now, r.NextAfter)
		}
	case retry == Never && r.Source != SourceLocal && len(batch) == 1:
		end(ErrNever)
	default:
		for _, w := range slices.Backward(batch) { // in front of the others, as they were
			if !w.gone {
				w.at = q.waiting.PushFront(w)
			}
		}
		if len(batch) > 1 || q.news {
			break // ask again, for the first by itself
		}
		if retry == Never { // more than this process' share: until Redis is back
			retry = closedRetry
		}
		q.denied, q.until = batch[0].n, later(now, retry)
		if w := batch[0]; w.at != nil && w.deadline < q.until {
			q.drop(w, ErrTooLate)
		}
	}
	if others = q.waiting.Len() > 0; !others {
		ws.remove(q)
	}
	return others, unused
}

// later is now and a wait.
func later(now, wait time.Duration) time.Duration { return now + min(wait, never-now) }

// timers keeps stopped timers, whose channels hold no old tick since Go 1.23.
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}
