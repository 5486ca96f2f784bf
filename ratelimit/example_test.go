package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/ratelimit"
)

// exampleRedis stands in for a Redis of one's own.
func exampleRedis() (redis.UniversalClient, func()) {
	m, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr()})
	return rdb, func() { rdb.Close(); m.Close() }
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Each address may make 100 requests in any minute.
func Example() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter, err := ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.SlidingLog("per-ip", 100, time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	allowed := 0
	var last ratelimit.Result
	for range 103 {
		last, err = limiter.Allow(ctx, "203.0.113.7")
		if err != nil {
			fmt.Println(err)
			return
		}
		if last.Allowed {
			allowed++
		}
	}
	fmt.Println("allowed:", allowed)
	fmt.Println("then:", last.Allowed, last.Remaining, "of", last.Limit, "remain, retry within a minute:", last.RetryAfter <= time.Minute)
	other := must(limiter.Allow(ctx, "203.0.113.8"))
	fmt.Println("another address:", other.Allowed, other.Remaining)
	// Output:
	// allowed: 100
	// then: false 0 of 100 remain, retry within a minute: true
	// another address: true 99
}

// Paying users get more. Tiers share connection and keys, so that what was used
// on one tier counts on the next.
func ExampleLimiter_With() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	free := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.FixedWindow("api", 2, time.Hour)))
	pro := must(free.With(ratelimit.FixedWindow("api", 5, time.Hour)))

	for range 3 {
		r := must(free.Allow(ctx, "ann"))
		fmt.Println("free:", r.Allowed, r.Remaining)
	}
	r := must(pro.Allow(ctx, "ann")) // she has just paid
	fmt.Println("pro:", r.Allowed, r.Remaining)
	// Output:
	// free: true 1
	// free: true 0
	// free: false 0
	// pro: true 2
}

// Failed logins are limited, successful ones are not counted.
func ExampleLimiter_Reserve_login() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second},
		ratelimit.FixedWindow("login", 3, 15*time.Minute).OnUnavailable(ratelimit.FailClosed)))

	login := func(user, address, password string) {
		attempt, err := limiter.Reserve(ctx, ratelimit.Join(user, address), 1)
		if err != nil || !attempt.Allowed {
			fmt.Println("too many attempts")
			return
		}
		if password != "correct" {
			fmt.Println("wrong password") // the attempt stays counted
			return
		}
		_ = attempt.Cancel(ctx)
		fmt.Println("welcome")
	}
	login("ann", "203.0.113.7", "guess")
	login("ann", "203.0.113.7", "correct")
	login("ann", "203.0.113.7", "guess")
	login("ann", "203.0.113.7", "guess")
	login("ann", "203.0.113.7", "correct")
	login("ann", "198.51.100.1", "correct")
	// Output:
	// wrong password
	// welcome
	// wrong password
	// wrong password
	// too many attempts
	// welcome
}

// Several policies are one decision: all admit and take, or none takes anything.
func ExampleNew_severalPolicies() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second},
		ratelimit.TokenBucket("burst", 1, time.Minute, 2),
		ratelimit.SlidingWindow("day", 1000, 24*time.Hour)))

	for range 3 {
		r := must(limiter.Allow(ctx, "ann"))
		fmt.Printf("%v, decided by %s:", r.Allowed, r.Policy)
		for _, p := range r.Policies {
			fmt.Printf(" %s %d/%d", p.Name, p.Remaining, p.Limit)
		}
		fmt.Println()
	}
	// Output:
	// true, decided by burst: burst 1/2 day 999/1000
	// true, decided by burst: burst 0/2 day 998/1000
	// false, decided by burst: burst 0/2 day 998/1000
}

// A search costs more than a look-up.
func ExampleLimiter_AllowN() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.SlidingLog("units", 100, time.Minute)))
	for _, cost := range []int64{60, 60, 40, 101} {
		r := must(limiter.AllowN(ctx, "ann", cost))
		fmt.Println(cost, r.Allowed, "remaining", r.Remaining, "ever:", r.RetryAfter != ratelimit.Never)
	}
	// Output:
	// 60 true remaining 40 ever: true
	// 60 false remaining 40 ever: true
	// 40 true remaining 0 ever: true
	// 101 false remaining 0 ever: false
}

// The true cost of a call to a model is known when it has answered.
func ExampleReservation_Commit() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.TokenBucket("tokens", 1, time.Hour, 10_000)))
	answer := func() int64 { return 1_250 }

	res := must(limiter.Reserve(ctx, "ann", 4_000))
	defer res.Cancel(ctx) // gives all back if the call fails
	fmt.Println("reserved:", res.Allowed, res.Remaining)
	if err := res.Commit(ctx, answer()); err != nil {
		fmt.Println(err)
	}
	fmt.Println("remaining:", must(limiter.Peek(ctx, "ann")).Remaining)
	// Output:
	// reserved: true 6000
	// remaining: 8750
}

// While Redis is down each policy decides as it was told to.
func ExamplePolicy_OnUnavailable() {
	m, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(&redis.Options{Addr: m.Addr(), MaxRetries: -1, DialerRetries: 1})
	defer rdb.Close()
	ctx := context.Background()

	cfg := ratelimit.Config{Timeout: time.Second, Share: 0.5} // two processes
	for _, f := range []ratelimit.FailurePolicy{ratelimit.FailOpen, ratelimit.FailClosed, ratelimit.Local} {
		limiter := must(ratelimit.New(rdb, cfg, ratelimit.SlidingLog("api", 4, time.Minute).OnUnavailable(f)))
		m.Close()
		for range 3 {
			r, err := limiter.Allow(ctx, "ann")
			fmt.Println(r.Source, r.Allowed, errors.Is(r.Err, ratelimit.ErrUnavailable), err)
		}
	}
	// Output:
	// open true true <nil>
	// open true true <nil>
	// open true true <nil>
	// closed false true <nil>
	// closed false true <nil>
	// closed false true <nil>
	// local true true <nil>
	// local true true <nil>
	// local false true <nil>
}

// A limit to come is tried as a shadow: it counts and reports, and denies nobody.
func ExamplePolicy_Shadow() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	limiter := must(ratelimit.New(rdb, ratelimit.Config{
		Timeout: time.Second,
		Hooks: ratelimit.Hooks{OnDecision: func(d ratelimit.Decision) {
			if d.ShadowDenied != "" {
				fmt.Println("would be denied by", d.ShadowDenied)
			}
		}},
	}, ratelimit.SlidingLog("api", 100, time.Minute), ratelimit.SlidingLog("stricter", 2, time.Minute).Shadow()))

	for range 3 {
		fmt.Println(must(limiter.Allow(ctx, "ann")).Allowed)
	}
	// Output:
	// true
	// true
	// would be denied by stricter
	// true
}

// A user, an address and the service are three subjects. No limit is exceeded,
// but the three decisions are not one atomic step.
func ExampleAllowAll() {
	rdb, stop := exampleRedis()
	defer stop()
	ctx := context.Background()

	perUser := must(ratelimit.New(rdb, ratelimit.Config{Timeout: time.Second}, ratelimit.SlidingLog("user", 2, time.Minute)))
	perIP := must(perUser.With(ratelimit.SlidingLog("ip", 10, time.Minute)))
	global := must(perUser.With(ratelimit.TokenBucket("service", 1000, time.Second, 1000)))

	for range 3 {
		r := must(ratelimit.AllowAll(ctx,
			ratelimit.Call{Limiter: perUser, Key: ratelimit.Join("user", "ann")},
			ratelimit.Call{Limiter: perIP, Key: ratelimit.Join("ip", "203.0.113.7")},
			ratelimit.Call{Limiter: global, Key: "service"}))
		fmt.Println(r.Allowed, r.Policy, r.Remaining)
	}
	// Output:
	// true user 1
	// true user 0
	// false user 0
}
