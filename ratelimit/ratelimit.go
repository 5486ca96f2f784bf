package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

// Limiter decides whether calls may proceed, by policies whose state is in Redis.
// It is safe for concurrent use and owns nothing that needs closing.
type Limiter struct {
	*core
	set *policySet
}

// core is what a Limiter shares with those made from it by With.
type core struct {
	cfg    Config
	conn   *roundtrip.Conn
	keys   *keys
	lanes  lanes
	denied *denials // nil if off
	local  *local
	waits  waits
	// down is when Redis became unavailable, nanoseconds after base; 0 while it is
	// not.
	down atomic.Int64
	sets atomic.Int64
	// bansUntil is up to when bans are taken to be in force, nanoseconds after base,
	// see ban.go.
	bansUntil atomic.Int64
	// The constants of these names, but in tests.
	lookEvery, apartFor time.Duration
}

// policySet is a list of policies made ready for the scripts.
type policySet struct {
	id       int64
	policies []compiled
	header   []any
	most     int64 // cost above which no policy ever admits
	fits     int64 // cost above which the set never admits; of shadows alone there is none
	phased   bool
	leased   bool
	listed   bool // a policy needs the script to tell when it admits
	simple   bool // one policy that bucket.lua or one.lua knows
	alone    bool // scripts get the policy's key and no other, see apart.go
	split    sync.Once
	parts    []*policySet // a set for each policy that is alone, once needed
	// local holds those policies that are decided in process while Redis is
	// unavailable, nil if there are none.
	local *policySet
}

// New returns a Limiter over rdb, which stays the caller's to close: a
// *redis.Client (also one for Sentinel) or a *redis.ClusterClient. It dials
// nothing. A call is admitted if every policy admits it, and then taken from all
// of them; there are 1 to 16, and their names must differ, not only in case. Add
// hooks to the client, such as those of tracing, before: later ones don't see the
// limiter's calls. The error lists everything that is wrong.
func New(rdb redis.UniversalClient, cfg Config, policies ...Policy) (*Limiter, error) {
	errs := cfg.check()
	conn, err := roundtrip.New(rdb, roundtrip.Config{Name: "ratelimit", Timeout: max(cfg.Timeout, 0), NoCoalesce: cfg.NoCoalesce, RoutingProxy: cfg.RoutingProxy})
	if err != nil {
		errs = append(errs, fmt.Errorf("ratelimit: %w", err))
	}
	if err := checkAll(policies); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c := &core{cfg: cfg, conn: conn, keys: newKeys(cfg.Prefix, cfg.Secret, cfg.PlainKeys), lookEvery: lookEvery, apartFor: apartFor}
	c.local = newLocal(cfg.LocalKeys)
	if !cfg.NoDenialCache {
		c.denied = newDenials(cfg.DenialCacheSize, cfg.MaxStale)
	}
	c.newLanes()
	set, err := c.newSet(policies)
	if err != nil {
		return nil, err
	}
	return &Limiter{core: c, set: set}, nil
}

// With returns a Limiter with other policies for the same keys, such as those of
// a tier or of one route. It shares connection, flights, bans and denials with l.
// A policy with the name and algorithm of one of l's shares its state: units used
// under one limit count under the other. It is cheap, yet better made once for a
// tier than for each call. The error lists everything that is wrong.
func (l *Limiter) With(policies ...Policy) (*Limiter, error) {
	if err := checkAll(policies); err != nil {
		return nil, err
	}
	set, err := l.core.newSet(policies)
	if err != nil {
		return nil, err
	}
	return &Limiter{core: l.core, set: set}, nil
}

// Policies returns the limiter's policies, in the order given.
func (l *Limiter) Policies() []Policy {
	ps := make([]Policy, len(l.set.policies))
	for i := range ps {
		ps[i] = l.set.policies[i].Policy
	}
	return ps
}

// Holds reports whether one of the policies is of kind Concurrency, so that units
// are held until a Reservation ends: such a limiter is of use only with Reserve.
func (l *Limiter) Holds() bool { return l.set.leased }

func checkAll(policies []Policy) error {
	var errs []error
	if len(policies) == 0 {
		errs = append(errs, errors.New("ratelimit: no policy given; pass at least one, such as SlidingLog(\"api\", 100, time.Minute)"))
	}
	if len(policies) > maxPolicies {
		errs = append(errs, fmt.Errorf("ratelimit: %d policies given; use at most %d", len(policies), maxPolicies))
	}
	seen := make(map[string]bool)
	for _, p := range policies {
		if err := p.check(); err != nil {
			errs = append(errs, err)
		}
		name := strings.ToLower(p.name)
		if seen[name] && p.algo != 0 {
			errs = append(errs, fmt.Errorf("ratelimit: policy %q: the name is taken by an earlier policy; names must differ, not only in case", p.name))
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

// maxPolicies bounds the keys of one script run.
const maxPolicies = 16

func (c *core) newSet(policies []Policy) (*policySet, error) {
	s := &policySet{id: c.sets.Add(1), fits: math.MaxInt64}
	var inProcess []compiled
	var errs []error
	for _, p := range policies {
		if p.down == FailDefault {
			p.down = c.cfg.OnUnavailable
		}
		if p.down == Local || p.down == LocalThenClosed {
			part := localPolicy(p, c.cfg.Share)
			if err := part.check(); err != nil {
				errs = append(errs, fmt.Errorf("ratelimit: policy %q: its Share of %v can't be kept in this process: %w", p.name, c.cfg.Share, err))
				continue
			}
			inProcess = append(inProcess, part.compile())
		}
		cp := p.compile()
		s.policies = append(s.policies, cp)
		s.most = max(s.most, cp.cap)
		if !p.shadow {
			s.fits = min(s.fits, cp.cap)
		}
		s.phased = s.phased || p.offset == phased
		s.leased = s.leased || p.algo == concurrency
		s.listed = s.listed || cp.listed()
	}
	flag := map[bool]string{false: "0", true: "1"}
	s.header = append(s.header, len(policies), flag[s.phased], flag[s.leased], "")
	for i := range s.policies {
		s.header = append(s.header, s.policies[i].args[:]...)
	}
	if p := &s.policies[0]; len(s.policies) == 1 && !p.shadow && !s.phased && !p.listed() {
		s.simple = true
	}
	if inProcess != nil {
		s.local = &policySet{policies: inProcess, listed: s.listed}
	}
	return s, errors.Join(errs...)
}

// Allow takes one unit for key if every policy admits it.
//
// The error is non-nil only for misuse, for data in Redis that is not a
// limiter's, or if ctx ended first; the Result is then a denial. Redis being
// unavailable is no error: the failure policy decides, [Result.Source] and
// [Result.Err] tell.
func (l *Limiter) Allow(ctx context.Context, key string) (Result, error) {
	return l.take(ctx, key, 1)
}

// AllowN takes n units for key if every policy admits all of them, and none
// otherwise. 0 is a Peek; a negative n is an error. Errors are those of Allow.
func (l *Limiter) AllowN(ctx context.Context, key string, n int64) (Result, error) {
	if n < 0 {
		return Result{}, fmt.Errorf("ratelimit: cost %d is negative; use Refund to give back", n)
	}
	return l.take(ctx, key, n)
}

// AllowUpTo takes as many units for key as every policy admits, at most n, which
// must be 1 or more. [Result.Granted] tells how many; Allowed is false if there were
// none. Errors are those of Allow.
func (l *Limiter) AllowUpTo(ctx context.Context, key string, n int64) (Result, error) {
	if n < 1 {
		return Result{}, fmt.Errorf("ratelimit: cost %d is less than 1", n)
	}
	return l.take(ctx, key, -n)
}

// Peek tells what one unit for key would get, and takes nothing. It writes
// nothing to Redis. Errors are those of Allow.
func (l *Limiter) Peek(ctx context.Context, key string) (Result, error) {
	return l.take(ctx, key, 0)
}

// take decides about cost units: < 0 is up to -cost.
func (l *Limiter) take(ctx context.Context, key string, cost int64) (Result, error) {
	if l.cfg.Hooks.OnDecision == nil {
		return l.decide(ctx, key, cost, nil)
	}
	start := time.Now()
	r, err := l.decide(ctx, key, cost, nil)
	l.cfg.Hooks.decided(max(cost, -cost), &r, err, time.Since(start))
	return r, err
}

// decide decides. reserve, if not nil, is told what was taken.
func (l *Limiter) decide(ctx context.Context, key string, cost int64, reserve *Reservation) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, ended(err, false)
	}
	// More than any policy admits is all the same to them.
	res, err := l.decideUpTo(ctx, key, max(min(cost, l.set.most+1), -l.set.most), reserve)
	if res.Allowed && (cost > 0 || res.Policy == "") {
		res.Granted = max(cost, -cost)
	}
	return res, err
}

// decideUpTo is decide for a cost that is more than all policies admit by one at most.
func (l *Limiter) decideUpTo(ctx context.Context, key string, cost int64, reserve *Reservation) (Result, error) {
	var b *bucket
	var epoch uint64
	hash := hashOf(key)
	if l.denied != nil {
		b = l.denied.bucket(hash)
		if r, ok := l.proven(b, key, cost); ok {
			return r, nil
		}
		epoch = b.epoch.Load()
	}
	var lease string
	if l.set.leased && cost != 0 {
		lease = newLease()
	}
	s, r, n, sent, err := l.ask(ctx, hash, key, cost, lease)
	if err != nil && l.movesApart(key, err) {
		var res Result
		if res, err = l.decideApart(ctx, key, cost, reserve); err == nil {
			return res, nil
		}
	}
	if err != nil {
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return Result{}, err
		}
		return l.unavailable(key, cost, err, reserve)
	}
	res := s.result(r, n, s.room(r, n))
	if reserve != nil && res.Allowed {
		reserve.lease = lease
		reserve.taken(s, r, n)
	}
	if b != nil {
		l.learn(b, epoch, key, cost, &res, s, r, n, sent)
	}
	return res, nil
}

// proven answers a call that an earlier denial decides.
func (l *Limiter) proven(b *bucket, key string, cost int64) (Result, bool) {
	if cost < 0 {
		cost = 1 // up to n is denied when one is
	}
	if b.empty() { // in half of the time that it takes to read the clock
		return Result{}, false
	}
	now := time.Since(base)
	c := b.find(key, l.set.id, cost, now)
	if c == nil {
		return Result{}, false
	}
	if c.cost != cost && c.cost != 0 {
		epoch := b.epoch.Load()
		if c = c.derive(cost); c == nil {
			return Result{}, false
		}
		b.add(c, epoch, now)
	}
	return c.answer(now), true
}

// learn keeps what a decision of Redis proves.
func (l *Limiter) learn(b *bucket, epoch uint64, key string, cost int64, res *Result, s *subject, r *run, n int64, sent time.Duration) {
	switch {
	case res.Allowed || cost == 0 && !res.Banned:
		return
	case cost < 0:
		cost = 1
	}
	now := time.Since(base)
	b.outdate(key, l.set.id, res.Remaining)
	if c := l.denied.certify(key, l.set, cost, res, s, r.totals(n), sent, now); c != nil {
		b.add(c, epoch, now)
	}
}

// forget drops what is known of key, after something may have loosened its
// limits, and tells those who wait.
func (c *core) forget(key string) {
	if c.denied != nil {
		c.denied.bucket(hashOf(key)).drop(key)
	}
	c.waits.returned(key)
}

// ask lets Redis decide. The call is the n-th of run r on s, sent at sent.
func (l *Limiter) ask(ctx context.Context, hash uint64, key string, cost int64, lease string) (s *subject, r *run, n int64, sent time.Duration, err error) {
	known := l.keys.find(hash, key, l.set.policies[0].suffix)
	f, seat, took, err := l.fly(ctx, call{set: l.set, known: known, base: known.base, state: known.key, cost: cost, lease: lease})
	if err != nil {
		if took && l.cfg.RefundAbandoned && ctx.Err() != nil {
			go func() {
				<-f.landed
				if done := &f.calls[seat]; done.subject.err == nil {
					l.refundAbandoned(key, done.subject, &done.subject.runs[done.run], done.order, lease)
				}
			}()
		}
		if cause := ctx.Err(); cause != nil {
			return nil, nil, 0, 0, ended(cause, took)
		}
		return nil, nil, 0, 0, &roundtrip.Error{Package: "ratelimit", Op: "decide", Kind: roundtrip.ErrTimeout, MaybeExecuted: took, Err: err}
	}
	done := &f.calls[seat]
	s = done.subject
	if s.err != nil {
		if cause := ctx.Err(); cause != nil {
			return nil, nil, 0, 0, ended(cause, roundtrip.MaybeExecuted(s.err))
		}
		return nil, nil, 0, 0, s.err
	}
	l.available()
	return s, &s.runs[done.run], done.order, f.sent.Sub(base), nil
}

// ended is the error of a call whose context ended.
func ended(cause error, maybe bool) error {
	kind := context.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		kind = roundtrip.ErrTimeout
	}
	return &roundtrip.Error{Package: "ratelimit", Op: "decide", Kind: kind, MaybeExecuted: maybe, Err: cause}
}
