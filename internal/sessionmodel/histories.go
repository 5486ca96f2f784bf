package sessionmodel

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// signature is the second half of a cookie, by the page.
func signature(key int, raw string) string {
	derived, err := hkdf.Key(sha256.New, keyBytes("sign", key, 32), nil, "redporch session: cookies", 32)
	if err != nil {
		panic(err)
	}
	mac := hmac.New(sha256.New, derived)
	mac.Write([]byte(cookieName))
	mac.Write([]byte{0})
	mac.Write([]byte(raw))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// Histories says what to play.
type Histories struct {
	Seed   uint64 // of the first; the others follow
	Count  int
	Length int  // steps in each
	All    bool // go on after a disagreement, and report each kind of them
	passes bool
}

// Play plays histories on an empty Redis, which it empties after each. It adds a
// hook to the client.
func Play(t *testing.T, rdb redis.UniversalClient, h Histories) {
	t.Helper()
	f := &faulty{}
	rdb.AddHook(f)
	h.play(t, func(p *plan) (*player, error) {
		pl := &player{rdb: rdb, fault: f, plan: p, now: time.Now}
		err := pl.play()
		if e := rdb.FlushDB(context.Background()).Err(); e != nil {
			t.Fatal(e)
		}
		return pl, err
	})
}

// PlayInTime plays histories in which minutes and hours pass, each in a bubble of
// testing/synctest. client returns a client of an empty Redis that follows the
// bubble's clock.
func PlayInTime(t *testing.T, client func(t testing.TB) redis.UniversalClient, h Histories) {
	t.Helper()
	h.passes = true
	h.play(t, func(p *plan) (pl *player, err error) {
		synctest.Test(t, func(t *testing.T) {
			rdb, f := client(t), &faulty{}
			rdb.AddHook(f)
			pl = &player{rdb: rdb, fault: f, plan: p, now: time.Now, settle: settle, pause: time.Sleep}
			err = pl.play()
			time.Sleep(time.Second) // until what carries the calls has come to rest
		})
		return pl, err
	})
}

// settle waits until what loads prolong in the background is done.
func settle() {
	synctest.Wait()
	time.Sleep(5 * time.Millisecond)
	synctest.Wait()
}

func (h Histories) play(t *testing.T, run func(*plan) (*player, error)) {
	classes := map[string]int{}
	tally := map[string]int{}
	for i := range h.Count {
		p := generate(h.Seed+uint64(i), h.Length, h.passes)
		pl, err := run(p)
		for k, n := range pl.tally {
			tally[k] += n
		}
		if err == nil {
			continue
		}
		class := classOf(err)
		if classes[class]++; classes[class] > 1 {
			continue
		}
		p, pl, err = shrink(p, class, run)
		t.Errorf("seed %d of %d steps: %s", p.seed, h.Length, report(p, pl, err))
		if !h.All {
			break
		}
	}
	for c, n := range classes {
		t.Logf("%6d histories: %s", n, c)
	}
	if testing.Verbose() {
		for _, k := range slices.Sorted(maps.Keys(tally)) {
			t.Logf("%6d %s", tally[k], k)
		}
	}
}

func classOf(err error) string {
	var w *wrong
	if errors.As(err, &w) {
		return w.class
	}
	return err.Error()
}

// report is at most 40 lines.
func report(p *plan, pl *player, err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v\n    A: %v\n", err, p.stores[0])
	if p.stores[1] != p.stores[0] {
		fmt.Fprintf(&b, "    B: %v\n", p.stores[1])
	}
	lines := pl.trace
	if n := len(lines); n > 34 {
		fmt.Fprintf(&b, "    … %d steps …\n", n-34)
		lines = lines[n-34:]
	}
	for _, l := range lines {
		b.WriteString("    " + l + "\n")
	}
	return b.String()
}

// shrink leaves out steps, and simplifies stores, while the history fails in the
// same way.
func shrink(p *plan, class string, run func(*plan) (*player, error)) (*plan, *player, error) {
	left := 1000
	var last *player
	var lastErr error
	fails := func(q *plan) bool {
		tries := 1
		if slices.ContainsFunc(q.steps, func(s step) bool { return s.op == opRace }) {
			tries = 3
		}
		for range tries {
			left--
			pl, err := run(q)
			if err != nil && classOf(err) == class {
				last, lastErr = pl, err
				return true
			}
		}
		return false
	}
	fails(p)
	if last != nil && last.steps < len(p.steps) {
		if q := p.without(last.steps, len(p.steps)); fails(q) {
			p = q
		}
	}
	for size := max(1, len(p.steps)/2); size >= 1 && left > 0; {
		shorter := false
		for i := len(p.steps) - size; i >= 0 && left > 0; i -= size {
			i = min(i, len(p.steps)-size)
			if i < 0 {
				break
			}
			if q := p.without(i, i+size); fails(q) {
				p, shorter = q, true
			}
		}
		if size == 1 && !shorter {
			break
		}
		if !shorter || size > len(p.steps) {
			size = max(1, min(size/2, len(p.steps)))
		}
	}
	simpler := []func(*conf){
		func(c *conf) { keyStage{}.sign(c) },
		func(c *conf) { keyStage{}.encrypt(c) },
		func(c *conf) { c.Max, c.Refuse = 0, false },
		func(c *conf) { c.Detect = false },
		func(c *conf) { c.Idle = 30 * time.Minute },
		func(c *conf) { c.Abs = 8 * time.Hour },
	}
	if p.stores[0] != p.stores[1] {
		q := *p
		q.stores[1] = q.stores[0]
		if fails(&q) {
			p = &q
		}
	}
	for _, change := range simpler {
		q := *p
		a, b := *p.stores[0], *p.stores[1]
		change(&a)
		change(&b)
		q.stores = [2]*conf{&a, &b}
		if p.stores[0] == p.stores[1] {
			q.stores[1] = &a
		}
		if fails(&q) {
			p = &q
		}
	}
	for i := 0; i < len(p.steps); i++ { // one call instead of two at once
		for j := range p.steps[i].pair {
			q := *p
			q.steps = slices.Clone(p.steps)
			q.steps[i] = p.steps[i].pair[j]
			if fails(&q) {
				p = &q
				break
			}
		}
	}
	fails(p)
	return p, last, lastErr
}
