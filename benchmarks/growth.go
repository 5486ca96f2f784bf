package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// Growth: what an operation and its state cost as there is more of them. Each
// measurement is made with 1 and with 64 callers.

var growthPlan = plan{slices: 7, warm: 10 * time.Millisecond, length: 60 * time.Millisecond}

// patience is the deadline of calls here: a million of them meet a bad moment of a
// busy machine.
const patience = 5 * time.Second

// measureGrowth prints a table for each kind of state, up to most of it.
func measureGrowth(ctx context.Context, most int, stdout, progress io.Writer) error {
	srv, err := startServer()
	if err != nil {
		return err
	}
	defer srv.stop()
	h := &harness{srv: srv, wire: new(wire)}
	st, err := srv.stats(ctx)
	if err != nil {
		return err
	}
	m := describe(st.version)
	fmt.Fprintf(stdout, "%s, %s, %s, redis-server %s on loopback TCP, same machine\n", m.cpu, m.system, m.golang, m.redis)
	for _, g := range []struct {
		title string
		run   func(context.Context, *harness, int, io.Writer) ([][]string, error)
	}{
		{"Sessions: load one of n, three values each", growSessions},
		{"Limiter keys: a token bucket of one of n", growLimiter},
		{"Sliding log: a call on one key with n entries in its window", growLog},
		{"First level: a hit on one of n values in process", growLocal},
		{"One node and three: all masters on this machine", growCluster},
	} {
		if err := srv.admin.FlushAll(ctx).Err(); err != nil {
			return err
		}
		rows, err := g.run(ctx, h, most, progress)
		h.closeSubjects()
		if err != nil {
			return fmt.Errorf("%s: %w", g.title, err)
		}
		fmt.Fprintf(stdout, "\n### %s\n\n", g.title)
		writeRows(stdout, rows)
	}
	return nil
}

// at measures a body with 1 and with 64 callers, as two cells of a row.
func (h *harness) at(ctx context.Context, name string, do func(*caller) error) ([]string, error) {
	var cells []string
	for _, callers := range []int{1, 64} {
		rs, errs := h.measure(ctx, name, []*running{{name: "redporch", body: body{do}}}, callers, growthPlan)
		if len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
		if rs[0].FailedPct > 1 {
			return nil, fmt.Errorf("%s: %.1f %% of the calls failed", name, rs[0].FailedPct)
		}
		cells = append(cells, grouped(rs[0].NsPerOp))
	}
	return cells, nil
}

// fill calls do for every i from from to below to, on so many goroutines, and
// returns the time one took.
func fill(goroutines, from, to int, do func(c *caller, i int) error) (perOp float64, err error) {
	next := new(atomic.Int64)
	next.Store(int64(from))
	callers := newCallers(goroutines)
	start := time.Now()
	_, err = fixedSlice(func(c *caller) (err error) {
		i := int(next.Add(1) - 1)
		for range 10 { // a machine that is busy with other things lets a deadline pass now and then
			if err = do(c, i); err == nil {
				return nil
			}
			time.Sleep(100 * time.Millisecond)
		}
		return err
	}, callers, to-from, func() {})
	return float64(time.Since(start).Nanoseconds()) / float64(to-from), err
}

// steps are 1,000 and its multiples by ten up to most.
func steps(most int) (ns []int) {
	for n := 1000; n <= most; n *= 10 {
		ns = append(ns, n)
	}
	return ns
}

// count writes a whole number with commas.
func count(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return grouped(float64(n))
}

func (h *harness) memory(ctx context.Context) (float64, error) {
	st, err := h.srv.stats(ctx)
	return st.memory, err
}

// settled makes some calls, empties Redis and returns the memory then in use, by
// connections and scripts.
func (h *harness) settled(ctx context.Context, do func(c *caller, i int) error) (float64, error) {
	if _, err := fill(64, 0, 512, do); err != nil {
		return 0, err
	}
	if err := h.srv.admin.FlushAll(ctx).Err(); err != nil {
		return 0, err
	}
	return h.memory(ctx)
}

// known keeps the cookies of some sessions, spread over all of them, so that the
// program's own heap does not grow with what is measured.
const known = 16384

func createSession(store *session.Store, c *caller, i int) (cookie string, err error) {
	c.r = http.Request{Header: http.Header{}}
	s, err := store.New(&c.r, cookieName)
	if err != nil {
		return "", err
	}
	s.Values["user"], s.Values["name"], s.Values["admin"] = userOf(i), userName, i%2 == 0
	w := c.answer()
	if err := store.Save(&c.r, w, s); err != nil {
		return "", err
	}
	return w.h.Get("Set-Cookie"), nil
}

func growSessions(ctx context.Context, h *harness, most int, progress io.Writer) ([][]string, error) {
	store, err := session.New(h.goRedis(), session.Config{Timeout: patience})
	if err != nil {
		return nil, err
	}
	rows := [][]string{{"sessions", "load, 1 caller, ns", "load, 64 callers, ns", "create, 64 callers, ns", "bytes a session"}}
	empty, err := h.settled(ctx, func(c *caller, i int) error {
		_, err := createSession(store, c, i)
		return err
	})
	if err != nil {
		return nil, err
	}
	before := 0
	for _, n := range steps(most) {
		fmt.Fprintf(progress, "%d sessions\n", n)
		v := make([]visitor, known)
		every := max(1, (n-before)/known)
		took, err := fill(64, before, n, func(c *caller, i int) error {
			cookie, err := createSession(store, c, i)
			if k := (i - before) / every; err == nil && (i-before)%every == 0 && k < known {
				v[k], err = newVisitor(k, cookie)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		used, err := h.memory(ctx)
		if err != nil {
			return nil, err
		}
		have := min(known, (n-before+every-1)/every)
		cells, err := h.at(ctx, "session-load", func(c *caller) error {
			s, err := store.Get(v[c.pick(have)].request(c), cookieName)
			if err == nil && (s.IsNew || s.Values["name"] != userName) {
				err = errWrongSession
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		rows = append(rows, append(append([]string{count(n)}, cells...), grouped(took), grouped((used-empty)/float64(n))))
		before = n
	}
	return rows, nil
}

func growLimiter(ctx context.Context, h *harness, most int, progress io.Writer) ([][]string, error) {
	limiter, err := ratelimit.New(h.goRedis(), ratelimit.Config{Timeout: patience}, ratelimit.TokenBucket("api", 1000, time.Hour, 1000))
	if err != nil {
		return nil, err
	}
	allow := func(i int) error {
		res, err := limiter.Allow(ctx, "client-"+strconv.Itoa(i))
		return errors.Join(err, res.Err)
	}
	rows := [][]string{{"keys", "allow, 1 caller, ns", "allow, 64 callers, ns", "first call, 64 callers, ns", "bytes a key"}}
	empty, err := h.settled(ctx, func(_ *caller, i int) error { return allow(i) })
	if err != nil {
		return nil, err
	}
	before := 0
	for _, n := range steps(most) {
		fmt.Fprintf(progress, "%d limiter keys\n", n)
		// A first call gives each key a state that outlives the measurement.
		took, err := fill(64, before, n, func(_ *caller, i int) error {
			_, err := limiter.AllowN(ctx, "client-"+strconv.Itoa(i), 100)
			return err
		})
		if err != nil {
			return nil, err
		}
		used, err := h.memory(ctx)
		if err != nil {
			return nil, err
		}
		cells, err := h.at(ctx, "limit-keys", func(c *caller) error { return allow(c.pick(n)) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, append(append([]string{count(n)}, cells...), grouped(took), grouped((used-empty)/float64(n))))
		before = n
	}
	return rows, nil
}

func growLog(ctx context.Context, h *harness, most int, progress io.Writer) ([][]string, error) {
	rows := [][]string{{"entries", "allow, 1 caller, ns", "allow, 64 callers, ns", "deny, 1 caller, ns", "bytes an entry"}}
	for n := 10; n <= min(most, 100_000); n *= 10 {
		fmt.Fprintf(progress, "a log of %d entries\n", n)
		name := "log-" + strconv.Itoa(n)
		// Nothing is merged, so that each call is an entry, and no denial is
		// remembered, so that each asks Redis.
		cfg := ratelimit.Config{Timeout: patience, Prefix: name + ":", NoCoalesce: true, NoDenialCache: true, PlainKeys: true}
		full, err := ratelimit.New(h.goRedis(), cfg, ratelimit.SlidingLog("log", int64(n), time.Hour))
		if err != nil {
			return nil, err
		}
		if _, err := fill(4, 0, n, func(*caller, int) error {
			res, err := full.Allow(ctx, name)
			return errors.Join(err, res.Err)
		}); err != nil {
			return nil, err
		}
		var bytes float64
		for it := h.srv.admin.Scan(ctx, 0, name+":*", 1000).Iterator(); it.Next(ctx); {
			b, err := h.srv.admin.MemoryUsage(ctx, it.Val(), 0).Result()
			if err != nil {
				return nil, err
			}
			bytes += float64(b)
		}
		deny, errs := h.measure(ctx, "limit-log", []*running{{name: "redporch", body: body{func(*caller) error {
			res, err := full.Allow(ctx, name)
			if err == nil && res.Allowed {
				err = errAllowed
			}
			return errors.Join(err, res.Err)
		}}}}, 1, growthPlan)
		if len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
		// The same key with a limit that is far away. Calls are merged here, as
		// usual, so that the log grows by few entries while it is measured.
		cfg.NoCoalesce, cfg.NoDenialCache = false, false
		far, err := ratelimit.New(h.goRedis(), cfg, ratelimit.SlidingLog("log", int64(n)+1e8, time.Hour))
		if err != nil {
			return nil, err
		}
		cells, err := h.at(ctx, "limit-log", func(*caller) error {
			res, err := far.Allow(ctx, name)
			if err == nil && !res.Allowed {
				err = errDenied
			}
			return errors.Join(err, res.Err)
		})
		if err != nil {
			return nil, err
		}
		rows = append(rows, append(append([]string{count(n)}, cells...), grouped(deny[0].NsPerOp), figure(bytes/float64(n))))
	}
	return rows, nil
}

func growLocal(ctx context.Context, h *harness, most int, progress io.Writer) ([][]string, error) {
	rows := [][]string{{"values", "hit, 1 caller, ns", "hit, 64 callers, ns", "bytes a value in process", "bytes a value in Redis"}}
	for _, n := range steps(most) {
		fmt.Fprintf(progress, "%d values in process\n", n)
		if err := h.srv.admin.FlushAll(ctx).Err(); err != nil {
			return nil, err
		}
		empty, err := h.memory(ctx)
		if err != nil {
			return nil, err
		}
		heap := liveHeap()
		c, err := cacheaside.New(h.goRedis(), "grow", func(_ context.Context, i int) (profile, error) { return profileOf(i), nil },
			cacheaside.Config{TTL: cacheTTL, L1Entries: 2 * n, Timeout: patience}, cacheaside.Funcs[int, profile]{
				LoadMany: func(_ context.Context, keys []int) (map[int]profile, error) {
					m := make(map[int]profile, len(keys))
					for _, i := range keys {
						m[i] = profileOf(i)
					}
					return m, nil
				},
			})
		if err != nil {
			return nil, err
		}
		for pass := range 2 { // the second reads into process what the first has stored
			batch := make([]int, 0, 500)
			for i := range n {
				if batch = append(batch, i); len(batch) == cap(batch) || i == n-1 {
					if _, err := c.GetMany(ctx, batch); err != nil {
						return nil, fmt.Errorf("pass %d: %w", pass, err)
					}
					batch = batch[:0]
				}
			}
		}
		inProcess := (liveHeap() - heap) / float64(n)
		used, err := h.memory(ctx)
		if err != nil {
			return nil, err
		}
		cells, err := h.at(ctx, "cache-local", func(cl *caller) error {
			i := cl.pick(n)
			p, err := c.Get(ctx, i)
			if err == nil && p.ID != int64(i) {
				err = errWrongProfile
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		rows = append(rows, append(append([]string{count(n)}, cells...), grouped(inProcess), grouped((used-empty)/float64(n))))
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func liveHeap() float64 {
	runtime.GC()
	runtime.GC() // the first may have left something to be swept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
