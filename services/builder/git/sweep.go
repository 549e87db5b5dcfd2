package git

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sweep removes the directories of clients that are dead, which nobody holds the locks of, and ends the processes that
// still work in them: what helps git waits for a server that is silent.
func sweep(temp string) error {
	entries, err := os.ReadDir(temp)
	if err != nil {
		return fmt.Errorf("look for temporary files of dead builders: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), prefix) {
			continue
		}
		path := filepath.Join(temp, entry.Name())
		lock, err := hold(path)
		if err != nil {
			continue // it is alive, gone, or another user's
		}
		err = end(path)
		if err == nil {
			err = os.RemoveAll(path)
		}
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove temporary files of a dead builder: %w", err)
		}
	}
	return nil
}

// end kills the processes that work in a directory, and waits until they are gone.
func end(dir string) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0) // first, so that it is the same process until the last
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(filepath.Join("/proc", p.Name(), "cwd"))
		if err == nil && strings.HasPrefix(cwd, dir+"/") {
			err = kill(fd)
		} else {
			err = nil // it is gone, another user's, or none of ours
		}
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func kill(fd int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
