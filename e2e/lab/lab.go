package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	// HostName is the lab's host as Fulmar names it.
	HostName = "lab"
	// Bridge is the bridge of its network.
	Bridge = "fulmar0"
)

// Lab is a host, which is the namespace that this process is in, and its clients. There is one at a time.
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
	return &Lab{Dir: dir, Bin: bin, Cgroup: "fulmar-lab-" + filepath.Base(dir), Clients: clients}, nil
}

// Close ends unikernels that still run and makes the host's namespace as new. Processes are stopped before, by who
// started them.
func (l *Lab) Close() error {
	return errors.Join(l.Reset(), l.Clients.close())
}

// RunDir is where the host's sockets are.
func (l *Lab) RunDir() string { return filepath.Join(l.Dir, "run") }

// Up starts all of Fulmar in one process, and gives it when it is up.
func (l *Lab) Up(args ...string) (*Process, error) {
	return l.Start("fulmar", " is up ", l.UpArgs(args...)...)
}

// UpArgs is the command line with which [Lab.Up] starts fulmar.
func (l *Lab) UpArgs(more ...string) []string {
	return append([]string{
		"up", "--data", filepath.Join(l.Dir, "data"), "--run-dir", l.RunDir(), "--cgroup", l.Cgroup, "--host", HostName, "--verbose",
	}, more...)
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

// Build builds Fulmar's commands into a directory, as many as are named.
func Build(ctx context.Context, dir string, flags []string, commands ...string) error {
	args := append([]string{"build"}, append(flags, "-o", dir+string(os.PathSeparator))...)
	for _, c := range commands {
		args = append(args, "fulmar/cmd/"+c)
	}
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build the commands: %w\n%s", err, out)
	}
	return nil
}

// HelloArgs are the arguments with which hello serves a text.
func HelloArgs(text string) []string {
	return []string{"--arg=--ipv4={{.IP}}/{{.PrefixLen}}", "--arg=--ipv4-gateway={{.Gateway}}", "--arg=--hello=" + text}
}
