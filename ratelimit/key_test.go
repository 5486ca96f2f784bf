package ratelimit

import (
	"fmt"
	"testing"
)

// Some subjects more than a process keeps do not make it forget those that come again.
func TestKnownKeysStay(t *testing.T) {
	k := newKeys(DefaultPrefix, nil, false)
	find := func(name string) *knownKey { return k.find(hashOf(name), name, ":b:api") }
	const often = 512
	now := int64(0)
	again := func() (stayed int) {
		for i := range often {
			name := fmt.Sprint("often", i)
			n := find(name)
			if n.base != k.base(name) || n.key != n.base+":b:api" || n.subject != name {
				t.Fatalf("find(%s) = %+v; want its keys", name, n)
			}
			if n.looked.Load() > 0 {
				stayed++
			}
			now++
			n.looked.Store(now)
		}
		return stayed
	}
	again()
	for round := range 20 {
		for i := range often {
			find(fmt.Sprint("once", round, "-", i))
		}
		if stayed := again(); stayed < often*9/10 {
			t.Errorf("%d of %d subjects were still known in round %d; want nearly all", stayed, often, round)
		}
	}
	if n := find("often1"); n != find("often1") || n == k.find(n.hash, "often1", ":f:api") {
		t.Error("a subject is not found again, or with another suffix")
	}
}
