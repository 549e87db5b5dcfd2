package lab

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// StartAs is [Lab.Start] of a command that another program starts, as setpriv does, with variables added to its
// environment.
func (l *Lab) StartAs(prefix, env []string, name, until string, args ...string) (*Process, error) {
	line := append(append([]string{}, prefix...), append([]string{filepath.Join(l.Bin, name)}, args...)...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(cmd.Environ(), env...)
	return l.start(name, until, cmd)
}

// Ended is closed when the process is gone.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Freeze stops the process where it is, and returns when none of its threads runs any more.
func (p *Process) Freeze() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze process %d: %w", p.Pid(), err)
	}
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.Pid(), &info, unix.WSTOPPED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("freeze process %d: %w", p.Pid(), err)
		}
		return nil
	}
}

// Thaw lets a frozen process run on.
func (p *Process) Thaw() error {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("thaw process %d: %w", p.Pid(), err)
	}
	return nil
}
