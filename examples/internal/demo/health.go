package demo

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/redporch/redporch/cacheaside"
)

// health is what this server knows about its way to Redis.
type health struct {
	mu   sync.Mutex
	last redisState
}

type redisState struct {
	Mode  string `json:"mode"`  // of the breakage
	State string `json:"state"` // "ok" or "down", as measured
}

func (a *app) redisState() redisState {
	a.health.mu.Lock()
	defer a.health.mu.Unlock()
	s := a.health.last
	s.Mode = a.redis.breakage.get().String()
	if s.State == "" {
		s.State = "ok" // not asked yet
	}
	return s
}

// checkRedis asks Redis for a sign of life and tells the pages if anything is
// new.
func (a *app) checkRedis() {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.redisTimeout)
	defer cancel()
	now := redisState{State: "ok"}
	if a.redis.rdb.Ping(ctx).Err() != nil {
		now.State = "down"
	}
	a.health.mu.Lock()
	now.Mode = a.redis.breakage.get().String()
	news := now != a.health.last
	a.health.last = now
	a.health.mu.Unlock()
	if news {
		a.pages.tell("redis", now)
	}
}

// watch runs until the server shuts down. Each second it looks at Redis, counts
// what the cache did, and tells the pages.
func (a *app) watch() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before cacheaside.Stats
	for {
		a.checkRedis()
		select {
		case <-a.ending:
			return
		case <-tick.C:
		}
		st := a.profiles.Stats()
		a.live.now(func(s *second) {
			s.hits += hits(st) - hits(before)
			s.misses += st.Misses - before.Misses
		})
		before = st
		points, sum := a.live.points()
		// More than the last one, since two ticks may be two seconds apart on the
		// clock; the page knows which it has.
		a.pages.tell("live", liveUpdate{points[len(points)-3:], sum})
	}
}

type liveUpdate struct {
	Points []point `json:"points"`
	Minute minute  `json:"minute"`
}

func hits(s cacheaside.Stats) uint64 { return s.L1Hits + s.RedisHits + s.StaleHits + s.NegativeHits }

// breakRedis breaks this server's connections to Redis, or mends them.
func (a *app) breakRedis(w http.ResponseWriter, r *http.Request) {
	m, ok := parseMode(r.PostFormValue("mode"))
	if !ok {
		http.Error(w, "mode must be one of working, down, slow, stalled and lost.", http.StatusBadRequest)
		return
	}
	a.redis.breakage.set(m)
	a.log.Info("breakage", "mode", m.String())
	a.checkRedis()
	a.doneAt(w, r, "/#redis", a.redisState())
}

// tellInvalidation is the cache's OnInvalidate.
func (a *app) tellInvalidation(inv cacheaside.Invalidation) {
	if inv.Kind == cacheaside.KindBusLost {
		return
	}
	a.pages.tell("profile", map[string]any{"keys": inv.Keys, "remote": inv.Remote, "cause": inv.Cause.String()})
}
