package middleware_test

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/middleware"
	"github.com/redporch/redporch/ratelimit"
)

// meeting is a hook that holds a script up until a session has been asked for.
type meeting struct {
	calls atomic.Int64 // commands that were about to be sent
	on    atomic.Bool
	asked atomic.Pointer[chan struct{}]
	met   atomic.Int64
}

func (m *meeting) see(ctx context.Context, cmds []redis.Cmder) {
	m.calls.Add(int64(len(cmds)))
	if !m.on.Load() {
		return
	}
	for _, cmd := range cmds {
		switch cmd.Name() {
		case "hgetall":
			close(*m.asked.Load())
		case "eval", "evalsha":
			select {
			case <-*m.asked.Load():
				m.met.Add(1)
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
		}
	}
}

func (m *meeting) DialHook(next redis.DialHook) redis.DialHook { return next }

func (m *meeting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		m.see(ctx, []redis.Cmder{cmd})
		return next(ctx, cmd)
	}
}

func (m *meeting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		m.see(ctx, cmds)
		return next(ctx, cmds)
	}
}

// An eager session is asked for while the limiters in front of it decide, but not for
// a request that is known to be denied; and never twice.
func TestEagerOverlapsRateLimit(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		m := new(meeting)
		rdb.AddHook(m)
		st := newStore(t, rdb)
		wide := newLimiter(t, rdb, ratelimit.Config{}, limits()...)
		narrow := newLimiter(t, rdb, ratelimit.Config{Prefix: "narrow:"}, ratelimit.FixedWindow("narrow", 3, time.Hour))
		foreign := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
		}
		eager := middleware.Sessions(st, "sid", middleware.SessionsConfig{Eager: true, Logger: discard()})
		limit := func(l *ratelimit.Limiter) middleware.Middleware {
			return middleware.RateLimit(l, middleware.ClientIP(), middleware.RateLimitConfig{Logger: discard()})
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/set", func(_ http.ResponseWriter, r *http.Request) { middleware.Session(r).Values["k"] = "v" })
		mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
			k, _ := middleware.Session(r).Values["k"].(string)
			_, _ = io.WriteString(w, k)
		})
		mux.HandleFunc("/idle", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "v") })
		sites := http.NewServeMux()
		sites.Handle("/direct/", http.StripPrefix("/direct", middleware.Chain(limit(wide), eager)(mux)))
		sites.Handle("/two/", http.StripPrefix("/two", middleware.Chain(limit(wide), limit(narrow), eager)(mux)))
		sites.Handle("/apart/", http.StripPrefix("/apart", middleware.Chain(limit(wide), foreign, eager)(mux)))
		s := newSite(t, "HTTP/1.1", sites)
		s.get(t, "/direct/set")

		for _, c := range []struct {
			path   string
			meets  bool
			status int
			loads  uint64 // sessions asked for
		}{
			{"/direct/get", true, 200, 1},
			{"/direct/idle", true, 200, 1},
			{"/apart/get", false, 200, 1},
			{"/two/get", true, 200, 1},
			{"/two/idle", true, 200, 1},
			{"/two/get", true, 200, 1},
			{"/two/get", true, 429, 1},  // denied by Redis
			{"/two/idle", true, 429, 1}, // known, but not to the outer limiter
		} {
			met, loads := m.met.Load(), st.Stats().Loads
			asked := make(chan struct{})
			m.asked.Store(&asked)
			m.on.Store(c.meets)
			res := s.get(t, c.path)
			m.on.Store(false)
			if res.StatusCode != c.status || c.status == 200 && res.body != "v" {
				t.Errorf("%s = %d %q; want %d", c.path, res.StatusCode, res.body, c.status)
			}
			if got := m.met.Load() - met; c.meets != (got > 0) {
				t.Errorf("%s: the limiter met the session's load %d times; want: %t", c.path, got, c.meets)
			}
			if got := st.Stats().Loads - loads; got != c.loads {
				t.Errorf("%s: %d sessions asked for; want %d", c.path, got, c.loads)
			}
		}

		// The outermost limiter knows the denial: nothing is asked at all.
		s2 := newSite(t, "HTTP/1.1", middleware.Chain(limit(narrow), eager)(mux))
		s2.client.Jar = s.client.Jar
		loads, calls := st.Stats().Loads, m.calls.Load() // not redistest.Count, which may see the end of a load that was dropped
		if res := s2.do(t, "GET", "/get"); res.StatusCode != 429 {
			t.Errorf("status = %d; want 429", res.StatusCode)
		}
		if loads, calls = st.Stats().Loads-loads, m.calls.Load()-calls; calls != 0 || loads != 0 {
			t.Errorf("a denial that is known cost %d commands and %d loads; want none", calls, loads)
		}
	})
}
