package middleware

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// checkPrefix begins the keys and the channel of Check. What it writes lives for checkLife.
const (
	checkPrefix = "redporch:check:"
	checkLife   = 5 * time.Second
	// checkKeys are so many that a proxy before two servers puts all beside the first key
	// once in 4 billion times.
	checkKeys = 32
)

// checkMeet counts how many of the keys after the first are there.
const checkMeet = `local n = 0
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) then n = n + 1 end
end
return n`

// isReply reports whether err is an answer.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && !errors.Is(err, io.EOF)
}

// proxy reports whether a command that every Redis has was answered by an error that no
// Redis gives that is at work, and notes it.
func (c *checker) proxy(command string, err error) bool {
	if !isReply(err) || err == redis.Nil {
		return false
	}
	text := strings.ToLower(err.Error())
	for _, part := range []string{"unknown command", "unsupported command", "not supported", "invalid request", "no upstream host"} {
		if strings.Contains(text, part) {
			c.found(WarnRedisProxy, "%s was answered by %q, as by a proxy and not by Redis: what it does to transactions, subscriptions and scripts "+
				"is up to it, and the rest of this check sees less", command, err)
			return true
		}
	}
	return false
}

// route looks whether keys meet in a script that are not in one hash tag. Redis that has
// them all, and a proxy that sends a script to the server of its first key, answer alike;
// but the second key, as a GET would find it, is elsewhere, and a limit is counted twice.
func (c *checker) route(ctx context.Context, rdb redis.UniversalClient) {
	keys := make([]string, checkKeys+1)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s%x:%d", checkPrefix, rand.Uint64(), i)
	}
	for _, key := range keys[1:] {
		if rdb.Set(ctx, key, 1, checkLife).Err() != nil {
			return // not permitted, or something that others report
		}
	}
	n, err := rdb.Eval(ctx, checkMeet, keys).Int()
	switch {
	case c.cfg.RoutingProxy:
	case err == nil && n < checkKeys:
		c.found(WarnRoutingProxy, "a script found %d of %d keys that are there: a proxy sends it to the server of its first key only, "+
			"so limits admit more than they should and sessions are missing from their user's list; set RoutingProxy in the Configs of ratelimit and session", n, checkKeys)
	case err != nil && isReply(err) && !redis.HasErrorPrefix(err, "CROSSSLOT") && !redis.IsPermissionError(err):
		c.found(WarnRedisProxy, "a script over several keys was answered by %q; if what answers is a proxy that wants all keys of a script on one server, "+
			"set RoutingProxy in the Configs of ratelimit and session", err)
	}
}

// subscribe looks whether SUBSCRIBE is permitted, by which the first level of a cache
// hears what others invalidate. Without it that stays empty.
func (c *checker) subscribe(ctx context.Context, rdb redis.UniversalClient) {
	if c.cfg.NoCache {
		return
	}
	ps := rdb.Subscribe(ctx)
	defer ps.Close()
	if ps.Subscribe(ctx, checkPrefix+"bus") != nil {
		return
	}
	left := c.cfg.Timeout
	if by, ok := ctx.Deadline(); ok {
		left = time.Until(by)
	}
	if _, err := ps.ReceiveTimeout(ctx, max(left, time.Millisecond)); err != nil && isReply(err) {
		c.found(WarnSubscribeRefused, "SUBSCRIBE is refused (%v): a cache's first level hears of no invalidation, and stays empty; "+
			"permit it to the cache's user (docs/acl.md), or set cacheaside.Config.L1Entries to -1", err)
	}
}
