package ratelimit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/ratelimit"
)

// Gluing parts together is wrong where a part may hold the glue: user "ada" on path
// "b:c" and user "ada:b" on path "c" get one account, so one of them can use up the
// limit of the other. Join keeps them apart.
func ExampleJoin_incorrect() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	limiter, err := ratelimit.New(rdb, ratelimit.Config{}, ratelimit.SlidingLog("api", 1, time.Minute))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()

	glued := func(user, path string) string { return user + ":" + path } // wrong
	first, _ := limiter.Allow(ctx, glued("ada", "b:c"))
	other, _ := limiter.Allow(ctx, glued("ada:b", "c"))
	fmt.Println("glued: ", first.Allowed, other.Allowed)

	first, _ = limiter.Allow(ctx, ratelimit.Join("ada", "b:c"))
	other, _ = limiter.Allow(ctx, ratelimit.Join("ada:b", "c"))
	fmt.Println("joined:", first.Allowed, other.Allowed)
	// Output:
	// glued:  true false
	// joined: true true
}
