package cacheaside

import (
	"context"
	_ "embed"
	"time"

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
	held bool
	busy bool // somebody else refreshes the entry
	gone bool // the entry to refresh has changed
	blob string
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

// granted reads the reply to an acquire or a claim.
func (c *Cache[K, V]) granted(cmd *roundtrip.ScriptCmd) (g grant, err error) {
	switch reply := cmd.Val().(type) {
	case int64:
		switch {
		case reply > 0:
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
	if _, err := c.conn.Run(ctx, "release", c.releaseCmd(ctx, r, lease, "")); err != nil {
		c.report("release", err)
	}
}

// releaseCmd gives a lease back. instead, if not empty, stands in its place for a
// moment.
func (c *Cache[K, V]) releaseCmd(ctx context.Context, r *ref[K], lease, instead string) *roundtrip.ScriptCmd {
	return releaseScript.Cmd(ctx, []string{r.entry}, lease, instead, uncachedFor.Milliseconds())
}
