package redistest

import (
	"os"
	"os/exec"
	"runtime"
	"time"
)

// process is a child process that somebody waits for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the process is gone
}

// startProcess starts cmd with its output appended to the file log.
func startProcess(cmd *exec.Cmd, log string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	dieWithParent(cmd)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent of Linux' parent-death signal is the thread that forked:
		// keep it, and let nobody else end it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // how it ended is in its log
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it is gone
	<-p.done
}

func (p *process) stop() {
	if p.exited() {
		return
	}
	if p.terminate() == nil {
		select {
		case <-p.done:
			return
		case <-time.After(2 * time.Second):
		}
	}
	p.kill()
}
