package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// While a slot of a cluster moves to another master, a command with several keys
// is refused (TRYAGAIN) unless all of them exist on one side, which a ban hardly
// ever does. A command with one key is always served, by the side that has it. So
// in such a slot the ban is looked up by itself, and each policy decides by
// itself.
//
// A limiter with one policy loses nothing by that but a round trip. Several
// policies are asked one after another, as AllowAll asks several subjects: what was
// taken is given back when a later one denies. No limit is ever exceeded.

//go:embed banned.lua
var bannedSource string

var bannedScript = roundtrip.NewScript(bannedSource)

// apartFor is how long a slot that was found moving is taken to be.
const apartFor = time.Second

var errApart = errors.New("the slot moves to another master")

// apart reports whether the lane's slot moves.
func (ln *lane) apart(set *policySet) bool {
	until := ln.apartUntil.Load()
	if until == 0 || set.alone {
		return false
	}
	if int64(time.Since(base)) < until {
		return true
	}
	ln.apartUntil.CompareAndSwap(until, 0)
	return false
}

// movesApart reports whether err says that the slot of key moves, and notes it.
func (l *Limiter) movesApart(key string, err error) bool {
	if !l.conn.IsCluster() || l.set.alone {
		return false
	}
	if redis.IsTryAgainError(err) {
		l.lane(l.keys.base(key)).apartUntil.Store(int64(time.Since(base) + l.apartFor))
		return true
	}
	return errors.Is(err, errApart)
}

// alone returns a limiter for each policy, whose scripts have that one's key and
// no other.
func (l *Limiter) alone() []*Limiter {
	l.set.split.Do(func() {
		for i := range l.set.policies {
			set, _ := l.newSet([]Policy{l.set.policies[i].Policy}) // checked with the others
			set.alone = true
			l.set.parts = append(l.set.parts, set)
		}
	})
	ls := make([]*Limiter, len(l.set.parts))
	for i, set := range l.set.parts {
		ls[i] = &Limiter{core: l.core, set: set}
	}
	return ls
}

// decideApart is decide for a slot that moves.
func (l *Limiter) decideApart(ctx context.Context, key string, cost int64, reserve *Reservation) (Result, error) {
	cmd, err := l.conn.Run(ctx, "decide", bannedScript.Cmd(ctx, []string{l.keys.base(key)}))
	if err != nil {
		return Result{}, err
	}
	if n, err := cmd.Int64Slice(); err != nil || len(n) != 2 {
		return Result{}, errReply
	} else if n[1] > 0 {
		return (&subject{now: n[0], banned: n[1]}).result(nil, 0, nil), nil
	}
	parts := l.alone()
	if len(parts) == 1 {
		return parts[0].askAlone(ctx, key, cost, reserve)
	}
	var all Result
	if cost <= 0 {
		all = Result{Allowed: true}
		most := max(-cost, 1)
		for _, p := range parts {
			r, err := p.askAlone(ctx, key, 0, nil)
			if err != nil {
				return Result{}, err
			}
			all.add(&r)
			if !r.Policies[0].Shadow {
				most = min(most, r.Policies[0].Remaining)
			}
		}
		if all.summarise(); cost == 0 || most == 0 {
			return all, nil
		}
		cost = most
	}
	all = Result{Allowed: true, Granted: cost}
	var taken []*Reservation
	for _, p := range parts {
		t := &Reservation{l: p, key: key, n: cost}
		if t.Result, err = p.askAlone(ctx, key, cost, t); err == nil && t.Allowed {
			taken = append(taken, t)
			all.add(&t.Result)
			continue
		}
		for i, t := range taken {
			_ = t.Cancel(ctx) // what can't be given back stays taken
			all.Policies[i].Remaining = min(all.Policies[i].Remaining+cost, all.Policies[i].Limit)
		}
		if err != nil {
			return Result{}, err
		}
		all.add(&t.Result)
		all.Granted = 0
		all.summarise()
		return all, nil
	}
	if reserve != nil {
		reserve.parts, reserve.n = taken, cost
	}
	all.summarise()
	return all, nil
}

// add adds what a policy said by itself.
func (r *Result) add(one *Result) {
	r.Allowed = r.Allowed && one.Allowed
	r.At = one.At
	r.Policies = append(r.Policies, one.Policies...)
}

// askAlone lets Redis decide about one policy.
func (l *Limiter) askAlone(ctx context.Context, key string, cost int64, reserve *Reservation) (Result, error) {
	cost = max(min(cost, l.set.most+1), -l.set.most)
	var lease string
	if l.set.leased && cost != 0 {
		lease = newLease()
	}
	s, r, n, _, err := l.ask(ctx, hashOf(key), key, cost, lease)
	if err != nil {
		return Result{}, err
	}
	res := s.result(r, n, s.room(r, n))
	if reserve != nil && res.Allowed {
		reserve.l, reserve.lease = l, lease
		reserve.taken(s, r, n)
	}
	return res, nil
}

// refundApart is refund, policy by policy.
func (l *Limiter) refundApart(ctx context.Context, key string, set *policySet, args []any) (err error) {
	for i, k := range l.stateKeys(key, set) {
		if taken, ok := args[1].(int64); ok && set.policies[i].algo != concurrency {
			cmd := redis.NewStringCmd(ctx, "get", k+resetSuffix)
			if e := l.conn.Do(ctx, "refund", cmd); e != nil && !errors.Is(e, redis.Nil) {
				err = errors.Join(err, e)
				continue
			}
			if forgotten, _ := cmd.Int64(); forgotten >= taken {
				continue
			}
		}
		one := append([]any{1, args[1]}, args[2+refundEach*i:2+refundEach*(i+1)]...)
		_, e := l.conn.Run(ctx, "refund", refundScript.Cmd(ctx, []string{k}, one...).Once())
		err = errors.Join(err, e)
	}
	return err
}
