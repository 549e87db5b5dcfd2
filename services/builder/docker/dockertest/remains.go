package dockertest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix begins the name of every directory of an engine.
const prefix = "fulmar-docker-"

// removeDead removes what the engines of tests that were killed left behind.
func removeDead() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return fmt.Errorf("look for the remains of engines: %w", err)
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue // it is being made, or being removed
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = removeRemains(dir)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("remove the remains of an engine: %w", err)
		}
	}
	return nil
}

// removeRemains ends what an engine started and outlived it, and removes what it had.
func removeRemains(dir string) error {
	return errors.Join(endAll(dir), removeGroups(filepath.Base(dir)), removeData(dir))
}

// removeGroups ends the commands in the control groups of an engine and removes the groups.
func removeGroups(name string) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + name) // of each controller
	if err != nil {
		return fmt.Errorf("list control groups: %w", err)
	}
	for _, top := range append(tops, "/sys/fs/cgroup/"+name) {
		var groups []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil // what is gone is gone
		})
		if err != nil {
			return fmt.Errorf("list control groups: %w", err)
		}
		slices.Reverse(groups)
		for _, group := range groups {
			if err := removeGroup(group); err != nil {
				return err
			}
		}
	}
	return nil
}

func removeGroup(group string) error {
	members, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list a control group: %w", err)
	}
	for field := range strings.FieldsSeq(string(members)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		if p, err := hold(pid); err == nil {
			if err := p.end(); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a control group: %w", err)
	}
	return nil
}

// removeData unmounts what is mounted below a directory and removes it.
func removeData(dir string) error {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer mounts.Close()
	var below []string
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	slices.Reverse(below)
	for _, path := range below {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return os.RemoveAll(dir)
}

// process is a process that is held fast, so that no other takes its number.
type process struct{ *os.File }

func hold(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{}, err
	}
	return process{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// end kills the process and waits for its end.
func (p process) end() error {
	defer p.Close()
	fd := int(p.Fd())
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("end a process of an engine: %w", err)
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// descendants holds the processes below one.
func descendants(pid int) []process {
	var found []process
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range threads {
		children, err := os.ReadFile(path)
		if err != nil {
			continue // the thread is gone
		}
		for field := range strings.FieldsSeq(string(children)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			if p, err := hold(child); err == nil {
				found = append(found, p)
				found = append(found, descendants(child)...)
			}
		}
	}
	return found
}

// endAll ends the processes that were started for a directory of an engine.
func endAll(dir string) error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, path := range all {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		p, err := hold(pid)
		if err != nil {
			continue // it is gone
		}
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), dir+"/") {
			p.Close()
			continue
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	return nil
}
