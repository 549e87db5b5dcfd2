package hosttest

import "golang.org/x/sys/unix"

// MountSysfs mounts a view of this network namespace's interfaces on dir. It is seen only by this test binary and what it starts.
func MountSysfs(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("sysfs", dir, "sysfs", 0, "")
}

// Unmount ends what MountSysfs began.
func Unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }
