package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// How is how a process is started.
type How struct {
	Prefix []string   // a program with arguments that starts it, as setpriv does
	Env    []string   // variables added to the environment
	Files  []*os.File // that it inherits, from descriptor 3 on
}

// StartAs is [Lab.Start] in another way.
func (l *Lab) StartAs(how How, name, until string, args ...string) (*Process, error) {
	line := slices.Concat(how.Prefix, []string{filepath.Join(l.Bin, name)}, args)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env, cmd.ExtraFiles = append(cmd.Environ(), how.Env...), how.Files
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
