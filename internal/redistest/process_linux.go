package redistest

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill the child when the test binary ends, also
// by a panic, a timeout or a signal, where no cleanup runs.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
