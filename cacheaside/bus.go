package cacheaside

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// bus hears what other processes invalidate, by pub/sub.
//
// It vouches for the first level: as long as it is connected, every invalidation
// that Redis announced before a certain moment has been applied. That moment is
// when the last ping was sent that has been answered, since answers and
// announcements come in order on one connection. The channel of go-redis' PubSub
// is not used, as it hides reconnections and drops what does not fit its buffer.
type bus struct {
	rdb          redis.UniversalClient
	channels     []string
	maxStaleness time.Duration

	message func(payload string)
	proved  func(at int64) // by mono: all announced before at was applied
	lost    func()         // announcements may have been missed
	failed  func(error)    // it could not be subscribed; may be nil
}

func newBus(rdb redis.UniversalClient, channels []string, maxStaleness time.Duration) *bus {
	return &bus{rdb: rdb, channels: channels, maxStaleness: maxStaleness}
}

// run listens until ctx ends, over as many connections as it takes.
func (b *bus) run(ctx context.Context) {
	pause := 10 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		if b.listen(ctx) {
			b.lost()
		}
		if time.Since(began) > 5*time.Second {
			pause = 10 * time.Millisecond
		}
		sleep(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, time.Second)
	}
}

// listen serves one connection until it fails, falls silent, or ctx ends, and
// reports whether it had been subscribed.
func (b *bus) listen(ctx context.Context) (subscribed bool) {
	ctx, cancel := context.WithCancel(ctx)
	ps := b.rdb.Subscribe(ctx)
	pinger := make(chan struct{})
	pongs := make(chan int64, 1)
	go func() {
		defer close(pinger)
		b.ping(ctx, ps, pongs)
		ps.Close() // wakes Receive
	}()
	defer func() {
		cancel()
		<-pinger
	}()

	if err := ps.Subscribe(ctx, b.channels...); err != nil {
		if b.failed != nil && ctx.Err() == nil {
			b.failed(err)
		}
		return false
	}
	told := 0
	for {
		got, err := ps.Receive(ctx)
		if err != nil || ctx.Err() != nil {
			if !subscribed && b.failed != nil && ctx.Err() == nil {
				b.failed(err) // SUBSCRIBE was refused, for instance
			}
			return subscribed
		}
		switch m := got.(type) {
		case *redis.Subscription:
			if subscribed {
				return true // it has reconnected by itself: something may be lost
			}
			if told++; told < len(b.channels) {
				continue
			}
			subscribed = true
			b.proved(mono())
		case *redis.Message:
			b.message(m.Payload)
		case *redis.Pong:
			sent, err := strconv.ParseInt(m.Payload, 10, 64)
			if err != nil || !subscribed {
				continue
			}
			b.proved(sent)
			select {
			case pongs <- sent:
			default:
			}
		}
	}
}

// ping asks for signs of life, and returns when none came for maxStaleness or
// when ctx ends.
func (b *bus) ping(ctx context.Context, ps *redis.PubSub, pongs <-chan int64) {
	tick := time.NewTicker(max(b.maxStaleness/4, 10*time.Millisecond))
	defer tick.Stop()
	// Setting up a connection may take longer than an answer.
	last := mono() + int64(time.Second)
	for {
		select {
		case <-ctx.Done():
			return
		case sent := <-pongs:
			last = sent
		case <-tick.C:
			if mono()-last > int64(b.maxStaleness) {
				return
			}
			if ps.Ping(ctx, strconv.FormatInt(mono(), 10)) != nil {
				return
			}
		}
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
