package cacheaside_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
)

// Product stands for a row of a table.
type Product struct {
	ID    int
	Name  string
	Price int
}

// shop stands for a database.
type shop struct {
	rows map[int]Product
	down bool
}

func (s *shop) product(_ context.Context, id int) (Product, error) {
	if s.down {
		return Product{}, errors.New("database is down")
	}
	p, ok := s.rows[id]
	if !ok {
		fmt.Println("database asked for", id, "(none)")
		return Product{}, cacheaside.ErrNotFound // or wrapped
	}
	fmt.Println("database asked for", id)
	return p, nil
}

func newShop() *shop {
	return &shop{rows: map[int]Product{1: {1, "lamp", 30}, 2: {2, "rug", 90}}}
}

// startRedis runs a Redis in memory; programs connect to theirs.
func startRedis() (rdb redis.UniversalClient, stop func()) {
	m, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	m.ClockTTL(true)
	rdb = redis.NewClient(&redis.Options{Addr: m.Addr(), DisableIdentity: true})
	return rdb, func() { rdb.Close(); m.Close() }
}

// A cache in front of a loader.
func Example() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	for range 3 {
		p, err := products.Get(ctx, 1)
		fmt.Println(p.Name, p.Price, err)
	}
	// Output:
	// database asked for 1
	// lamp 30 <nil>
	// lamp 30 <nil>
	// lamp 30 <nil>
}

// The two functions that every course on Redis writes: read a user by id through
// the cache for 300 seconds, and delete the cached one on update.
func Example_getUserById() {
	rdb, stop := startRedis()
	defer stop()
	database := map[int]string{7: "Ada"}
	getUserFromDatabase := func(id int) (string, error) {
		fmt.Println("database asked for", id)
		return database[id], nil
	}

	users, err := cacheaside.New(rdb, "user", cacheaside.Plain(getUserFromDatabase), cacheaside.Config{TTL: 300 * time.Second})
	if err != nil {
		panic(err)
	}
	defer users.Close()

	getUserByID := users.Get
	updateUser := func(ctx context.Context, id int, name string) error {
		database[id] = name
		return users.Invalidate(ctx, id) // deletes, here and in every process
	}

	ctx := context.Background()
	fmt.Println(getUserByID(ctx, 7))
	fmt.Println(getUserByID(ctx, 7))
	fmt.Println(updateUser(ctx, 7, "Ada Lovelace"))
	fmt.Println(getUserByID(ctx, 7))
	// Output:
	// database asked for 7
	// Ada <nil>
	// Ada <nil>
	// <nil>
	// database asked for 7
	// Ada Lovelace <nil>
}

// Update keeps readers from ever seeing the old value after the new one.
func ExampleCache_Update() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	err = products.Update(ctx, func(ctx context.Context) error {
		db.rows[1] = Product{1, "lamp", 25} // a transaction, usually
		return nil
	}, 1)
	fmt.Println("updated:", err)
	p, err := products.Get(ctx, 1)
	fmt.Println(p.Price, err)
	// Output:
	// database asked for 1
	// updated: <nil>
	// database asked for 1
	// 25 <nil>
}

// Hooks see invalidations before they happen, and may veto them or add others.
func ExampleHooks() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	told := make(chan cacheaside.Invalidation, 1)
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{
		TTL: 5 * time.Minute,
		Hooks: cacheaside.Hooks{
			BeforeInvalidate: func(_ context.Context, inv *cacheaside.Invalidation) error {
				for _, key := range inv.Keys {
					switch key {
					case "1":
						inv.Keys = append(inv.Keys, "2") // the rug is sold with the lamp
					case "0":
						return errors.New("frozen for the audit")
					}
				}
				return nil
			},
		},
		// In a goroutine of the cache, for what other processes do as well.
		OnInvalidate: func(inv cacheaside.Invalidation) { told <- inv },
	})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	fmt.Println(products.Invalidate(ctx, 1))
	inv := <-told
	fmt.Println(inv.Kind, inv.Cause, inv.Keys, "remote:", inv.Remote)
	fmt.Println(products.Invalidate(ctx, 0))
	// Output:
	// <nil>
	// keys invalidate [1 2] remote: false
	// cacheaside: invalidation was vetoed: frozen for the audit
}

// Tags invalidate many keys at the cost of one.
func ExampleCache_InvalidateTags() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute},
		cacheaside.Funcs[int, Product]{Tags: func(id int) []string { return []string{"catalogue", fmt.Sprint("shelf-", id%10)} }})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	products.Get(ctx, 2)
	fmt.Println(products.InvalidateTags(ctx, "shelf-1"))
	products.Get(ctx, 1)
	products.Get(ctx, 2) // still cached
	// Output:
	// database asked for 1
	// database asked for 2
	// <nil>
	// database asked for 1
}

// A service that only writes needs no loader to invalidate what others read. Shared tags
// reach the keys of several caches.
func ExampleNewInvalidator() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	ofShop := cacheaside.Config{TTL: 5 * time.Minute, SharedTags: true}
	products, err := cacheaside.New(rdb, "product", db.product, ofShop,
		cacheaside.Funcs[int, Product]{Tags: func(int) []string { return []string{"shop-1"} }})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	// In another program:
	orders, err := cacheaside.NewInvalidator[int](rdb, "order", cacheaside.Config{SharedTags: true})
	if err != nil {
		panic(err)
	}
	defer orders.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	fmt.Println(orders.Invalidate(ctx, 1)) // order 1, not product 1
	products.Get(ctx, 1)
	fmt.Println(orders.InvalidateTags(ctx, "shop-1"))
	products.Get(ctx, 1)
	// Output:
	// database asked for 1
	// <nil>
	// <nil>
	// database asked for 1
}

// What is cached is thought to be wrong: until that is clear, ask the source.
func ExampleCache_Bypass() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	products.Bypass(true)
	products.Get(ctx, 1)
	fmt.Println(products.Invalidate(ctx, 1)) // goes on
	products.Bypass(false)
	products.Get(ctx, 1)
	products.Get(ctx, 1)
	// Output:
	// database asked for 1
	// database asked for 1
	// <nil>
	// database asked for 1
}

// A key may have several parts.
func Example_structKeys() {
	rdb, stop := startRedis()
	defer stop()
	type stock struct {
		Shop    string
		Product int
	}
	cache, err := cacheaside.New(rdb, "stock", func(_ context.Context, k stock) (int, error) { return 10 * k.Product, nil },
		cacheaside.Config{TTL: 5 * time.Minute})
	if err != nil {
		panic(err)
	}
	defer cache.Close()

	ctx := context.Background()
	fmt.Println(cache.Get(ctx, stock{"Rome", 7}))
	fmt.Println(rdb.Keys(ctx, "*").Val())
	// Output:
	// 70 <nil>
	// [redporch:cache:stock:Rome,7]
}

// What does not exist is remembered too, for a shorter time.
func Example_negativeCaching() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute, NegativeTTL: 10 * time.Second})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	for range 2 {
		e, err := products.GetEntry(ctx, 99)
		fmt.Println(e.Source == cacheaside.SourceLoader, errors.Is(err, cacheaside.ErrNotFound))
	}
	db.rows[99] = Product{99, "chair", 50}
	fmt.Println(products.Invalidate(ctx, 99)) // after an insert as after an update
	p, err := products.Get(ctx, 99)
	fmt.Println(p.Name, err)
	// Output:
	// database asked for 99 (none)
	// true true
	// false true
	// <nil>
	// database asked for 99
	// chair <nil>
}

// While the source is down, values that have expired are better than none.
// Values that were invalidated are not.
func Example_staleIfError() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 50 * time.Millisecond, StaleIfError: time.Hour})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	db.down = true
	time.Sleep(60 * time.Millisecond)
	e, err := products.GetEntry(ctx, 1)
	fmt.Println(e.Value.Name, e.Source, err)

	products.Invalidate(ctx, 1)
	_, err = products.Get(ctx, 1)
	fmt.Println(err)
	// Output:
	// database asked for 1
	// lamp stale <nil>
	// database is down
}

// Two processes keep values in memory, and one hears of the other's update.
func Example_twoProcesses() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	cfg := cacheaside.Config{TTL: 5 * time.Minute}
	here, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute})
	if err != nil {
		panic(err)
	}
	defer here.Close()
	there, err := cacheaside.New(rdb, "product", db.product, cfg) // elsewhere, with a connection of its own
	if err != nil {
		panic(err)
	}
	defer there.Close()

	ctx := context.Background()
	fromMemory := func() (e cacheaside.Entry[Product]) {
		for e.Source = cacheaside.SourceLoader; e.Source != cacheaside.SourceL1; e, _ = there.GetEntry(ctx, 1) {
			time.Sleep(time.Millisecond) // until it is connected
		}
		return e
	}
	fmt.Println("there:", fromMemory().Value.Price)

	db.rows[1] = Product{1, "lamp", 20}
	fmt.Println("invalidated here:", here.Invalidate(ctx, 1))
	for fromMemory().Value.Price != 20 {
		time.Sleep(time.Millisecond) // for the announcement, well under a millisecond
	}
	fmt.Println("there:", fromMemory().Value.Price)
	// Output:
	// database asked for 1
	// there: 30
	// invalidated here: <nil>
	// database asked for 1
	// there: 20
}

// Any pair of functions like json.Marshal and json.Unmarshal is a codec. For
// MessagePack it is
//
//	cacheaside.CodecFuncs("msgpack", msgpack.Marshal, msgpack.Unmarshal)
func ExampleCodecFuncs() {
	rdb, stop := startRedis()
	defer stop()
	csv := cacheaside.CodecFuncs("csv",
		func(v any) ([]byte, error) { return []byte(strings.Join(v.([]string), ",")), nil },
		func(data []byte, v any) error { *v.(*[]string) = strings.Split(string(data), ","); return nil })

	colours, err := cacheaside.New(rdb, "colours",
		func(_ context.Context, theme string) ([]string, error) { return []string{theme, "red", "ochre"}, nil },
		cacheaside.Config{TTL: time.Hour, Codec: csv, L1Entries: -1})
	if err != nil {
		panic(err)
	}
	defer colours.Close()

	ctx := context.Background()
	colours.Get(ctx, "autumn")
	e, err := colours.GetEntry(ctx, "autumn")
	fmt.Println(e.Value, e.Source, err)
	// Output:
	// [autumn red ochre] redis <nil>
}

// Many keys at once: one call to Redis, one call to the database.
func ExampleCache_GetMany() {
	rdb, stop := startRedis()
	defer stop()
	db := newShop()
	products, err := cacheaside.New(rdb, "product", db.product, cacheaside.Config{TTL: 5 * time.Minute},
		cacheaside.Funcs[int, Product]{LoadMany: func(_ context.Context, ids []int) (map[int]Product, error) {
			fmt.Println("database asked for", ids) // SELECT … WHERE id = ANY($1)
			found := map[int]Product{}
			for _, id := range ids {
				if p, ok := db.rows[id]; ok {
					found[id] = p
				}
			}
			return found, nil
		}})
	if err != nil {
		panic(err)
	}
	defer products.Close()

	ctx := context.Background()
	products.Get(ctx, 1)
	found, err := products.GetMany(ctx, []int{1, 2, 3})
	fmt.Println(len(found), found[1].Name, found[2].Name, err)
	// Output:
	// database asked for 1
	// database asked for [2 3]
	// 2 lamp rug <nil>
}
