package host

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// controllers are what host limits unikernels by.
func controllers() []string { return []string{"memory", "pids"} }

// mounts is where control groups are found: on one unified mount (v2), or on one for each controller (v1).
type mounts struct {
	unified     string
	controllers map[string]string
}

// all lists them.
func (m mounts) all() []string {
	if m.unified != "" {
		return []string{m.unified}
	}
	return slices.Collect(maps.Values(m.controllers))
}

// findMounts looks for control groups at root, where a system has them. If they are not there, as below "ip netns exec", which puts a
// /sys of its own over them, it mounts them for this program alone, on no directory: they go with it.
func findMounts(root string) (mounts, error) {
	if fsType(root) == unix.CGROUP2_SUPER_MAGIC {
		return mounts{unified: root}, nil
	}
	m := mounts{controllers: make(map[string]string)}
	v1, err := inUse()
	if err != nil {
		return mounts{}, err
	}
	if !v1 {
		fd, err := mountGroups("cgroup2", "")
		if err != nil {
			return mounts{controllers: m.controllers}, nil //nolint:nilerr // not permitted: openCgroups names what is missing
		}
		return mounts{unified: fd}, nil
	}
	for _, controller := range controllers() {
		path := filepath.Join(root, controller)
		if fsType(path) != unix.CGROUP_SUPER_MAGIC {
			if path, err = mountGroups("cgroup", controller); err != nil {
				continue
			}
		}
		m.controllers[controller] = path
	}
	return m, nil
}

// fsType is the type of the file system at path, or 0.
func fsType(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return st.Type
}

// inUse says whether the machine has its memory controller on a v1 hierarchy. A kernel without v1 has no /proc/cgroups.
func inUse() (v1 bool, err error) {
	text, err := os.ReadFile("/proc/cgroups")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for control groups: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "memory" {
			return f[1] != "0", nil
		}
	}
	return false, nil
}

// mountGroups mounts control groups on no directory and returns a path to them, which is good as long as this program lives.
func mountGroups(fsName, controller string) (path string, err error) {
	ctx, err := unix.Fsopen(fsName, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("mount %s: %w", fsName, err)
	}
	defer func() { err = errors.Join(err, unix.Close(ctx)) }()
	if controller != "" {
		if err := unix.FsconfigSetFlag(ctx, controller); err != nil {
			return "", fmt.Errorf("mount %s of %s: %w", fsName, controller, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return "", fmt.Errorf("mount %s: %w", fsName, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return "", fmt.Errorf("mount %s: %w", fsName, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}
