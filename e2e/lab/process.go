package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bound is for what takes a process a second at most, and much longer where many compile at the same time.
const bound = time.Minute

// Process is a program that runs in the lab.
type Process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
	err  error
}

// Start starts one of Fulmar's commands with its output in a file of its own, and waits until a line of its output
// has a text in it; no text waits for nothing.
func (l *Lab) Start(name, until string, args ...string) (*Process, error) {
	return l.start(name, until, exec.Command(filepath.Join(l.Bin, name), args...))
}

// StartIn is Start in a mount namespace of the process's own, after a shell script prepared it there.
func (l *Lab) StartIn(prepare, name, until string, args ...string) (*Process, error) {
	script := "set -e; " + prepare + `; exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", filepath.Join(l.Bin, name)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes its mounts private
	return l.start(name, until, cmd)
}

func (l *Lab) start(name, until string, cmd *exec.Cmd) (*Process, error) {
	log, err := os.CreateTemp(l.Dir, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = in, in
	err = p.cmd.Start()
	_ = in.Close() // the child has its own
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	seen := make(chan struct{})
	go p.copyLog(out, until, seen)
	if until == "" {
		return p, nil
	}
	select {
	case <-seen:
		return p, nil
	case <-time.After(bound):
		return nil, p.stuck("start")
	case <-p.done:
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%s ended at once: %w\n%s", name, p.err, text)
	}
}

// copyLog writes what the process prints to its file, tells when the text was seen, and reaps it at the end.
func (p *Process) copyLog(out io.ReadCloser, until string, seen chan<- struct{}) {
	defer close(p.done)
	defer p.log.Close()
	defer out.Close()
	var once sync.Once
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		_, _ = p.log.WriteString(line) // a log that cannot be written shows as an empty one
		if until != "" && strings.Contains(line, until) {
			once.Do(func() { close(seen) })
		}
		if err != nil {
			break
		}
	}
	p.err = p.cmd.Wait()
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is the name of the file with what it printed.
func (p *Process) Log() string { return p.log.Name() }

// Stop asks the process to end and waits until it has.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

// Kill kills the process and waits until it is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// stuck ends a process that did not do what it should in time, so that the stacks of all its goroutines stand in its log, and
// gives them.
func (p *Process) stuck(what string) error {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("process %d did not %s within %s: %w", p.Pid(), what, bound, err)
	}
	select {
	case <-p.done:
	case <-time.After(bound): // somebody else holds its output open
	}
	text, _ := os.ReadFile(p.log.Name())
	return fmt.Errorf("process %d did not %s within %s:\n%s", p.Pid(), what, bound, text)
}

func (p *Process) end(s syscall.Signal) error {
	select {
	case <-p.done: // it is stopped twice, by a test and by its cleanup
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end process %d: %w", p.Pid(), err)
	}
	select {
	case <-p.done:
	case <-time.After(bound):
		return p.stuck("end")
	}
	var status *exec.ExitError
	if p.err != nil && (s != syscall.SIGKILL || !errors.As(p.err, &status)) {
		return fmt.Errorf("process %d: %w", p.Pid(), p.err)
	}
	return nil
}
