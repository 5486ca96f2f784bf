package roundtrip

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

// EachCmd runs a script on one key. The script takes any number of keys, each with as
// many arguments of its own as the others, and answers each with an integer, or all with
// one: so calls that share a flight to a single server run it once for all of them, in
// half of the server's time. On a cluster, where keys of different slots can't meet, every
// call has its own run.
type EachCmd struct {
	redis.IntSliceCmd
	scripted
	key    string
	shared int // how many of the arguments are the same for all keys of a run
	merged bool
	reply  int64  // of a merged run
	room   [8]any // for few arguments, in the same allocation
}

// maxMerged bounds the keys of one run, so that Redis serves others in between.
const maxMerged = 64

// eachKey is where an EachCmd's key is among its arguments; then follow those that all
// keys of a run share, and those of the key.
const eachKey = scriptKey

// Each returns the command that runs s on key with the arguments that add appends.
// Pointers are as for Args. Calls run together if the first shared arguments of both,
// which must be numbers or strings, are equal; they are sent once, before those of the
// keys.
func (s *Script) Each(ctx context.Context, key string, shared int, add func(args []any) []any) *EachCmd {
	c := &EachCmd{key: key, shared: shared}
	args := add(append(c.room[:0], "evalsha", s.sha, 1, &c.key))
	c.scripted = scripted{script: s, args: args}
	c.IntSliceCmd = *redis.NewIntSliceCmd(ctx, args...)
	c.SetFirstKeyPos(scriptKey)
	return c
}

// common returns the arguments that all keys of a run share.
func (c *EachCmd) common() []any { return c.args[eachKey+1 : eachKey+1+c.shared] }

// own returns the arguments of the key.
func (c *EachCmd) own() []any { return c.args[eachKey+1+c.shared:] }

// Reply returns what the script answered for the key; ok is false if it did not. It may
// be called only after a call that returned nil.
func (c *EachCmd) Reply() (n int64, ok bool) {
	if c.merged {
		return c.reply, true
	}
	if v := c.Val(); len(v) == 1 {
		return v[0], true
	}
	return 0, false
}

// merger puts EachCmds together that can share a run, and hands out the replies.
type merger struct{ groups []group }

// group are EachCmds of one script with the same shared arguments.
type group struct {
	each []*EachCmd
	runs []*IntsCmd // for each maxMerged of them; nil: the one of them goes by itself
}

// maxGroups bounds the search for a command's group. Others go by themselves.
const maxGroups = 8

// merge takes the commands of a flight apart and returns what is to be sent, appended
// to rest. Only calls of a single command take part, since those of one call keep their
// order.
func (m *merger) merge(calls []passenger, rest []redis.Cmder) []redis.Cmder {
	for i := range calls {
		if calls[i].left {
			continue
		}
		if e, ok := calls[i].cmds[0].(*EachCmd); !ok || len(calls[i].cmds) > 1 || !m.add(e) {
			rest = append(rest, calls[i].cmds...)
		}
	}
	for i := range m.groups {
		g := &m.groups[i]
		if len(g.each) == 1 {
			rest = append(rest, g.each[0])
			continue
		}
		for part := range slices.Chunk(g.each, maxMerged) {
			first := part[0]
			own := len(first.own())
			args := make([]any, 0, scriptKey+first.shared+len(part)*(1+own))
			args = append(args, first.args[0], first.args[1], len(part))
			for _, e := range part {
				args = append(args, e.args[eachKey])
			}
			args = append(args, first.common()...)
			for _, e := range part {
				args = append(args, e.own()...)
			}
			run := first.script.Ints(context.Background(), args)
			g.runs = append(g.runs, run)
			rest = append(rest, run)
		}
	}
	return rest
}

// add puts a command into its group, and reports false if there is no room for one.
func (m *merger) add(e *EachCmd) bool {
	for i := range m.groups {
		g := &m.groups[i]
		if first := g.each[0]; first.script == e.script && slices.Equal(first.common(), e.common()) {
			g.each = append(g.each, e)
			return true
		}
	}
	if len(m.groups) == maxGroups {
		return false
	}
	m.groups = append(m.groups, group{each: []*EachCmd{e}})
	return true
}

// apart returns the commands, each by itself, of runs that were refused since their keys
// are in different slots. Nothing of them was carried out.
func (m *merger) apart() (again []redis.Cmder) {
	for _, g := range m.groups {
		for at, run := range g.runs {
			if run.Err() == nil || !redis.HasErrorPrefix(run.Err(), "CROSSSLOT") {
				continue
			}
			g.runs[at] = nil
			for _, e := range g.each[at*maxMerged : min((at+1)*maxMerged, len(g.each))] {
				again = append(again, e)
			}
		}
	}
	return again
}

// settle gives every merged command its outcome.
func (m *merger) settle() {
	for _, g := range m.groups {
		if g.runs == nil {
			continue
		}
		for i, e := range g.each {
			run := g.runs[i/maxMerged]
			if run == nil {
				continue // it has its own outcome
			}
			err := run.Err()
			switch v, at := run.Val(), i%maxMerged; {
			case err != nil:
			case at < len(v):
				e.merged, e.reply = true, v[at]
			case len(v) == 1:
				e.merged, e.reply = true, v[0]
			}
			e.SetErr(err)
		}
	}
}
