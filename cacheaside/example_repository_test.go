package cacheaside_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/cacheaside"
)

// account is what is cached.
type account struct {
	ID   int64
	Name string
}

// accounts reads through a cache and writes past it. It is all that the rest of a
// program sees.
type accounts struct {
	cache *cacheaside.Cache[int64, account]

	mu      sync.Mutex
	rows    map[int64]account // stands for a database
	queries int
}

func newAccounts(rdb redis.UniversalClient) (*accounts, error) {
	a := &accounts{rows: map[int64]account{1: {1, "ada"}}}
	var err error
	a.cache, err = cacheaside.New(rdb, "account", a.load, cacheaside.Config{
		TTL:         5 * time.Minute,
		NegativeTTL: 10 * time.Second,
	})
	return a, err
}

func (a *accounts) load(_ context.Context, id int64) (account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queries++
	row, ok := a.rows[id]
	if !ok {
		return account{}, fmt.Errorf("account %d: %w", id, cacheaside.ErrNotFound)
	}
	return row, nil
}

// get returns an account, or an error that matches cacheaside.ErrNotFound.
func (a *accounts) get(ctx context.Context, id int64) (account, error) {
	return a.cache.Get(ctx, id)
}

// rename changes the database; nobody reads the old name once somebody has read the
// new one.
func (a *accounts) rename(ctx context.Context, id int64, name string) error {
	err := a.cache.Update(ctx, func(context.Context) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.rows[id] = account{id, name}
		return nil
	}, id)
	if errors.Is(err, cacheaside.ErrInvalidationQueued) || errors.Is(err, cacheaside.ErrFenceLost) {
		return nil // it is written; others may see the old name for a while, with Redis down
	}
	return err
}

// A repository: the usual place for a cache.
func Example_repository() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	a, err := newAccounts(rdb)
	if err != nil {
		panic(err)
	}
	defer a.cache.Close()
	ctx := context.Background()

	for range 3 {
		ada, err := a.get(ctx, 1)
		fmt.Println(ada.Name, err)
	}
	if err := a.rename(ctx, 1, "countess"); err != nil {
		panic(err)
	}
	ada, err := a.get(ctx, 1)
	fmt.Println(ada.Name, err)
	for range 2 {
		_, err = a.get(ctx, 2)
		fmt.Println(errors.Is(err, cacheaside.ErrNotFound))
	}
	fmt.Println(a.queries, "queries")
	// Output:
	// ada <nil>
	// ada <nil>
	// ada <nil>
	// countess <nil>
	// true
	// true
	// 3 queries
}
