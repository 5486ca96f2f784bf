package session

import (
	"context"
	_ "embed"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redporch/redporch/internal/roundtrip"
)

var (
	//go:embed save.lua
	saveSource string
	//go:embed change.lua
	changeSource string
	//go:embed index.lua
	indexSource string
	//go:embed heal.lua
	healSource string
	//go:embed revoke.lua
	revokeSource string
	//go:embed swap.lua
	swapSource string

	saveScript   = roundtrip.NewScript(saveSource)
	changeScript = roundtrip.NewScript(changeSource)
	indexScript  = roundtrip.NewScript(indexSource)
	healScript   = roundtrip.NewScript(healSource)
	revokeScript = roundtrip.NewScript(revokeSource)
	swapScript   = roundtrip.NewScript(swapSource)
)

var errReply = errors.New("session: a script answered what it never does")

// errForeign is for a key that holds no hash: somebody else's, in our place.
var errForeign = errors.New("session: what Redis holds at the session's key is not a session")

// Modes of save.lua.
const (
	modeCreate     = "c"
	modeUpdate     = "u"
	modeRegenerate = "r"
	modeAdopt      = "a"
	modeTouch      = "t"
)

// Statuses that save.lua answers with.
const (
	replyGone int64 = iota
	replyDone
	replyThere
	replyConflict
)

// saveArgs are the arguments of save.lua.
type saveArgs struct {
	mode           string
	idle, absolute time.Duration
	maxAge         int64
	restart        bool
	set, expect    []field
	del            []string
}

// saveReply is what save.lua answers.
type saveReply struct {
	status            int64
	created, absolute int64 // as in meta
	ttl               time.Duration
	at                time.Time // of ttl; zero: now
}

func saveCmd(ctx context.Context, key, old string, a *saveArgs) *roundtrip.ScriptCmd {
	keys := []string{key}
	if a.mode == modeRegenerate {
		keys = append(keys, old)
	}
	args := saveScript.Args(keys, 7+2*len(a.set)+2*len(a.expect)+len(a.del))
	restart := ""
	if a.restart {
		restart = "1"
	}
	args = append(args, a.mode, max(a.idle.Milliseconds(), 1), max(a.absolute.Milliseconds(), 1), a.maxAge, restart, len(a.set), len(a.expect))
	args = appendFields(args, a.set)
	args = appendFields(args, a.expect)
	for i := range a.del {
		args = append(args, &a.del[i])
	}
	cmd := saveScript.Of(ctx, args)
	if len(a.expect) > 0 {
		cmd.Once() // a repetition would not find what the first run expected
	}
	return cmd
}

func appendFields(args []any, fields []field) []any {
	for i := range fields {
		args = append(args, &fields[i].name, &fields[i].held)
	}
	return args
}

// runSave runs save.lua, with other commands of the same moment before it. The
// reply is there beside an error for which onMaster is true.
func (st *Store) runSave(ctx context.Context, op, key, old string, a *saveArgs, before ...redis.Cmder) (saveReply, error) {
	cmd := saveCmd(ctx, key, old, a)
	written := st.write(ctx, op, append(before, cmd)...)
	if !onMaster(written) {
		return saveReply{}, written
	}
	n, err := cmd.Int64Slice()
	if err != nil || len(n) == 0 || n[0] == replyDone && len(n) != 4 {
		return saveReply{}, errReply
	}
	r := saveReply{status: n[0]}
	if r.status == replyDone {
		r.created, r.absolute, r.ttl = n[1], n[2], time.Duration(n[3])*time.Millisecond
	}
	return r, written
}

// runChange runs change.lua and reports whether the session was there, also beside
// an error for which onMaster is true.
func (st *Store) runChange(ctx context.Context, op, key string, a *saveArgs) (found bool, err error) {
	cmd := changeScript.Each(ctx, key, 2, func(args []any) []any {
		args = appendFields(append(args, len(a.set), len(a.del)), a.set)
		for i := range a.del {
			args = append(args, &a.del[i])
		}
		return args
	})
	written := st.write(ctx, op, cmd)
	if !onMaster(written) {
		return false, written
	}
	switch n, ok := cmd.Reply(); {
	case !ok:
		return false, errReply
	case n < 0:
		return false, errForeign
	default:
		return n == 1, written
	}
}
