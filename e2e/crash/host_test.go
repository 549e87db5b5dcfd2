package crash_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"fulmar/e2e/lab"
)

// happening is a change of a directory that the host makes in the middle of a command.
type happening struct {
	name    string
	command string
	dir     func(*world) string
	mask    uint32
	image   bool // it takes an image that the host has not yet
}

func happenings() []happening {
	state := func(sub string) func(*world) string {
		return func(w *world) string { return filepath.Join(w.StateDir(), sub) }
	}
	fifo := func(w *world) string { return filepath.Join(w.RunDir(), "fifo") }
	group := func(w *world) string { return w.groupDir() }
	return []happening{
		{"the image is written", "create", state("images"), unix.IN_MOVED_TO, true},
		{"the record is written", "create", state("unikernels"), unix.IN_MOVED_TO, false},
		{"the console is made", "create", fifo, unix.IN_CREATE, false},
		{"the control group is made", "create", group, unix.IN_CREATE, false},
		{"the process is written down", "create", state("processes"), unix.IN_MOVED_TO, false},
		{"the record is removed", "destroy", state("unikernels"), unix.IN_DELETE, false},
		{"the process is forgotten", "destroy", state("processes"), unix.IN_DELETE, false},
		{"the console is removed", "destroy", fifo, unix.IN_DELETE, false},
		{"the control group is removed", "destroy", group, unix.IN_DELETE, false},
	}
}

// groupDir is the directory of the unikernels' control groups: of any controller, as they are made together.
func (w *world) groupDir() string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"} {
		dir := filepath.Join(mount, w.Cgroup)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
	}
	return "no control group of " + w.Cgroup
}

// watch gives a function that waits until a name with a text in it appears in a directory, or disappears from it.
func watch(dir, text string, mask uint32) (await func(context.Context) error, err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), f.Close())
	}
	return func(ctx context.Context) error {
		defer f.Close()
		defer context.AfterFunc(ctx, func() { _ = f.Close() })()
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return fmt.Errorf("watch %s for %s: %w", dir, text, err)
			}
			if bytes.Contains(buf[:n], []byte(text)) { // names stand in it as they are
				return nil
			}
		}
	}, nil
}

// hostDies gives the faults that the host is killed in the middle of a command for the unit web.
func (l *life) hostDies(h happening) map[phase]func() fault {
	faults := map[phase]func() fault{}
	phases := comes
	if h.command == "destroy" {
		phases = goes
	}
	for _, ph := range phases {
		faults[ph] = func() fault {
			unit := "web"
			if h.image {
				unit = "aux" // the first that has it
			}
			trap := l.daemons["vmm"].Trap(lab.Before, commands(h.command, unit)(l.stack))
			return fault{trap, func(ctx context.Context) error {
				text := l.stack + "." + unit + "."
				if h.image {
					text = "" // nobody else stores one
				}
				await, err := watch(h.dir(l.world), text, h.mask)
				if err != nil {
					return err
				}
				trap.Pass()
				return errors.Join(await(ctx), l.members["host"].kill())
			}}
		}
	}
	return faults
}

func TestHostKilledInEachCommand(t *testing.T) {
	w := newWorld(t, 1)
	var all []testLife
	for _, p := range points() {
		if !p.host {
			continue
		}
		for _, when := range []lab.When{lab.Before, lab.After} {
			all = append(all, testLife{fmt.Sprintf("%s %s", when, p.name), func(l *life) {
				l.mayFail = true
				l.through(l.at(p, "", when, func(context.Context) error { return l.members["host"].kill() }))
			}})
		}
	}
	for _, h := range happenings() {
		all = append(all, testLife{"when " + h.name, func(l *life) {
			l.mayFail = true
			faults := l.hostDies(h)
			if h.image {
				l.ownImage()
				delete(faults, update)
			}
			l.through(faults)
		}})
	}
	w.lives(all)
}
