package session_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// TestReplicas carries out every write of a store that waits for a replica, with
// the replicas alive and then stopped.
func TestReplicas(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t, redistest.TCP(), redistest.Set("repl-diskless-sync-delay", "0"))
	_, port, _ := strings.Cut(master.Addr(), ":")
	replica := redistest.Start(t, redistest.TCP(), redistest.Set("replicaof", "127.0.0.1 "+port))
	rdb := master.Client()
	master.AwaitReplica()
	onReplica := replica.Client()
	waitsForReplicas(t, rdb, []*redistest.Server{replica}, func(key, field string) string {
		return onReplica.HGet(t.Context(), key, field).Val()
	})
}

func waitsForReplicas(t *testing.T, rdb redis.UniversalClient, replicas []*redistest.Server, onReplica func(key, field string) string) {
	st := open(t, rdb, session.Config{Replicas: 1, Timeout: time.Second, MaxPerUser: 2})
	plain := open(t, rdb, session.Config{MaxPerUser: 2})
	// Each leaves b without a session, and returns what the write said.
	writes := []struct {
		name string
		do   func(b *browser, st *session.Store) error
	}{
		{"create", func(b *browser, st *session.Store) error { return b.try(st, set("v", "1")) }},
		{"save", func(b *browser, st *session.Store) error {
			b.edit(t, plain, set("v", "0"))
			return b.try(st, set("v", "1"))
		}},
		{"save that prolongs", func(b *browser, st *session.Store) error {
			b.edit(t, plain, set("v", "0"))
			return b.try(st, func(s *sessions.Session) { s.Values["v"], s.Options.MaxAge = "1", 600 })
		}},
		{"login", func(b *browser, st *session.Store) (err error) {
			b.edit(t, plain, set("v", "0"))
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				s.Values["v"] = "1"
				if err = st.Bind(s, "somebody"); err == nil {
					err = st.Regenerate(w, r, s)
				}
			})
			return err
		}},
		{"destroy", func(b *browser, st *session.Store) (err error) {
			b.edit(t, plain, set("v", "0"))
			b.do(func(w http.ResponseWriter, r *http.Request) {
				s, _ := st.Get(r, "s")
				err = st.Destroy(w, r, s)
			})
			return err
		}},
		{"revoke", func(b *browser, st *session.Store) error {
			ok, err := st.Revoke(t.Context(), "revoked", signIn(t, b, plain, "revoked"))
			if !ok {
				t.Error("Revoke = false; want true, also beside ErrNotReplicated")
			}
			return err
		}},
		{"revoke user", func(b *browser, st *session.Store) error {
			signIn(t, b.clone(), plain, "everywhere")
			signIn(t, b, plain, "everywhere")
			n, err := st.RevokeUser(t.Context(), "everywhere")
			if n != 2 {
				t.Errorf("RevokeUser = %d; want 2, also beside ErrNotReplicated", n)
			}
			return err
		}},
		{"end the oldest", func(b *browser, st *session.Store) error {
			_, _ = plain.RevokeUser(t.Context(), "many")
			signIn(t, b.clone(), plain, "many")
			signIn(t, b.clone(), plain, "many")
			err := b.try(st, func(s *sessions.Session) { s.Values["v"] = "1"; _ = st.Bind(s, "many") })
			if list, _ := plain.Sessions(t.Context(), "many"); len(list) != 2 {
				t.Errorf("the user has %d sessions; want 2", len(list))
			}
			return err
		}},
	}
	gone := func(name string) bool { return name == "destroy" || strings.HasPrefix(name, "revoke") }
	for _, stopped := range []bool{false, true} {
		if stopped {
			for _, s := range replicas {
				s.Pause()
				defer s.Resume()
			}
		}
		var all sync.WaitGroup
		for _, write := range writes {
			all.Go(func() {
				b := newBrowser()
				err := write.do(b, st)
				switch {
				case !stopped && err != nil:
					t.Errorf("%s = %v; want no error", write.name, err)
				case stopped && (!errors.Is(err, session.ErrNotReplicated) || errors.Is(err, session.ErrUnavailable)):
					t.Errorf("%s while the replica is stopped = %v; want ErrNotReplicated alone", write.name, err)
				}
				got := b.values(t, plain)
				switch {
				case gone(write.name) && len(got) != 0:
					t.Errorf("%s, replicas stopped: %v: the master still has %v; want nothing", write.name, stopped, got)
				case !gone(write.name) && got["v"] != "1":
					t.Errorf("%s, replicas stopped: %v: the master has %v under the cookie; want v = 1", write.name, stopped, got)
				}
				if stopped || gone(write.name) {
					return
				}
				b.do(func(_ http.ResponseWriter, r *http.Request) {
					s, _ := plain.Get(r, "s")
					tag, hash, _ := strings.Cut(session.ID(s), ".")
					if v := onReplica(session.DefaultPrefix+"{"+tag+"}:"+hash, "sv"); !strings.HasSuffix(v, "1") {
						t.Errorf("%s has returned and the replica holds %q; want the value", write.name, v)
					}
				})
			})
		}
		all.Wait()
	}
}

// signIn makes a session of the user and returns its public id.
func signIn(t *testing.T, b *browser, st *session.Store, user string) (id string) {
	t.Helper()
	b.edit(t, st, func(s *sessions.Session) {
		s.Values["v"] = "0"
		if err := st.Bind(s, user); err != nil {
			t.Error(err)
		}
	})
	b.do(func(_ http.ResponseWriter, r *http.Request) {
		s, _ := st.Get(r, "s")
		id = session.ID(s)
	})
	return id
}

// Where there are no replicas each write says so.
func TestReplicasOfNobody(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		st := open(t, rdb, session.Config{Replicas: 1, Timeout: time.Second})
		b := newBrowser()
		if err := b.try(st, set("v", 1)); !errors.Is(err, session.ErrNotReplicated) {
			t.Errorf("Save = %v; want ErrNotReplicated", err)
		}
		if got := b.values(t, st); got["v"] != 1 {
			t.Errorf("the session holds %v; want what was saved", got)
		}
	})
}

func TestReplicasConfig(t *testing.T) {
	_, rdb := redistest.Mini(t)
	for want, cfg := range map[string]session.Config{
		"Replicas is -1; use zero not to wait for any":               {Replicas: -1},
		"Replicas is 17; use 16 or fewer, as many as each":           {Replicas: 17},
		"Replicas can't be used with Redisstore; leave Redisstore o": {Replicas: 1, Redisstore: &session.RedisstoreConfig{}},
	} {
		if _, err := session.New(rdb, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v; want %q", err, want)
		}
	}
}

// BenchmarkReplicas loads, changes and saves a session with and without waiting
// for the one replica. The two take turns, so that a busy machine slows both.
func BenchmarkReplicas(b *testing.B) {
	master := redistest.Start(b, redistest.TCP(), redistest.Set("repl-diskless-sync-delay", "0"))
	_, port, _ := strings.Cut(master.Addr(), ":")
	redistest.Start(b, redistest.TCP(), redistest.Set("replicaof", "127.0.0.1 "+port))
	rdb := redis.NewClient(&redis.Options{Addr: master.Addr(), PoolSize: 64})
	b.Cleanup(func() { rdb.Close() })
	for rdb.Wait(b.Context(), 1, 0).Val() < 1 {
		time.Sleep(10 * time.Millisecond)
	}
	stores := []*session.Store{open(b, rdb, session.Config{}), open(b, rdb, session.Config{Replicas: 1})}
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			const slices = 10
			var spent [2]time.Duration
			each := max(b.N/callers/slices, 1)
			browsers := make([]*browser, callers)
			for i := range browsers {
				browsers[i] = newBrowser()
				browsers[i].edit(b, stores[0], set("v", 0))
			}
			for range slices {
				for i, st := range stores {
					start := time.Now()
					var all sync.WaitGroup
					for _, br := range browsers {
						all.Go(func() {
							for n := range each {
								if err := br.try(st, set("v", n+1)); err != nil {
									b.Error(err)
								}
							}
						})
					}
					all.Wait()
					spent[i] += time.Since(start)
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, name := range []string{"alone", "replicated"} {
				b.ReportMetric(float64(spent[i].Microseconds())/float64(each*slices*callers), name+"-µs/op")
			}
		})
	}
}
