package cacheaside

import (
	"context"
	_ "embed"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed acquire.lua
	acquireSrc    string
	acquireScript = roundtrip.NewScript(acquireSrc)

	//go:embed claim.lua
	claimSrc    string
	claimScript = roundtrip.NewScript(claimSrc)

	//go:embed fill.lua
	fillSrc    string
	fillScript = roundtrip.NewScript(fillSrc)

	//go:embed release.lua
	releaseSrc    string
	releaseScript = roundtrip.NewScript(releaseSrc)
)

// grant is the outcome of an attempt to become the one who loads a key.
type grant struct {
	held     bool
	busy     bool // somebody else refreshes the entry
	gone     bool // the entry to refresh has changed
	blob     string
	versions []tagVersion // of the key's tags, older than any load that follows
}

// acquire takes the lease of a key, or tells what the key holds. replace, if not
// nil, is an unreadable value to be replaced.
func (c *Cache[K, V]) acquire(ctx context.Context, r *ref[K], lease string, replace *string) (grant, error) {
	return c.ask(ctx, "acquire", r, c.acquireCmd(ctx, r, lease, replace))
}

// claim takes the right to refresh an entry that begins with prefix.
func (c *Cache[K, V]) claim(ctx context.Context, r *ref[K], prefix string, d time.Duration, force bool) (grant, error) {
	return c.ask(ctx, "claim", r, c.claimCmd(ctx, r, prefix, d, force))
}

func (c *Cache[K, V]) acquireCmd(ctx context.Context, r *ref[K], lease string, replace *string) *roundtrip.ScriptCmd {
	flag, bad := 0, ""
	if replace != nil {
		flag, bad = 1, (*replace)[:min(len(*replace), 64)]
	}
	return acquireScript.Cmd(ctx, []string{r.entry}, lease, c.cfg.lease().Milliseconds(), flag, bad)
}

func (c *Cache[K, V]) claimCmd(ctx context.Context, r *ref[K], prefix string, d time.Duration, force bool) *roundtrip.ScriptCmd {
	flag := 0
	if force {
		flag = 1
	}
	return claimScript.Cmd(ctx, []string{r.entry}, prefix, d.Milliseconds(), flag)
}

// ask runs one of these two, and captures the versions of the key's tags in the
// same round trip.
func (c *Cache[K, V]) ask(ctx context.Context, op string, r *ref[K], cmd *roundtrip.ScriptCmd) (g grant, err error) {
	cmds := make([]redis.Cmder, 1, 1+len(r.tags))
	cmds[0] = cmd
	captures := make([]*roundtrip.ScriptCmd, len(r.tags))
	for i, tag := range r.tags {
		captures[i] = c.captureTag(ctx, tag)
		cmds = append(cmds, captures[i])
	}
	sent := time.Now()
	if err := c.conn.Do(ctx, op, cmds...); err != nil {
		return g, err
	}
	g, err = c.granted(cmd, sent)
	g.versions = captured(r.tags, captures)
	return g, err
}

// granted reads the reply to an acquire or a claim.
func (c *Cache[K, V]) granted(cmd *roundtrip.ScriptCmd, sent time.Time) (g grant, err error) {
	switch reply := cmd.Val().(type) {
	case int64:
		switch {
		case reply > 0:
			c.clock.learn(reply, sent)
			g.held = true
		case reply == 0:
			g.busy = true
		default:
			g.gone = true
		}
	case string:
		g.blob = reply
	default:
		err = errReply
	}
	return g, err
}

// fill stores e if what begins with expected still stands.
func (c *Cache[K, V]) fill(ctx context.Context, r *ref[K], expected string, e *entry) (accepted bool, err error) {
	cmd, err := c.conn.Run(ctx, "fill", c.fillCmd(ctx, r, expected, e))
	if err != nil {
		return false, err
	}
	n, _ := cmd.Int()
	return n > 0, nil
}

func (c *Cache[K, V]) fillCmd(ctx context.Context, r *ref[K], expected string, e *entry) *roundtrip.ScriptCmd {
	blob := appendEntry(make([]byte, 0, offRest+9+tagSize*len(e.tags)+len(e.payload)+sumSize), r.entry, e)
	return fillScript.Cmd(ctx, []string{r.entry}, expected, bytesToString(blob), c.keepFor(e).Milliseconds())
}

// keepFor is how long Redis keeps an entry. A negative answer is not served
// stale.
func (c *Cache[K, V]) keepFor(e *entry) time.Duration {
	if e.kind == kindNegative {
		return max(milliseconds(e.fresh), time.Millisecond)
	}
	return c.cfg.keep(milliseconds(e.fresh))
}

// release gives a lease back. Should it fail, the lease ends by itself.
func (c *Cache[K, V]) release(ctx context.Context, r *ref[K], lease string) {
	if _, err := c.conn.Run(ctx, "release", releaseScript.Cmd(ctx, []string{r.entry}, lease)); err != nil {
		c.report("release", err)
	}
}
