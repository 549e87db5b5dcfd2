package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Lab is a host, which is the namespace that this process is in, and its clients.
type Lab struct {
	Dir     string // of everything that its processes write
	Bin     string // directory of the commands
	Cgroup  string // control group of its unikernels
	Clients *Space
}

// New makes a lab in an empty directory. [Enter] was called before.
func New(dir, bin string) (*Lab, error) {
	clients, err := newSpace()
	if err != nil {
		return nil, err
	}
	return &Lab{Dir: dir, Bin: bin, Cgroup: fmt.Sprintf("fulmar-lab-%d", os.Getpid()), Clients: clients}, nil
}

// Close lets the clients go. Processes are stopped by who started them.
func (l *Lab) Close() error { return l.Clients.close() }

// RunDir is where the host's sockets are.
func (l *Lab) RunDir() string { return filepath.Join(l.Dir, "run") }

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
	log, err := os.CreateTemp(l.Dir, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{cmd: exec.Command(filepath.Join(l.Bin, name), args...), log: log, done: make(chan struct{})}
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

func (p *Process) end(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end process %d: %w", p.Pid(), err)
	}
	<-p.done
	var status *exec.ExitError
	if p.err != nil && (s != syscall.SIGKILL || !errors.As(p.err, &status)) {
		return fmt.Errorf("process %d: %w", p.Pid(), p.err)
	}
	return nil
}

// Up starts all of Fulmar in one process, and gives it when it is up.
func (l *Lab) Up(args ...string) (*Process, error) {
	return l.Start("fulmar", " is up ", append([]string{
		"up", "--data", filepath.Join(l.Dir, "data"), "--run-dir", l.RunDir(), "--cgroup", l.Cgroup, "--host", "lab", "--verbose",
	}, args...)...)
}

// Fulmar runs the command line and gives what it printed.
func (l *Lab) Fulmar(ctx context.Context, args ...string) (string, error) {
	var out, errout bytes.Buffer
	err := l.FulmarTo(ctx, &out, &errout, args...)
	if err != nil {
		err = fmt.Errorf("fulmar %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errout.String()))
	}
	return out.String(), err
}

// FulmarTo runs the command line with its output going elsewhere.
func (l *Lab) FulmarTo(ctx context.Context, out, errout io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(l.Bin, "fulmar"), args...)
	cmd.Stdout, cmd.Stderr = out, errout
	return cmd.Run()
}

// HelloArgs are the arguments with which hello serves a text.
func HelloArgs(text string) []string {
	return []string{"--arg=--ipv4={{.IP}}/{{.PrefixLen}}", "--arg=--ipv4-gateway={{.Gateway}}", "--arg=--hello=" + text}
}
