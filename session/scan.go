package session

import (
	"context"
	"iter"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// scanCount is how many keys a step of a scan looks at, and so about how many
// sessions are in memory at once.
const scanCount = 500

// All iterates over all sessions of the store, on every master, with memory for a
// few hundred at a time. Sessions that come or go meanwhile may be missed, and one
// may appear twice, as with SCAN. On an error it yields that and ends.
// Sessions in redisstore's layout are not included.
func (st *Store) All(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		err := st.scan(ctx, st.sessionPattern(), func(ctx context.Context, master redis.UniversalClient, keys []string) (bool, error) {
			pipe := master.Pipeline()
			cmds := make([]redis.Cmder, 0, 2*len(keys))
			for _, key := range keys {
				cmds = append(cmds, infoCmds(ctx, key)...)
			}
			if err := pipe.BatchProcess(ctx, cmds...); err != nil {
				return false, err
			}
			if _, err := pipe.Exec(ctx); err != nil && err != redis.Nil {
				return false, err
			}
			for i, key := range keys {
				if info := st.info(st.idOfKey(key), cmds[2*i:2*i+2]); info.ID != "" && !yield(info, nil) {
					return false, nil
				}
			}
			return true, nil
		})
		if err != nil {
			yield(Info{}, st.conn.Classify("scan", err))
		}
	}
}

// Len counts the sessions of the store, on every master. It is exact if none
// come or go meanwhile and Redis does not resize its table. Sessions in
// redisstore's layout are not included.
func (st *Store) Len(ctx context.Context) (int, error) {
	n := 0
	err := st.scan(ctx, st.sessionPattern(), func(ctx context.Context, master redis.UniversalClient, keys []string) (bool, error) {
		pipe := master.Pipeline()
		for _, key := range keys {
			pipe.HMGet(ctx, key, fieldMeta)
		}
		cmds, err := pipe.Exec(ctx)
		n += countSessions(cmds)
		if foreign := redis.HasErrorPrefix(err, "WRONGTYPE"); foreign {
			err = nil
		}
		return true, err
	})
	return n, st.conn.Classify("scan", err)
}

// countSessions counts those that HMGET found: at the key of an id that was superseded
// is none.
func countSessions(cmds []redis.Cmder) (n int) {
	for _, cmd := range cmds {
		if c, ok := cmd.(*redis.SliceCmd); ok && c.Err() == nil && len(c.Val()) == 1 && c.Val()[0] != nil {
			n++
		}
	}
	return n
}

// Clear deletes all sessions of the store and the users' indexes, on every master,
// and returns how many sessions there were. Other keys in Redis, and sessions in
// redisstore's layout, are left alone.
func (st *Store) Clear(ctx context.Context) (int, error) {
	n := 0
	for _, pattern := range []string{st.sessionPattern(), globQuote(st.prefix()) + "user:{*}"} {
		sessions := pattern == st.sessionPattern()
		err := st.scan(ctx, pattern, func(ctx context.Context, master redis.UniversalClient, keys []string) (bool, error) {
			pipe := master.Pipeline()
			for _, key := range keys {
				if sessions {
					pipe.HMGet(ctx, key, fieldMeta)
				}
				pipe.Unlink(ctx, key)
			}
			cmds, err := pipe.Exec(ctx)
			n += countSessions(cmds)
			if redis.HasErrorPrefix(err, "WRONGTYPE") { // somebody else's key, in our place
				err = nil
			}
			return true, err
		})
		if err != nil {
			return n, st.conn.Classify("clear", err)
		}
	}
	return n, nil
}

// scan calls fn with the keys that match pattern, master by master, until fn
// returns false.
func (st *Store) scan(ctx context.Context, pattern string, fn func(ctx context.Context, master redis.UniversalClient, keys []string) (bool, error)) error {
	var mu sync.Mutex
	var masters []redis.UniversalClient
	err := st.conn.EachMaster(ctx, func(_ context.Context, m redis.UniversalClient) error {
		mu.Lock()
		defer mu.Unlock()
		masters = append(masters, m)
		return nil
	})
	if err != nil {
		return err
	}
	sessions := pattern == st.sessionPattern()
	for _, m := range masters {
		var cursor uint64
		for {
			keys, next, err := m.Scan(ctx, cursor, pattern, scanCount).Result()
			if err != nil {
				return err
			}
			if sessions {
				kept := keys[:0]
				for _, k := range keys {
					if st.idOfKey(k) != "" {
						kept = append(kept, k)
					}
				}
				keys = kept
			}
			if len(keys) > 0 {
				if more, err := fn(ctx, m, keys); err != nil || !more {
					return err
				}
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	return nil
}

func (st *Store) sessionPattern() string { return globQuote(st.prefix()) + "{???}:*" }

// idOfKey returns the public id of the session with a key, or "" if it is none.
func (st *Store) idOfKey(key string) string {
	rest, ok := strings.CutPrefix(key, st.prefix()+"{")
	if !ok || len(rest) != tagLen+2+hashLen {
		return ""
	}
	id := rest[:tagLen] + "." + rest[tagLen+2:]
	if st.keyOfID(id) != key {
		return ""
	}
	return id
}

// globQuote quotes what has a meaning in a pattern of SCAN.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}
