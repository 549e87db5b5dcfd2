package solo5

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstExtra is the number in a child of the first of [exec.Cmd.ExtraFiles].
const firstExtra = 3

// Exec makes the calling process the guest. It returns only if that is not
// possible, with the error; what goes wrong after that, such as too little
// memory, is one line on standard error and exit status 1.
func (t *Tender) Exec() error {
	files, err := t.begin(nil, func(_ int, f *os.File) int { return int(f.Fd()) })
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("hand over %s: %w", f.Name(), err)
		}
	}
	if err := os.Chdir("/"); err != nil { // keep no directory busy
		return err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", files[0].Fd())
	return fmt.Errorf("run the unikernel: %w", syscall.Exec(path, t.plan.args, nil))
}

// Command returns the command that starts the guest as a child. Its standard
// output is the console, its standard error gets at most one line, before the
// guest runs. Stdout, Stderr and SysProcAttr are the caller's to set; a
// Credential works, and the child keeps nothing of its parent: no environment,
// no open file, no directory, no capability and, if the parent could drop them,
// no groups.
//
// Close the Tender after Start.
func (t *Tender) Command() (*exec.Cmd, error) {
	return t.command(nil)
}

// GatedCommand is Command with a gate: once started, the child waits at it,
// and has used no memory of the guest's yet. Between Start and [Gate.Open] the
// process can be put into a cgroup, bound to CPUs and written down.
func (t *Tender) GatedCommand() (*exec.Cmd, *Gate, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make gate: %w", err)
	}
	t.made = append(t.made, r)
	cmd, err := t.command(r)
	if err != nil {
		return nil, nil, errors.Join(err, w.Close())
	}
	return cmd, &Gate{w: w}, nil
}

// A Gate holds a child back. If it is closed, or its process dies, before it was
// opened, the child exits with status 1 and the guest never runs.
type Gate struct {
	w *os.File
}

// Open lets the guest run, and closes the gate.
func (g *Gate) Open() error {
	_, err := g.w.Write([]byte{1})
	if err := errors.Join(err, g.w.Close()); err != nil {
		return fmt.Errorf("open gate: %w", err)
	}
	return nil
}

// Close gives the child up, unless the gate was opened.
func (g *Gate) Close() error {
	if err := g.w.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close gate: %w", err)
	}
	return nil
}

func (t *Tender) command(gate *os.File) (*exec.Cmd, error) {
	files, err := t.begin(gate, func(n int, _ *os.File) int { return firstExtra + n })
	if err != nil {
		return nil, err
	}
	return &exec.Cmd{
		Path:       fmt.Sprintf("/proc/self/fd/%d", firstExtra), // in the child, whoever it runs as
		Args:       t.plan.args,
		Env:        []string{},
		Dir:        "/",
		ExtraFiles: files,
	}, nil
}

// begin returns the files that the process needs, the trampoline first, which
// knows them by the numbers that number gives them.
func (t *Tender) begin(gate *os.File, number func(int, *os.File) int) ([]*os.File, error) {
	trampoline, err := newMemory("fulmar-"+t.plan.image.Target.String(), mfdExec)
	if err != nil {
		return nil, err
	}
	t.made = append(t.made, trampoline)
	var files []*os.File
	hand := func(f *os.File) int {
		if f == nil {
			return -1
		}
		files = append(files, f)
		return number(len(files)-1, f)
	}
	p := t.plan
	p.fds = descriptors{
		trampoline: hand(trampoline), image: hand(t.image),
		epoll: hand(t.epoll), timer: hand(t.timer), program: hand(t.program), kvm: hand(t.kvm),
	}
	p.attached = maps.Clone(p.attached)
	for _, h := range slices.Sorted(maps.Keys(p.attached)) {
		a := p.attached[h]
		a.FD = hand(t.devices[h])
		p.attached[h] = a
	}
	p.fds.gate = hand(gate)

	contents, err := t.compile(p)
	if err != nil {
		return nil, err
	}
	if _, err := trampoline.Write(contents); err != nil {
		return nil, fmt.Errorf("write trampoline: %w", err)
	}
	return files, seal(trampoline)
}
