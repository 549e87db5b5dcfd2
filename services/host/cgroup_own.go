package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"fulmar/albatross"
)

// groupMode has the mark of a group that host made: the sticky bit, which means nothing on a control group and which nobody else gives one.
// It is there from the moment the group is, on v1 as on v2, and stays when host's state is lost.
const groupMode = fs.ModeSticky | 0o755

// checkParent refuses what names no group below the root of control groups.
func checkParent(parent string) error {
	if !filepath.IsLocal(parent) || filepath.Clean(parent) != parent || parent == "." {
		return fmt.Errorf("the control group of unikernels cannot be %q: --cgroup names one below /sys/fs/cgroup that is theirs alone, such as fulmar", parent)
	}
	return nil
}

// checkAlone refuses a parent group in which there is anything that no host can have put there.
func checkAlone(m mounts, parent string) error {
	for _, mount := range m.all() {
		dir := filepath.Join(mount, parent)
		children, err := childrenOf(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look into control group %s: %w", parent, cause(err))
		}
		for _, name := range children {
			if !mayBeGroup(name) {
				return fmt.Errorf("the control group %s holds %s, which is no unikernel: --cgroup names one that is theirs alone, such as fulmar", parent, name)
			}
		}
		pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("list the processes of control group %s: %w", parent, cause(err))
		}
		if pid, _, _ := strings.Cut(string(pids), "\n"); pid != "" {
			return fmt.Errorf("the control group %s holds process %s, which is no unikernel: --cgroup names one that is theirs alone, such as fulmar", parent, pid)
		}
	}
	return nil
}

// mayBeGroup says whether a unikernel can have a group of that name.
func mayBeGroup(name string) bool {
	if sum, err := hex.DecodeString(name); err == nil && len(sum) == 32 {
		return true
	}
	_, err := albatross.ParseName(name)
	return err == nil && strings.Contains(name, ":")
}

// isMarked says whether the group at dir is of host's making. One that is not there is not.
func isMarked(dir string) bool {
	info, err := os.Lstat(dir)
	return err == nil && info.Mode()&fs.ModeSticky != 0
}

// childrenOf names the groups below the one at dir.
func childrenOf(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// list gives the groups below the parent that are of host's making, and names the others.
func (c *cgroups) list() (own []*group, others []string, err error) {
	found := make(map[string]*group)
	for _, h := range c.hierarchies {
		names, err := childrenOf(h.dir)
		if err != nil {
			return nil, nil, fmt.Errorf("list control groups below %s: %w", c.parent, cause(err))
		}
		for _, name := range names {
			if !mayBeGroup(name) || !isMarked(filepath.Join(h.dir, name)) {
				others = append(others, name)
				continue
			}
			if found[name] == nil {
				found[name] = &group{c: &cgroups{unified: c.unified, parent: c.parent}, name: name}
				own = append(own, found[name])
			}
			only := found[name].c // where it is marked
			only.hierarchies = append(only.hierarchies, h)
		}
	}
	slices.Sort(others)
	return own, slices.Compact(others), nil
}

// make makes the directories of a group, and of its parent, which anybody may remove while it is empty. It takes none that somebody else made.
func (g *group) make() error {
	for i, h := range g.c.hierarchies {
		dir := filepath.Join(h.dir, g.name)
		err := os.Mkdir(dir, groupMode)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(h.dir, 0o755); err == nil {
				err = os.Mkdir(dir, groupMode)
			}
		}
		if err == nil || errors.Is(err, fs.ErrExist) && isMarked(dir) {
			continue
		}
		err = fmt.Errorf("make control group %s: %w", g.path(), cause(err))
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("make control group %s: somebody else has made it: remove it", g.path())
		}
		before := &group{c: &cgroups{unified: g.c.unified, parent: g.c.parent, hierarchies: g.c.hierarchies[:i]}, name: g.name}
		return errors.Join(err, before.remove(context.Background()))
	}
	return nil
}

// path is what people call the group.
func (g *group) path() string { return filepath.Join(g.c.parent, g.name) }

// cause is an error of a file without the file's name, which for a control group may begin with a descriptor of this program.
func cause(err error) error {
	if file, ok := errors.AsType[*fs.PathError](err); ok {
		return file.Err
	}
	return err
}
