package ratelimit

import (
	_ "embed"
	"strings"
)

// Each state is read by one text, which every script contains that reads it: the same
// bytes are a state to all of them, or to none.
var (
	//go:embed fixedwindow.lua
	fixedWindowSource string
	//go:embed slidingwindow.lua
	slidingWindowSource string
	//go:embed tokenbucket.lua
	tokenBucketSource string
)

// withParts puts the parts into a script where it names them.
func withParts(src string) string {
	return strings.NewReplacer(
		"--> fixedwindow.lua\n", fixedWindowSource,
		"--> slidingwindow.lua\n", slidingWindowSource,
		"--> tokenbucket.lua\n", tokenBucketSource,
	).Replace(src)
}
