package faults_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redporch/redporch/cacheaside"
	"github.com/redporch/redporch/internal/redistest"
)

// await waits until ok is true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 30s: %s", what)
}

// TestCacheLarge: 100,000 keys, or 30,000 under -short, of a cluster of three masters are
// loaded in bulk, read and cleared.
func TestCacheLarge(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, false)
	size := 100_000
	if testing.Short() {
		size = 30_000
	}
	var bulks atomic.Int64
	c, err := cacheaside.New(cluster.Client(), "large",
		func(_ context.Context, n int) (int, error) { t.Error("a key was loaded alone"); return n * n, nil },
		cacheaside.Config{L1Entries: -1, TTL: time.Hour, Timeout: 10 * time.Second, LoadTimeout: time.Minute},
		cacheaside.Funcs[int, int]{LoadMany: func(_ context.Context, ns []int) (map[int]int, error) {
			bulks.Add(1)
			out := make(map[int]int, len(ns))
			for _, n := range ns {
				out[n] = n * n
			}
			return out, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	keys := make([]int, size)
	for i := range keys {
		keys[i] = i
	}
	for _, round := range []string{"cold", "warm"} {
		begin := time.Now()
		got, err := c.GetMany(t.Context(), keys)
		if err != nil || len(got) != size {
			t.Fatalf("%s: %d values, %v; want %d", round, len(got), err, size)
		}
		for n, v := range got {
			if v != n*n {
				t.Fatalf("%s: value of %d is %d; want %d", round, n, v, n*n)
			}
		}
		t.Logf("%s: %d keys in %v", round, size, time.Since(begin))
		if n := bulks.Load(); n != int64(size/1000) {
			t.Errorf("%s: %d bulk loads; want %d", round, n, size/1000)
		}
	}
	if err := c.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range cluster.Nodes() {
		if n := m.Client().DBSize(t.Context()).Val(); n != 0 {
			t.Errorf("%d keys left after Clear; want none", n)
		}
	}
}

// TestCacheTrackingCluster: the first level follows what others do to the keys of
// each of three masters, and a FLUSHALL of all.
func TestCacheTrackingCluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, false)
	rdb := cluster.Client()
	var version atomic.Int64
	c, err := cacheaside.New(rdb, "tracked", func(_ context.Context, n int) (int64, error) { return version.Load(), nil },
		cacheaside.Config{Tracking: true, TTL: time.Hour, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const keys = 30 // of each master some
	everywhere := func(what string, ok func(e cacheaside.Entry[int64]) bool) {
		t.Helper()
		for k := range keys {
			await(t, what+" of key "+strconv.Itoa(k), func() bool {
				e, err := c.GetEntry(t.Context(), k)
				return err == nil && ok(e)
			})
		}
	}
	for _, tt := range []struct {
		what string
		act  func() error
	}{
		{"DEL", func() error {
			for k := range keys {
				if err := rdb.Del(t.Context(), cacheaside.DefaultPrefix+"tracked:"+strconv.Itoa(k)).Err(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"FLUSHALL", func() error {
			for _, n := range cluster.Nodes() {
				if err := n.Client().FlushAll(t.Context()).Err(); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		everywhere("value in the first level", func(e cacheaside.Entry[int64]) bool { return e.Source == cacheaside.SourceL1 })
		now := version.Add(1)
		if err := tt.act(); err != nil {
			t.Fatal(err)
		}
		everywhere(tt.what+" seen", func(e cacheaside.Entry[int64]) bool { return e.Value == now })
	}
}
