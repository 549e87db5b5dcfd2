package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fulmar/solo5"
)

// memoryOverhead is what a unikernel's process may use beyond its guest's memory: page tables, stack, pipe and socket buffers.
const memoryOverhead = 8 << 20

// bounds is what a control group lets its process use.
type bounds struct {
	memory  int64 // bytes
	threads int
}

// boundsOf is what the process of a guest of so many MB may use. That of a virtual machine is a Go program with some threads.
func boundsOf(target solo5.Target, memoryMB int) bounds {
	b := bounds{memory: int64(memoryMB)<<20 + memoryOverhead, threads: 1}
	if target == solo5.HVT {
		b.memory += 32 << 20
		b.threads = 32
	}
	return b
}

// cgroups is the parent of the instances' control groups: one directory on a unified (v2) mount, one a controller on v1.
//
// A process must be inside before it runs, and fast: writing another's pid to cgroup.procs can wait 8 ms for an RCU grace period.
// So on v2 the process is cloned into its group, and on v1 the forking thread goes in and out again (a thread that moves itself waits for nothing).
type cgroups struct {
	unified     bool
	parent      string // below the root of control groups
	hierarchies []hierarchy
}

// hierarchy is one mount with the parent group that is ours.
type hierarchy struct {
	dir    string // of the parent group
	origin string // v1: the tasks file of the group that this program is in
}

// openCgroups makes the group parent on the mounts that are there. What a machine lacks is named in missing, and goes unlimited.
func openCgroups(m mounts, parent string) (c *cgroups, missing []string) {
	if m.unified != "" {
		return openUnified(m.unified, parent)
	}
	c = &cgroups{parent: parent}
	for controller, mount := range m.controllers {
		h := hierarchy{dir: filepath.Join(mount, parent)}
		var err error
		if h.origin, err = origin(mount, controller); err == nil {
			err = os.MkdirAll(h.dir, 0o755)
		}
		if err != nil {
			missing = append(missing, controller+": "+cause(err).Error())
			continue
		}
		c.hierarchies = append(c.hierarchies, h)
	}
	for _, controller := range controllers() {
		if m.controllers[controller] == "" {
			missing = append(missing, controller+": it is not mounted and could not be")
		}
	}
	return c, missing
}

// openUnified is openCgroups on a v2 mount: the controllers are handed down from the root to the parent.
func openUnified(root, parent string) (c *cgroups, missing []string) {
	dir := filepath.Join(root, parent)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &cgroups{parent: parent}, []string{cause(err).Error()}
	}
	path := root
	for _, next := range append(strings.Split(filepath.Clean(parent), "/"), "") {
		for _, controller := range controllers() {
			if err := writeFile(filepath.Join(path, "cgroup.subtree_control"), "+"+controller); err != nil && path == dir {
				missing = append(missing, controller+": "+cause(err).Error())
			}
		}
		path = filepath.Join(path, next)
	}
	return &cgroups{unified: true, parent: parent, hierarchies: []hierarchy{{dir: dir}}}, missing
}

// origin finds the tasks file of the group that this program is in.
func origin(mount, controller string) (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("read own control groups: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] != controller {
			continue
		}
		tasks := filepath.Join(mount, parts[2], "tasks")
		if _, err := os.Stat(tasks); err != nil {
			return "", fmt.Errorf("find own control group: %w", cause(err))
		}
		return tasks, nil
	}
	return "", errors.New("no such controller")
}

// parents gives the directories of the parent group.
func (c *cgroups) parents() []string {
	var dirs []string
	for _, h := range c.hierarchies {
		dirs = append(dirs, h.dir)
	}
	return dirs
}

// close removes the parent group unless unikernels run on in it.
func (c *cgroups) close() {
	for _, h := range c.hierarchies {
		_ = os.Remove(h.dir) // it is busy, then
	}
}

// group is the control group of one instance.
type group struct {
	c       *cgroups
	name    string
	threads int // that its process may have
}

// create makes the group name with its bounds.
func (c *cgroups) create(name string, b bounds) (*group, error) {
	g := &group{c: c, name: name, threads: b.threads}
	if err := g.make(); err != nil {
		return nil, err
	}
	limit := strconv.FormatInt(b.memory, 10)
	for _, h := range c.hierarchies {
		dir := filepath.Join(h.dir, name)
		for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
			if err := writeFile(filepath.Join(dir, file), limit); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, errors.Join(fmt.Errorf("limit the memory of control group %s: %w", g.path(), cause(err)), g.remove(context.Background()))
			}
		}
	}
	return g, nil
}

// start starts cmd inside the group, in which it may then make no other process, nor more threads than are its bound.
func (g *group) start(cmd *exec.Cmd) error {
	startIn := g.startByThread
	if g.c.unified {
		startIn = g.startByFD
	}
	if err := startIn(cmd); err != nil {
		return err
	}
	for _, h := range g.c.hierarchies {
		if err := writeFile(filepath.Join(h.dir, g.name, "pids.max"), strconv.Itoa(g.threads)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("limit the processes of control group %s: %w", g.path(), cause(err)), cmd.Process.Kill(), cmd.Wait())
		}
	}
	return nil
}

// startByFD clones the process into its group.
func (g *group) startByFD(cmd *exec.Cmd) error {
	dir, err := os.Open(filepath.Join(g.c.hierarchies[0].dir, g.name))
	if err != nil {
		return fmt.Errorf("open control group %s: %w", g.path(), cause(err))
	}
	defer func() { _ = dir.Close() }()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return cmd.Start()
}

// startByThread forks from a thread that is inside. Should the thread not come out again, it is given up with its goroutine's lock.
func (g *group) startByThread(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	var err error
	for _, h := range g.c.hierarchies {
		if err = writeFile(filepath.Join(h.dir, g.name, "tasks"), "0"); err != nil {
			err = fmt.Errorf("enter control group %s: %w", g.path(), cause(err))
			break
		}
	}
	if err == nil {
		err = cmd.Start()
	}
	for _, h := range g.c.hierarchies {
		if oerr := writeFile(h.origin, "0"); oerr != nil {
			return errors.Join(err, fmt.Errorf("leave control group %s: %w", g.path(), cause(oerr)))
		}
	}
	runtime.UnlockOSThread()
	return err
}

// kill ends every process of the group, whoever started it.
func (g *group) kill() error {
	for _, h := range g.c.hierarchies {
		dir := filepath.Join(h.dir, g.name)
		if err := writeFile(filepath.Join(dir, "cgroup.kill"), "1"); err == nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list the processes of control group %s: %w", g.path(), cause(err))
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("parse pid of control group %s: %w", g.path(), err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of control group %s: %w", pid, g.path(), err)
			}
		}
	}
	return nil
}

// removeTime bounds how long a group may take to become empty once its process has ended.
const removeTime = 5 * time.Second

// remove removes the group once it is empty; the kernel sends no event for that on v1, so it is asked every millisecond.
func (g *group) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, h := range g.c.hierarchies {
		for {
			err := os.Remove(filepath.Join(h.dir, g.name))
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove control group %s: %w", g.path(), cause(err))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("remove control group %s: %w", g.path(), cause(err))
			}
		}
	}
	return nil
}

// writeFile writes to a file of the control group file system, which is never created or truncated.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
