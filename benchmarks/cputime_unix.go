//go:build unix

package main

import "syscall"

// cpuTime returns the seconds of CPU time this process has used, in user and
// system mode.
func cpuTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
