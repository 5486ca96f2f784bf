package session

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/redistest"
)

// change.lua tells a session that is there by the fields it sets. What it sets where none
// is, it takes back.
func TestChangeLeavesNothingWhereNoSessionIs(t *testing.T) {
	type hash = map[string]string
	session, none := hash{"m": "1,2,3,4,0", "sa": "old", "sb": "old"}, hash{}
	many := hash{}
	for i := range 450 { // set in three pieces
		many[fmt.Sprintf("sn%d", i)] = "new"
	}
	redistest.Run(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := t.Context()
		keys := []string{"{c}1", "{c}2", "{c}3"}
		for _, c := range []struct {
			name string
			has  hash // nil: the key holds a string
			set  hash
			del  []string
			want int64
		}{
			{"a value of a session", session, hash{"sa": "new"}, nil, 1},
			{"a new value of a session", session, hash{"sc": "new"}, nil, 1},
			{"old and new ones", session, hash{"sa": "new", "sc": "new"}, []string{"sb"}, 1},
			{"many", session, many, []string{"sb"}, 1},
			{"deletion", session, nil, []string{"sb"}, 1},
			{"nothing there", none, hash{"sa": "new"}, nil, 0},
			{"nothing there, several", none, hash{"sa": "new", "sb": "new"}, []string{"sc"}, 0},
			{"nothing there, many", none, many, nil, 0},
			{"nothing there to delete", none, nil, []string{"sa"}, 0},
			{"a hash that is no session", hash{"x": "1"}, hash{"sa": "new"}, []string{"x"}, 0},
			{"a string", nil, hash{"sa": "new"}, nil, -1},
			{"a string, many", nil, many, nil, -1},
			{"a string, deletion", nil, nil, []string{"sa"}, -1},
		} {
			// Between two sessions that are there.
			rdb.Del(ctx, keys...)
			for i, has := range []hash{session, c.has, session} {
				var err error
				switch {
				case has == nil:
					err = rdb.Set(ctx, keys[i], "text", 0).Err()
				case len(has) > 0:
					err = rdb.HSet(ctx, keys[i], has).Err()
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			args := []any{len(c.set), len(c.del)}
			for range keys {
				for f, v := range c.set {
					args = append(args, f, v)
				}
				for _, f := range c.del {
					args = append(args, f)
				}
			}
			got, err := rdb.Eval(ctx, changeSource, keys, args...).Int64Slice()
			answers := []int64{1, c.want, 1}
			if c.want == 1 {
				answers = answers[:1] // for all
			}
			if err != nil || !slices.Equal(got, answers) {
				t.Errorf("%s: change.lua = %v, %v; want %v", c.name, got, err, answers)
			}
			if c.has == nil {
				if text := rdb.Get(ctx, keys[1]).Val(); text != "text" {
					t.Errorf("%s: the string is %q now", c.name, text)
				}
				continue
			}
			want := maps.Clone(c.has)
			if c.want == 1 {
				maps.Copy(want, c.set)
				for _, f := range c.del {
					delete(want, f)
				}
			}
			if h := rdb.HGetAll(ctx, keys[1]).Val(); !maps.Equal(h, want) {
				t.Errorf("%s: the hash has %d fields now: %.200s; want %d: %.200s", c.name, len(h), fmt.Sprint(h), len(want), fmt.Sprint(want))
			}
		}
	})
}

// An error that says nothing of the key is one of the whole run, and not taken for a key
// that holds something else.
func TestChangeFailsWhereRedisIsFull(t *testing.T) {
	rdb := redistest.Start(t).Client()
	ctx := t.Context()
	rdb.HSet(ctx, "session", "m", "1,2,3,4,0", "sa", "old")
	if err := rdb.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"session", "gone"} {
		got, err := rdb.Eval(ctx, changeSource, []string{key}, 1, 0, "sa", "new").Int64Slice()
		if !redis.IsOOMError(err) {
			t.Errorf("%s: change.lua = %v, %v; want an error that starts with OOM", key, got, err)
		}
	}
}
