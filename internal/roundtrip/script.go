package roundtrip

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Script is a Lua script and its digest. Make it once, at package level.
type Script struct {
	src, sha string
}

// NewScript returns the script with the given source, usually an embedded .lua
// file.
//
// The source is sent whole whenever a server does not know it, so comments and
// indentation are taken out first. A line of the source must therefore not start
// with "--" inside a string.
func NewScript(src string) *Script {
	var b strings.Builder
	for line := range strings.Lines(src) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--") {
			continue
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	src = b.String()
	sum := sha1.Sum([]byte(src))
	return &Script{src: src, sha: hex.EncodeToString(sum[:])}
}

// ScriptCmd is a command that runs a script.
type ScriptCmd struct {
	*redis.Cmd
	scripted
}

// IntsCmd is a command that runs a script whose reply is a list of integers.
type IntsCmd struct {
	*redis.IntSliceCmd
	scripted
}

// scripted is what commands that run scripts have in common.
type scripted struct {
	script *Script
	args   []any // shared with the command, see useSource
	once   bool
}

// runsScript is a ScriptCmd, an IntsCmd or an EachCmd.
type runsScript interface {
	redis.Cmder
	useSource()
}

// Cmd returns the command that runs s on keys with args. On a cluster all keys
// must be in one slot; there must be at least one. keys must not be changed until
// the command has its outcome.
func (s *Script) Cmd(ctx context.Context, keys []string, args ...any) *ScriptCmd {
	return s.Of(ctx, append(s.Args(keys, len(args)), args...))
}

// Of is Cmd for arguments that Args began, which saves a copy of them.
func (s *Script) Of(ctx context.Context, args []any) *ScriptCmd {
	cmd := redis.NewCmd(ctx, args...)
	cmd.SetFirstKeyPos(scriptKey)
	return &ScriptCmd{cmd, scripted{script: s, args: args}}
}

// Ints is Of for a script that returns a list of integers. It takes one allocation
// for all of them.
func (s *Script) Ints(ctx context.Context, args []any) *IntsCmd {
	cmd := redis.NewIntSliceCmd(ctx, args...)
	cmd.SetFirstKeyPos(scriptKey)
	return &IntsCmd{cmd, scripted{script: s, args: args}}
}

// scriptKey is where the first key is among the arguments.
const scriptKey = 3

// Args begins the arguments of a run on keys, with room for n that the caller
// appends. Pointers to strings and numbers need no allocation, and must not be
// changed either until the command has its outcome.
func (s *Script) Args(keys []string, n int) []any {
	args := make([]any, 0, scriptKey+len(keys)+n)
	args = append(args, "evalsha", s.sha, len(keys))
	for i := range keys {
		args = append(args, &keys[i])
	}
	return args
}

// Once marks the command to be executed at most once and returns it: after a
// lost reply it is not sent again, and the call ends with an error for which
// MaybeExecuted is true.
func (c *ScriptCmd) Once() *ScriptCmd {
	c.once = true
	return c
}

// Once is that of ScriptCmd.
func (c *IntsCmd) Once() *IntsCmd {
	c.once = true
	return c
}

// NoRetry tells go-redis, in single calls, pipelines and cluster redirects alike,
// not to send the command again after an ambiguous failure.
func (c *ScriptCmd) NoRetry() bool { return c.once }

// NoRetry is that of ScriptCmd.
func (c *EachCmd) NoRetry() bool { return c.once }

// NoRetry is that of ScriptCmd.
func (c *IntsCmd) NoRetry() bool { return c.once }

// useSource turns EVALSHA into EVAL. The arguments are changed in place: they are
// the same slice that the embedded command writes to the wire.
func (c *scripted) useSource() { c.args[0], c.args[1] = "eval", c.script.src }

// unknownScripts returns the commands that the server did not run since it does
// not have their script, made ready to be sent again with the source.
func unknownScripts(cmds []redis.Cmder) []redis.Cmder {
	var again []redis.Cmder
	for _, cmd := range cmds {
		if isUnknownScript(cmd) {
			cmd.(runsScript).useSource()
			cmd.SetErr(nil)
			again = append(again, cmd)
		}
	}
	return again
}

// isUnknownScript reports whether the server did not run cmd since it does not have
// its script. The error of an unanswered command is nil or from the network; only the
// server's own NOSCRIPT proves that nothing was executed.
func isUnknownScript(cmd redis.Cmder) bool {
	err := cmd.Err()
	if err == nil || !redis.HasErrorPrefix(err, "NOSCRIPT") {
		return false
	}
	_, ok := cmd.(runsScript)
	return ok
}
