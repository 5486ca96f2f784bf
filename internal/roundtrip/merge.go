package roundtrip

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// EachCmd runs a script on one key. The script takes any number of keys, each with
// arguments of its own, and answers each with an integer: so calls that share a flight
// to a single server run it once for all of them, in half of the server's time. On a
// cluster, where keys of different slots can't meet, every call has its own run.
type EachCmd struct {
	redis.IntSliceCmd
	scripted
	key    string
	merged bool
	reply  int64  // of a merged run
	room   [8]any // for few arguments, in the same allocation
}

// maxMerged bounds the keys of one run, so that Redis serves others in between.
const maxMerged = 64

// eachKey is where an EachCmd's key is among its arguments; those of the key follow.
const eachKey = scriptKey

// Each returns the command that runs s on key with the arguments that add appends.
// Pointers are as for Args.
func (s *Script) Each(ctx context.Context, key string, add func(args []any) []any) *EachCmd {
	c := &EachCmd{key: key}
	args := add(append(c.room[:0], "evalsha", s.sha, 1, &c.key))
	c.scripted = scripted{script: s, args: args}
	c.IntSliceCmd = *redis.NewIntSliceCmd(ctx, args...)
	c.SetFirstKeyPos(scriptKey)
	return c
}

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

// merger puts EachCmds of one script together, and hands out the replies.
type merger struct {
	each []*EachCmd
	runs []*IntsCmd
}

// merge takes the commands of a flight apart: rest is to be sent with what run adds.
// Only calls of a single command take part, since those of one call keep their order.
func (m *merger) merge(calls []passenger, rest []redis.Cmder) []redis.Cmder {
	for i := range calls {
		if calls[i].left {
			continue
		}
		if e, ok := calls[i].cmds[0].(*EachCmd); ok && len(calls[i].cmds) == 1 && (m.each == nil || e.script == m.each[0].script) {
			m.each = append(m.each, e)
			continue
		}
		rest = append(rest, calls[i].cmds...)
	}
	if len(m.each) == 1 {
		rest = append(rest, m.each[0])
		m.each = nil
	}
	for from := 0; from < len(m.each); from += maxMerged {
		part := m.each[from:min(from+maxMerged, len(m.each))]
		n := 0
		for _, e := range part {
			n += len(e.args) - eachKey
		}
		args := make([]any, 0, scriptKey+n)
		args = append(args, part[0].args[0], part[0].args[1], len(part))
		for _, e := range part {
			args = append(args, e.args[eachKey])
		}
		for _, e := range part {
			args = append(args, e.args[eachKey+1:]...)
		}
		run := part[0].script.Ints(context.Background(), args)
		m.runs = append(m.runs, run)
		rest = append(rest, run)
	}
	return rest
}

// settle gives every merged command its outcome.
func (m *merger) settle() {
	for i, e := range m.each {
		run := m.runs[i/maxMerged]
		err := run.Err()
		if v := run.Val(); err == nil && i%maxMerged < len(v) {
			e.merged, e.reply = true, v[i%maxMerged]
		}
		e.SetErr(err)
	}
}
