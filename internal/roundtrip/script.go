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
	script *Script
	args   []any // shared with Cmd, see useSource
	once   bool
}

// Cmd returns the command that runs s on keys with args. On a cluster all keys
// must be in one slot; there must be at least one.
func (s *Script) Cmd(ctx context.Context, keys []string, args ...any) *ScriptCmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.sha, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	all = append(all, args...)
	cmd := redis.NewCmd(ctx, all...)
	cmd.SetFirstKeyPos(3)
	return &ScriptCmd{Cmd: cmd, script: s, args: all}
}

// Once marks the command to be executed at most once and returns it: after a
// lost reply it is not sent again, and the call ends with an error for which
// MaybeExecuted is true.
func (c *ScriptCmd) Once() *ScriptCmd {
	c.once = true
	return c
}

// NoRetry tells go-redis, in single calls, pipelines and cluster redirects alike,
// not to send the command again after an ambiguous failure.
func (c *ScriptCmd) NoRetry() bool { return c.once }

// useSource turns EVALSHA into EVAL. The arguments are changed in place: they are
// the same slice that the embedded command writes to the wire.
func (c *ScriptCmd) useSource() {
	c.args[0], c.args[1] = "eval", c.script.src
	c.SetErr(nil)
}

// unknownScripts returns the commands that the server did not run since it does
// not have their script, made ready to be sent again with the source.
func unknownScripts(cmds []redis.Cmder) []redis.Cmder {
	var again []redis.Cmder
	for _, cmd := range cmds {
		// The error of an unanswered command is nil or from the network; only
		// the server's own NOSCRIPT proves that nothing was executed.
		if sc, ok := cmd.(*ScriptCmd); ok && sc.Err() != nil && redis.HasErrorPrefix(sc.Err(), "NOSCRIPT") {
			sc.useSource()
			again = append(again, sc)
		}
	}
	return again
}
