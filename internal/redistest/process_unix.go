//go:build unix

package redistest

import "syscall"

func (p *process) pause() error  { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

func (p *process) terminate() error {
	p.resume() // a stopped process sees no SIGTERM
	return p.cmd.Process.Signal(syscall.SIGTERM)
}
