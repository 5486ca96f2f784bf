//go:build !linux

package roundtrip

const canYield = false

func yield() {}
