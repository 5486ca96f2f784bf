package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/ratelimit"
	"github.com/redporch/redporch/session"
)

// TestPersistence kills a server under load, starts it again, and counts what is
// missing of what had been acknowledged.
//
// The kernel survives such a crash, so what the server has written to its file is
// not lost whether or not it was synced. What a machine's crash costs was measured
// elsewhere, see docs/faults.md.
func TestPersistence(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		opts []redistest.Option
		lost func(acked, lost int) error
	}{
		{"AOF, fsync always", []redistest.Option{redistest.AOF("always")}, nothing},
		{"AOF, fsync every second", []redistest.Option{redistest.AOF("everysec")}, nothing},
		{"RDB, a snapshot halfway", []redistest.Option{redistest.RDB("3600 1")}, some},
		{"none", nil, everything},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := redistest.Start(t, c.opts...)
			rdb := s.Client()
			store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Prefix: "faults:session:", IdleTimeout: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			limiter, err := ratelimit.New(rdb, ratelimit.Config{Prefix: "faults:limit:", OnUnavailable: ratelimit.FailClosed},
				ratelimit.FixedWindow("hour", 1e9, time.Hour))
			if err != nil {
				t.Fatal(err)
			}

			// Short lives, to see that they go on while the server is down.
			short, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Prefix: "faults:short:", IdleTimeout: time.Second, TouchEvery: 900 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			brief, err := signIn(short)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()

			var mu sync.Mutex
			var cookies []*http.Cookie
			charged := int64(0)
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for ctx.Err() == nil {
						cookie, err := signIn(store)
						r, _ := limiter.Allow(context.Background(), "key")
						mu.Lock()
						if err == nil {
							cookies = append(cookies, cookie)
						}
						if r.Allowed {
							charged++
						}
						mu.Unlock()
						sleep(ctx, 500*time.Microsecond)
					}
				})
			}
			more := func() { // waits until there are a hundred more of each
				mu.Lock()
				signedIn, units := len(cookies), charged
				mu.Unlock()
				redistest.Await(t, "sessions and decisions", func() error {
					mu.Lock()
					defer mu.Unlock()
					if n, m := len(cookies)-signedIn, charged-units; n < 100 || m < 100 {
						return fmt.Errorf("only %d and %d", n, m)
					}
					return nil
				})
			}
			more()
			if len(c.opts) > 0 { // under AOF it makes no difference
				before := rdb.LastSave(ctx).Val()
				for rdb.Time(ctx).Val().Unix() <= before { // the times are whole seconds
					time.Sleep(10 * time.Millisecond)
				}
				if err := rdb.BgSave(ctx).Err(); err != nil {
					t.Error(err)
				}
				redistest.Await(t, "the snapshot", func() error {
					if rdb.LastSave(ctx).Val() == before {
						return errors.New("it is not written yet")
					}
					return nil
				})
			}
			more()
			s.Kill()
			failed := make(chan struct{}) // the load goes on against a dead server
			go func() { defer close(failed); _, _ = signIn(store) }()
			<-failed
			cancel()
			all.Wait()
			time.Sleep(300 * time.Millisecond) // calls that were given up are over now
			s.Restart()
			waitForIt(t, rdb)

			lost := 0
			for _, cookie := range cookies {
				var got *sessions.Session
				err := eventually(10*time.Second, func() (err error) { _, got, err = load(store, cookie); return err })
				if err != nil {
					t.Fatal(err)
				}
				if got.IsNew {
					lost++
				} else if idle, _ := store.TTL(got); idle > time.Hour || idle < 55*time.Minute {
					t.Errorf("a session that was idle for seconds of its hour has %v left", idle)
				}
			}
			var r ratelimit.Result
			err = eventually(10*time.Second, func() (err error) {
				r, err = limiter.Peek(t.Context(), "key")
				return errors.Join(err, r.Err)
			})
			if err != nil {
				t.Fatal(err)
			}
			used := r.Limit - r.Remaining
			t.Logf("| %s | %d | %d | %d | %d |", c.name, len(cookies), lost, charged, max(charged-used, 0))
			if err := c.lost(len(cookies), lost); err != nil {
				t.Errorf("sessions: %v", err)
			}
			if err := c.lost(int(charged), int(charged-used)); err != nil && !(lost == 0 && used >= charged) {
				t.Errorf("units: %v", err)
			}
			if used > 0 && r.ResetAfter > time.Hour-time.Since(began)+time.Second {
				t.Errorf("the window ends in %v; want an hour after it began, %v ago", r.ResetAfter, time.Since(began))
			}
			time.Sleep(time.Until(began.Add(1100 * time.Millisecond)))
			if _, got, err := load(short, brief); err != nil || !got.IsNew {
				t.Errorf("a session of a second is there (new %v, %v) after %v; want it expired though the server was down", got.IsNew, err, time.Since(began))
			}
		})
	}
}

func nothing(_, lost int) error {
	if lost > 0 {
		return fmt.Errorf("%d are lost; want none", lost)
	}
	return nil
}

func some(acked, lost int) error {
	if lost <= 0 || lost >= acked {
		return fmt.Errorf("%d of %d are lost; want those since the last snapshot, and no more", lost, acked)
	}
	return nil
}

func everything(acked, lost int) error {
	if lost != acked {
		return fmt.Errorf("%d of %d are lost; want all", lost, acked)
	}
	return nil
}

// waitForIt waits until a server that came back is used again.
func waitForIt(t *testing.T, rdb *redis.Client) {
	t.Helper()
	store, err := session.New(rdb, session.Config{Prefix: "faults:wait:"})
	if err != nil {
		t.Fatal(err)
	}
	if err := eventually(5*time.Second, func() error { _, err := signIn(store); return err }); err != nil {
		t.Fatal(err)
	}
}
