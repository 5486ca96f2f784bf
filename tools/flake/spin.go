package main

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
)

// command returns a go command that an end of ctx interrupts.
func (c *config) command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = c.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd
}

// spins counts rounds of the busy loops.
var spins atomic.Int64

// spin runs n busy loops until stop is called, which returns when they have ended.
// This process gets one core more than the loops take, so that it still reads what
// the tests say.
func spin(n int) (stop func()) {
	before := runtime.GOMAXPROCS(n + 1)
	var ended atomic.Bool
	var loops sync.WaitGroup
	for range n {
		loops.Go(func() {
			for rounds := int64(0); !ended.Load(); rounds++ {
				if rounds%1024 == 0 { // seldom: the loops must not wait for each other
					spins.Add(1024)
				}
			}
		})
	}
	return func() {
		ended.Store(true)
		loops.Wait()
		runtime.GOMAXPROCS(before)
	}
}
