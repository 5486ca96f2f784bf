package faults_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/session"
)

// A session is a register with a delete: loads return the value saved last, and
// once it was destroyed it is absent for ever. porcupine checks recorded
// histories against that. The histories of limiters and caches are checked in
// their own packages.

type opKind uint8

const (
	opLoad opKind = iota
	opSave
	opDestroy
	opEcho // a save that was sent again may take effect again, as long as it has not returned
)

type input struct {
	kind  opKind
	value int
}

type output struct {
	value   int  // of a load
	absent  bool // the session is not there
	unknown bool // Redis did not say
}

type registerState struct {
	destroyed bool
	value     int
}

var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{registerState{}} },
	Step: func(state, in, out any) []any {
		st, op, res := state.(registerState), in.(input), out.(output)
		saved := st
		if !st.destroyed {
			saved.value = op.value
		}
		switch op.kind {
		case opLoad:
			if res.absent == st.destroyed && (res.absent || res.value == st.value) {
				return []any{st}
			}
		case opSave:
			switch {
			case res.unknown:
				return []any{st, saved}
			case res.absent == st.destroyed:
				return []any{saved}
			}
		case opEcho:
			return []any{st, saved}
		case opDestroy:
			if res.unknown {
				return []any{st, registerState{destroyed: true}}
			}
			return []any{registerState{destroyed: true}}
		}
		return nil
	},
}).ToModel()

// registers are what histories are recorded of.
type registers interface {
	load() (output, error)
	save(value int) (output, error)
	destroy() error
}

// redporchSession is one session of a store.
type redporchSession struct {
	store  *session.Store
	cookie *http.Cookie
}

func (x redporchSession) load() (output, error) {
	_, s, err := load(x.store, x.cookie)
	v, _ := s.Values["v"].(int)
	return output{value: v, absent: s.IsNew}, err
}

func (x redporchSession) save(value int) (output, error) {
	r, s, err := load(x.store, x.cookie)
	if err == nil && s.IsNew {
		return output{absent: true}, nil
	}
	s.Values["v"] = value
	err = x.store.Save(r, httptest.NewRecorder(), s)
	switch {
	case errors.Is(err, session.ErrSessionGone):
		return output{absent: true}, nil
	case err == nil && s.IsNew: // not loaded, and then not there: it became another session
		return output{absent: true}, nil
	}
	return output{}, err
}

func (x redporchSession) destroy() error {
	r, s, _ := load(x.store, x.cookie)
	return x.store.Destroy(httptest.NewRecorder(), r, s)
}

// naiveSession does what most stores do: a request reads, changes and writes the
// whole session.
type naiveSession struct {
	rdb redis.UniversalClient
	key string
}

func (x naiveSession) load() (output, error) {
	v, err := x.rdb.Get(context.Background(), x.key).Int()
	if err == redis.Nil {
		return output{absent: true}, nil
	}
	return output{value: v}, err
}

func (x naiveSession) save(value int) (output, error) {
	if out, err := x.load(); err != nil || out.absent {
		return out, err
	}
	time.Sleep(rand.N(time.Millisecond)) // the handler
	return output{}, x.rdb.Set(context.Background(), x.key, value, 0).Err()
}

func (x naiveSession) destroy() error { return x.rdb.Del(context.Background(), x.key).Err() }

// record has several clients use one session, one of whom destroys it.
func record(x registers) []porcupine.Operation {
	var mu sync.Mutex
	var history []porcupine.Operation
	start := time.Now()
	var values atomic.Int64
	do := func(client int, in input, call func() (output, error)) {
		began := time.Since(start).Nanoseconds()
		out, err := call()
		ended := time.Since(start).Nanoseconds()
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if in.kind == opLoad {
				return
			}
			out, ended = output{unknown: true}, math.MaxInt64/2
		}
		history = append(history, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: began, Return: ended})
	}
	var all sync.WaitGroup
	for client := range 5 {
		all.Go(func() {
			for range 8 {
				if client < 3 {
					v := int(values.Add(1))
					do(client, input{opSave, v}, func() (output, error) { return x.save(v) })
				} else {
					do(client, input{kind: opLoad}, x.load)
				}
				time.Sleep(rand.N(2 * time.Millisecond))
			}
		})
	}
	all.Go(func() {
		time.Sleep(rand.N(12 * time.Millisecond))
		do(5, input{kind: opDestroy}, func() (output, error) { return output{}, x.destroy() })
		do(5, input{kind: opLoad}, x.load)
	})
	all.Wait()
	do(6, input{kind: opLoad}, x.load)
	return withEchoes(history)
}

// retryAfter is how many nanoseconds a save takes at least that was sent again
// after its reply was lost, which it is at most twice.
const retryAfter = 4e6

// withEchoes adds to a history what saves may have done when they were sent
// again, also those that found the session destroyed in the end. What nobody read
// does not matter to a register and is left out, for the checker's sake.
func withEchoes(history []porcupine.Operation) (all []porcupine.Operation) {
	seen := map[int]bool{}
	for _, op := range history {
		if in, out := op.Input.(input), op.Output.(output); in.kind == opLoad && !out.absent {
			seen[out.value] = true
		}
	}
	for _, op := range history {
		in, out := op.Input.(input), op.Output.(output)
		if in.kind == opSave && out.unknown && !seen[in.value] {
			continue
		}
		all = append(all, op)
		if in.kind == opSave && seen[in.value] && op.Return-op.Call >= retryAfter {
			for echo := range 2 {
				op.ClientId, op.Input = op.ClientId+100*(echo+1), input{opEcho, in.value}
				all = append(all, op)
			}
		}
	}
	return all
}

func illegal(t *testing.T, history []porcupine.Operation) bool {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(register, history, 20*time.Second) {
	case porcupine.Illegal:
		return true
	case porcupine.Unknown:
		t.Error("the checker did not come to an end")
	}
	return false
}

func TestSessionHistories(t *testing.T) {
	s := redistest.Start(t, redistest.Proxied())
	rounds := 1000
	if testing.Short() {
		rounds = 40
	}
	play := func(t *testing.T, rdb redis.UniversalClient, harm func()) (operations, unknown, destroyed int) {
		store, err := session.New(rdb, session.Config{Keys: [][]byte{secret}, Timeout: 80 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		maker, err := session.New(s.Client(), session.Config{Keys: [][]byte{secret}}) // never harmed
		if err != nil {
			t.Fatal(err)
		}
		for range rounds {
			cookie, err := signIn(maker)
			if err != nil {
				t.Fatal(err)
			}
			harm()
			history := record(redporchSession{store, cookie})
			operations += len(history)
			for _, op := range history {
				if op.Input.(input).kind == opEcho || op.Output.(output).unknown {
					unknown++
				}
				if op.Output.(output).absent {
					destroyed++
				}
			}
			if illegal(t, history) {
				t.Errorf("a session is no register with delete: %+v", history)
			}
		}
		return operations, unknown, destroyed
	}
	t.Run("without faults", func(t *testing.T) {
		ops, unknown, destroyed := play(t, s.Client(), func() {})
		t.Logf("%d operations in %d histories, %d of which may have happened more than once, or not at all, %d found the session destroyed", ops, rounds, unknown, destroyed)
		if destroyed < rounds {
			t.Errorf("%d operations found their session destroyed; want at least one in each of %d histories", destroyed, rounds)
		}
	})
	t.Run("under faults", func(t *testing.T) {
		list := []redistest.Fault{
			{Match: "evalsha", Times: 3, Skip: 2, LoseReply: true},
			{Match: "evalsha", Times: 3, Skip: 1, CutAfter: true},
			{Match: "evalsha", Times: 2, CutBefore: true, Reset: true},
			{Match: "hgetall", Times: 3, Skip: 4, CutAfter: true},
			{Match: "evalsha", Times: 2, Skip: 1, DelayRequest: 90 * time.Millisecond},
			{Match: "unlink", Times: 1, LoseReply: true},
			{Match: "unlink", Times: 1, CutAfter: true},
		}
		rdb := s.Client(func(o *redis.Options) { o.Network, o.Addr = "tcp", s.Proxy.Addr() })
		n := 0
		ops, unknown, destroyed := play(t, rdb, func() { s.Proxy.Set(list[n%len(list)]); n++ })
		t.Logf("%d operations in %d histories, %d of which may have happened more than once, or not at all, %d found the session destroyed", ops, rounds, unknown, destroyed)
		if unknown == 0 {
			t.Error("every operation has one outcome; the faults did not strike")
		}
	})
	t.Run("the checker bites", func(t *testing.T) {
		// A store that brings destroyed sessions back.
		rdb := s.Client()
		caught := 0
		for i := range rounds {
			x := naiveSession{rdb, "naive" + strconv.Itoa(i)}
			rdb.Set(t.Context(), x.key, 0, 0)
			if illegal(t, record(x)) {
				caught++
			}
		}
		t.Logf("read, change and write: %d of %d histories are illegal", caught, rounds)
		if caught == 0 {
			t.Errorf("none of %d histories of a store that is known to be wrong was refused", rounds)
		}
		// And one wrong answer in a history that is right.
		at := func(kind opKind, value int, out output, call int64) porcupine.Operation {
			return porcupine.Operation{Input: input{kind, value}, Output: out, Call: call, Return: call + 1}
		}
		right := []porcupine.Operation{
			at(opSave, 1, output{}, 0), at(opSave, 2, output{}, 10), at(opLoad, 0, output{value: 2}, 20),
			at(opDestroy, 0, output{}, 30), at(opSave, 3, output{absent: true}, 40), at(opLoad, 0, output{absent: true}, 50),
		}
		if illegal(t, right) {
			t.Error("a history that is right was refused")
		}
		for i, wrong := range map[int]output{2: {value: 1}, 4: {}, 5: {value: 2}} {
			h := append([]porcupine.Operation{}, right...)
			h[i].Output = wrong
			if !illegal(t, h) {
				t.Errorf("with %+v as the answer to operation %d the history was accepted; want it refused", wrong, i)
			}
		}
	})
}
