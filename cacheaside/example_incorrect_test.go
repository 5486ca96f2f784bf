package cacheaside_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
)

// Writing to the database and then to the cache by Set is wrong when two may write
// at the same time: their writes and their Sets can happen in opposite orders, and
// the cache then holds the older value for its whole TTL. Update lets every order
// end well.
func ExampleCache_Set_incorrect() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	database := "Rome"
	load := func(context.Context, string) (string, error) { return database, nil }
	cities, err := cacheaside.New(rdb, "city", load, cacheaside.Config{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	defer cities.Close()
	ctx := context.Background()

	// Two requests write; the steps happen to be carried out in this order.
	database = "Oslo"              // the first writes
	database = "Lima"              // the second writes
	cities.Set(ctx, "ada", "Lima") // the second caches
	cities.Set(ctx, "ada", "Oslo") // the first caches: wrong from now on
	cached, _ := cities.Get(ctx, "ada")
	fmt.Println("database", database, "- cache", cached)

	for _, city := range []string{"Oslo", "Lima"} {
		err := cities.Update(ctx, func(context.Context) error {
			database = city
			return nil
		}, "ada")
		if err != nil {
			panic(err)
		}
	}
	cached, _ = cities.Get(ctx, "ada")
	fmt.Println("database", database, "- cache", cached)
	// Output:
	// database Lima - cache Oslo
	// database Lima - cache Lima
}
