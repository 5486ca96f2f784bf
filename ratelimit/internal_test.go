package ratelimit

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
	"github.com/redporch/redporch/internal/roundtrip"
)

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A million keys must not grow the process beyond what the options say.
func TestMillionKeysAreBounded(t *testing.T) {
	before := heap()
	d := newDenials(DefaultDenialCacheSize, -1)
	l := newLocal(20_000)
	p := FixedWindow("p", 4, time.Hour)
	c := &core{cfg: Config{Share: 0.5}}
	set, err := c.newSet([]Policy{p.OnUnavailable(Local)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1_000_000 {
		key := fmt.Sprintf("user-%d", i)
		b := d.bucket(hashOf(key))
		b.add(&certificate{key: key, set: 1, cost: 1, until: time.Hour}, b.epoch.Load(), 0)
		if i%4 == 0 {
			l.decide(key, set, 1, nil)
		}
	}
	grown := int64(heap()) - int64(before)
	kept, keys := 0, 0
	for i := range d.buckets {
		for j := range d.buckets[i].slots {
			if d.buckets[i].slots[j].Load() != nil {
				kept++
			}
		}
	}
	for i := range l.shards {
		keys += len(l.shards[i].keys)
	}
	if kept > DefaultDenialCacheSize || kept < DefaultDenialCacheSize/2 {
		t.Errorf("%d denials kept; want at most %d, and most of them", kept, DefaultDenialCacheSize)
	}
	if keys > 20_000 || keys < 19_000 {
		t.Errorf("%d local keys kept; want 20,000", keys)
	}
	if grown > 32<<20 {
		t.Errorf("a million keys grew the heap by %d bytes; want less than 32 MiB", grown)
	}
	if key := "user-999999"; d.bucket(hashOf(key)).find(key, 1, 1, 0) == nil {
		t.Error("the latest denial is not found")
	}
	runtime.KeepAlive(l)
}

// A denial that was under way while units came back is not kept.
func TestStaleDenialIsNotKept(t *testing.T) {
	d := newDenials(64, -1)
	b := d.bucket(hashOf("k"))
	epoch := b.epoch.Load()
	b.drop("k")
	b.add(&certificate{key: "k", set: 1, cost: 1, until: time.Hour}, epoch, 0)
	if b.find("k", 1, 1, 0) != nil {
		t.Error("a denial from before the drop was kept")
	}
	b.add(&certificate{key: "k", set: 1, cost: 3, until: time.Hour}, b.epoch.Load(), 0)
	for _, tt := range []struct {
		key       string
		set, cost int64
		now       time.Duration
		want      bool
	}{
		{"k", 1, 3, 0, true}, {"k", 1, 9, 0, true}, {"k", 1, 2, 0, false}, {"k", 2, 3, 0, false}, {"x", 1, 3, 0, false},
		{"k", 1, 3, time.Hour, false},
	} {
		if got := b.find(tt.key, tt.set, tt.cost, tt.now) != nil; got != tt.want {
			t.Errorf("find(%q, set %d, cost %d, at %v) = %v; want %v", tt.key, tt.set, tt.cost, tt.now, got, tt.want)
		}
	}
}

func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "}", "{}", "{", "user:1", "a\x00b", "é", "%", "%25", strings.Repeat("x", 300)} {
		f.Add(s, s+"x", false)
		f.Add(s, "}"+s, true)
	}
	hashed := newKeys(DefaultPrefix, []byte("0123456789abcdef"), false)
	plain := newKeys("p:", nil, true)
	c := &core{}
	set, err := c.newSet([]Policy{FixedWindow("a", 1, time.Second), SlidingLog("b", 1, time.Second), TokenBucket("c.d-e_f", 1, time.Second, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b string, usePlain bool) {
		k := hashed
		if usePlain {
			k = plain
		}
		base := k.base(a)
		tag, ok := strings.CutPrefix(base, k.prefix+"{")
		tag, end := strings.CutSuffix(tag, "}")
		if !ok || !end || tag == "" || strings.ContainsAny(tag, "{}") {
			t.Fatalf("base(%q) = %q; want one tag, not empty, without braces", a, base)
		}
		if !usePlain && len(tag) != tagLen {
			t.Fatalf("base(%q) = %q; want a tag of %d characters", a, base, tagLen)
		}
		for i := range set.policies {
			if got := roundtrip.Slot(base + set.policies[i].suffix); got != roundtrip.Slot(base) || got != roundtrip.Slot(tag) {
				t.Fatalf("keys of %q are in slots %d and %d", a, got, roundtrip.Slot(base))
			}
		}
		if (base == k.base(b)) != (a == b) {
			t.Fatalf("base(%q) = %q, base(%q) = %q", a, base, b, k.base(b))
		}
		if phase(base) < 0 || phase(base) >= 1<<52 {
			t.Fatalf("phase(%q) = %d; want 0 to 2^52", base, phase(base))
		}
	})
}

func FuzzJoin(f *testing.F) {
	f.Add("a", "b", "ab", "")
	f.Add("1:a", "", "", "1:a")
	f.Add("10.0.0.1", ":", "10.0.0.1:", "")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		if (Join(a, b) == Join(c, d)) != (a == c && b == d) {
			t.Errorf("Join(%q, %q) = %q; Join(%q, %q) = %q", a, b, Join(a, b), c, d, Join(c, d))
		}
		if Join(a, b) == Join(a+b) || Join(a, b) == Join(a, b, "") {
			t.Errorf("Join(%q, %q) = %q is also made of another number of parts", a, b, Join(a, b))
		}
	})
}

func TestKeysDependOnTheSecret(t *testing.T) {
	plain := newKeys("p:", nil, false)
	one := newKeys("p:", []byte("0123456789abcdef"), false)
	two := newKeys("p:", []byte("0123456789abcdeg"), false)
	seen := map[string]bool{plain.base("k"): true, one.base("k"): true, two.base("k"): true}
	if len(seen) != 3 || one.base("k") != newKeys("p:", []byte("0123456789abcdef"), false).base("k") {
		t.Errorf("keys %v; want three, each the same again", seen)
	}
	if got := newKeys("p:", nil, true).base("user:é{1}"); got != "p:{user:%C3%A9%7B1%7D}" {
		t.Errorf("plain key = %q", got)
	}
}

// What a client sends as a key takes no more memory than the options say, however long
// it is, and a key that is a piece of a long text does not keep the text.
func TestLongKeysAreNotKept(t *testing.T) {
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		l, err := New(rdb, Config{Timeout: time.Minute}, SlidingLog("p", 4, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		const keys, length = 30, 1 << 18
		long := func(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("k", length) }
		ask := func(key string) {
			for range 6 { // the last are denied
				if r, err := l.Allow(t.Context(), key); err != nil || r.Source != SourceRedis && r.Source != SourceDenied {
					t.Fatalf("Allow = %+v, %v", r, err)
				}
			}
			if r := l.local.decide(key, l.set, 1, nil); !r.Allowed {
				t.Fatalf("in process: %+v; want it admitted", r)
			}
		}
		ask("warm")
		before := heap()
		for i := range keys {
			ask(long(i))
			ask(long(i)[:8] + fmt.Sprint(i))
			ask(long(i)[:9])
		}
		if grown := int64(heap()) - int64(before); grown > keys*length/10 {
			t.Errorf("%d keys of %d bytes and pieces of them: %d bytes stay in use; want few", keys, length, grown)
		}
		runtime.KeepAlive(l)
	})
}

// Logs in process take as much memory as LocalKeys says, whatever is admitted.
func TestLocalBytesAreBounded(t *testing.T) {
	const keys = 1600
	l := newLocal(keys)
	c := &core{cfg: Config{Share: 1}}
	set, err := c.newSet([]Policy{SlidingLog("p", 1e9, time.Hour).OnUnavailable(Local)})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	for i := range keys {
		for range 200 {
			if r := l.decide(fmt.Sprint(i), set, 1, nil); !r.Allowed {
				t.Fatalf("%+v; want it admitted", r)
			}
		}
	}
	kept := 0
	for i := range l.shards {
		kept += len(l.shards[i].keys)
	}
	if grown := int64(heap()) - int64(before); grown > keys*localKeyBytes || kept < keys/8 {
		t.Errorf("%d keys, %d kept: %d bytes; want at most %d", keys, kept, grown, keys*localKeyBytes)
	}
	runtime.KeepAlive(l)
}
