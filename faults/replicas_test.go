package faults_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// ledger is what one worker was told of its sessions.
type ledger struct {
	store *session.Store
	saved []savedSession
	// writes and logouts that were acknowledged, and writes that were not
	acked, ended, short int
}

type savedSession struct {
	cookie  *http.Cookie
	value   int  // saved last
	tried   int  // perhaps saved
	ended   bool // destroyed, and that was acknowledged
	ending  bool // perhaps destroyed
	unknown bool // made, but that was not acknowledged
}

// live makes, changes and destroys sessions until ctx ends. A write counts as
// acknowledged if it returned no error.
func (l *ledger) live(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		r := httptest.NewRequest("GET", "/", nil)
		s, _ := l.store.New(r, "sid")
		s.Values["v"] = 0
		rec := httptest.NewRecorder()
		err := l.store.Save(r, rec, s)
		l.count(err)
		if len(rec.Result().Cookies()) == 0 {
			continue
		}
		x := savedSession{cookie: rec.Result().Cookies()[0], unknown: err != nil}
		for v := 1; v <= 3; v++ {
			s.Values["v"] = v
			x.tried = v
			if err = l.store.Save(r, httptest.NewRecorder(), s); err == nil {
				x.value, x.unknown = v, false // a later write proves the earlier
			}
			l.count(err)
		}
		if n%2 == 0 {
			x.ending = true
			if err = l.store.Destroy(httptest.NewRecorder(), r, s); err == nil {
				x.ended = true
				l.ended++
			}
			l.count(err)
		}
		l.saved = append(l.saved, x)
	}
}

func (l *ledger) count(err error) {
	if err == nil {
		l.acked++
	} else if errors.Is(err, session.ErrNotReplicated) {
		l.short++
	}
}

// lost counts the sessions of which something acknowledged is missing.
func (l *ledger) lost(t *testing.T) (lost int) {
	t.Helper()
	for _, x := range l.saved {
		var values map[any]any
		err := eventually(10*time.Second, func() error {
			_, s, err := load(l.store, x.cookie)
			values = s.Values
			return err
		})
		if err != nil {
			t.Errorf("a session can't be read after the failover: %v", err)
			return lost
		}
		v, there := values["v"].(int)
		switch {
		case x.ended && there, !x.ending && !x.unknown && (!there || v < x.value):
			lost++
		case v > x.tried:
			t.Errorf("a session holds %d; only %d was written", v, x.tried)
		}
	}
	return lost
}

// TestReplicas kills the masters of a cluster one after another, under load and in
// the moment in which it hurts most: when their replicas have not heard of them
// for a while. A store that waits for a replica loses nothing that it said was
// saved or ended; one that does not loses what the stopped replica had not got.
func TestReplicas(t *testing.T) {
	t.Parallel()
	cl := redistest.StartCluster(t, 3, true)
	rounds := []bool{false, true, true}
	rdb := cl.Client()
	for i, stalled := range rounds {
		victim, replica := cl.Masters[i], cl.Replicas[i]
		var ledgers [2][]*ledger // without and with the option
		for waits := range ledgers {
			store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Replicas: waits, Timeout: 500 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				ledgers[waits] = append(ledgers[waits], &ledger{store: store})
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for _, list := range ledgers {
			for _, l := range list {
				load.Go(func() { l.live(ctx) })
			}
		}
		time.Sleep(400 * time.Millisecond)
		if stalled {
			replica.Pause()
			if err := victim.Client().Do(t.Context(), "client", "kill", "type", "replica").Err(); err != nil {
				t.Error(err)
			}
			time.Sleep(300 * time.Millisecond)
		}
		killed := time.Now()
		victim.Kill()
		if stalled {
			replica.Resume()
		}
		failover := isMaster(t, replica, killed)
		cancel()
		load.Wait()
		var lost, acked, ended, short [2]int
		for waits, list := range ledgers {
			for _, l := range list {
				lost[waits] += l.lost(t)
				acked[waits] += l.acked
				ended[waits] += l.ended
				short[waits] += l.short
			}
		}
		t.Logf("replica stalled before: %v; it took over after %d ms; without Replicas: %d writes acknowledged, %d sessions lost some; with Replicas: 1: %d acknowledged, %d of them logouts, %d not replicated, %d lost",
			stalled, failover.Milliseconds(), acked[0], lost[0], acked[1], ended[1], short[1], lost[1])
		if lost[1] > 0 || acked[1] < 50 || ended[1] == 0 {
			t.Errorf("with Replicas: 1, %d sessions lost something of %d acknowledged writes, %d of them logouts; want none of some", lost[1], acked[1], ended[1])
		}
		if i < len(rounds)-1 { // the dead master comes back as a replica
			victim.Restart()
			info := replica.Client()
			if err := eventually(15*time.Second, func() error {
				if text := info.Info(t.Context(), "replication").Val(); !strings.Contains(text, "state=online") {
					return errors.New("the dead master has not come back as a replica")
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if stalled && (lost[0] == 0 || short[1] == 0) {
			t.Errorf("with the replica stalled, %d sessions lost something without Replicas, and %d writes with it were reported; want some of both, else this test proves nothing", lost[0], short[1])
		}
	}
	// Masters without replicas: the store says so.
	for _, s := range cl.Masters[:2] {
		s.Kill()
	}
	store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Replicas: 1, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := eventually(5*time.Second, func() error {
		if _, err = signIn(store); errors.Is(err, session.ErrNotReplicated) {
			return nil
		}
		return errors.New("it was not reported")
	}); err != nil {
		t.Errorf("Save on a master without replicas = %v; want ErrNotReplicated", err)
	}
}
