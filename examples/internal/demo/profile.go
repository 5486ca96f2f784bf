package demo

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redporch/redporch/cacheaside"
)

type profile struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
	City string `json:"city"`
}

// profileStore plays the database behind the cache. It keeps what was changed in
// a hash of its own, so that several servers on one Redis share it.
type profileStore struct {
	rdb redis.UniversalClient // not the one that can be broken: it is not the cache
}

const profileTable = "demo:database:profile-city"

var profiles = map[int]profile{
	1: {1, "Ada Lovelace", "London"},
	2: {2, "Grace Hopper", "New York"},
}

// loadTime makes the difference visible that the cache makes.
const loadTime = 200 * time.Millisecond

func (p *profileStore) load(ctx context.Context, id int) (profile, error) {
	select {
	case <-ctx.Done():
		return profile{}, ctx.Err()
	case <-time.After(loadTime):
	}
	v, ok := profiles[id]
	if !ok {
		return profile{}, cacheaside.ErrNotFound
	}
	city, err := p.rdb.HGet(ctx, profileTable, strconv.Itoa(id)).Result()
	if err == nil {
		v.City = city
	} else if err != redis.Nil {
		return profile{}, err
	}
	return v, nil
}

func (p *profileStore) setCity(ctx context.Context, id int, city string) error {
	if _, ok := profiles[id]; !ok {
		return cacheaside.ErrNotFound
	}
	return p.rdb.HSet(ctx, profileTable, strconv.Itoa(id), city).Err()
}
