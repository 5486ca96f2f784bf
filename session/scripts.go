package session

import (
	"context"
	_ "embed"
	"errors"
	"math"
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
	//go:embed leave.lua
	leaveSource string
	//go:embed end.lua
	endSource string
	//go:embed trim.lua
	trimSource string
	//go:embed swap.lua
	swapSource string

	saveScript   = roundtrip.NewScript(saveSource)
	changeScript = roundtrip.NewScript(changeSource)
	indexScript  = roundtrip.NewScript(indexSource)
	healScript   = roundtrip.NewScript(healSource)
	leaveScript  = roundtrip.NewScript(leaveSource)
	endScript    = roundtrip.NewScript(endSource)
	trimScript   = roundtrip.NewScript(trimSource)
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
	modeDivide     = "d"
)

// Statuses that save.lua answers with.
const (
	replyGone int64 = iota
	replyDone
	replyThere
	replyConflict
	replySuperseded
	replyOthers
	replyBond
)

// keepMaxAge leaves a session the MaxAge of its own that it is stored with.
const keepMaxAge = math.MinInt64

// saveArgs are the arguments of save.lua.
type saveArgs struct {
	mode           string
	idle, absolute time.Duration
	maxAge         int64         // or keepMaxAge
	raise          bool          // maxAge raises absolute
	life           time.Duration // the longest that the session can live, for an index
	who            string
	was            string // the user that it was bound to when it was loaded, where who begins with >
	set, expect    []field
	del            []string
	reseal         []resealed
	bond           string // the field e; "" leaves it as it is
	bondWas        string // what it must be, with checkBond
	checkBond      bool
}

// saveReply is what save.lua answers.
type saveReply struct {
	status            int64
	created, absolute int64 // as in meta
	maxAge            int64 // as in meta
	ttl               time.Duration
	at                time.Time // of ttl; zero: now
	user              string    // it was bound to until now, where who asked; of replyOthers: it is bound to
	next              string    // of replySuperseded: the hash of the next key
	bond              string    // of replyBond: the field e
}

func saveCmd(ctx context.Context, key, old string, a *saveArgs) *roundtrip.ScriptCmd {
	keys := []string{key}
	if a.mode == modeRegenerate || a.mode == modeDivide {
		keys = append(keys, old)
	}
	args := saveScript.Args(keys, 11+2*len(a.set)+2*len(a.expect)+3*len(a.reseal)+len(a.del))
	raise := ""
	if a.raise {
		raise = "1"
	}
	args = append(args, a.mode, max(a.idle.Milliseconds(), 1), max(a.absolute.Milliseconds(), 1))
	if a.maxAge == keepMaxAge {
		args = append(args, "keep")
	} else {
		args = append(args, a.maxAge)
	}
	args = append(args, raise, a.who, len(a.set), len(a.expect), len(a.reseal))
	if a.checkBond { // no pointers into a, which would escape, also from runChange's callers
		args = append(args, a.bondWas, a.bond)
	} else {
		args = append(args, "*", a.bond)
	}
	args = appendFields(args, a.set)
	args = appendFields(args, a.expect)
	for i := range a.reseal {
		args = append(args, &a.reseal[i].name, &a.reseal[i].was, &a.reseal[i].held)
	}
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

// runSave runs save.lua, with other commands of the same moment before or after it. The
// reply is there beside an error for which onMaster is true.
func (st *Store) runSave(ctx context.Context, op, key, old string, a *saveArgs, before, after redis.Cmder) (saveReply, error) {
	cmd := saveCmd(ctx, key, old, a)
	var room [3]redis.Cmder
	cmds := room[:0]
	if before != nil {
		cmds = append(cmds, before)
	}
	cmds = append(cmds, cmd)
	if after != nil {
		cmds = append(cmds, after)
	}
	written := st.write(ctx, op, cmds...)
	if !onMaster(written) {
		return saveReply{}, written
	}
	v, err := cmd.Slice()
	if err != nil || len(v) == 0 {
		return saveReply{}, errReply
	}
	var n [5]int64
	for i := range min(len(v), len(n)) {
		n[i], _ = v[i].(int64)
	}
	last, _ := v[len(v)-1].(string)
	r := saveReply{status: n[0]}
	switch {
	case r.status == replyDone && len(v) == 6:
		r.created, r.absolute, r.ttl, r.maxAge, r.user = n[1], n[2], time.Duration(n[3])*time.Millisecond, n[4], last
	case r.status == replyDone:
		return saveReply{}, errReply
	case r.status == replySuperseded:
		r.next = last
	case r.status == replyOthers:
		r.user = last
	case r.status == replyBond:
		r.bond = last
	}
	return r, written
}

// runChange runs change.lua and returns replyDone, replyGone or replySuperseded, also
// beside an error for which onMaster is true.
func (st *Store) runChange(ctx context.Context, op, key string, a *saveArgs) (status int64, err error) {
	cmd := changeScript.Each(ctx, key, 2, func(args []any) []any {
		args = appendFields(append(args, len(a.set), len(a.del)), a.set)
		for i := range a.del {
			args = append(args, &a.del[i])
		}
		return args
	})
	written := st.write(ctx, op, cmd)
	if !onMaster(written) {
		return 0, written
	}
	switch n, ok := cmd.Reply(); {
	case !ok:
		return 0, errReply
	case n < 0:
		return 0, errForeign
	case n == 2:
		return replySuperseded, written
	default:
		return n, written
	}
}
