package git

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// prefix begins the names of the directories for temporary files, one a client.
const prefix = "fulmar-git-"

// settings are all the configuration that git has here. Who may name a repository by file is decided by its path, and
// git guards itself against what such a repository is configured to do.
const settings = `[safe]
	directory = *
[core]
	hooksPath = /dev/null
[gc]
	auto = 0
[maintenance]
	auto = false
[http]
	lowSpeedLimit = 1
	lowSpeedTime = 30
[protocol]
	version = 2
[fetch]
	writeCommitGraph = false
[advice]
	detachedHead = false
`

// space is a directory for temporary files. Its lock is held as long as its process lives.
type space struct {
	path string
	lock *os.File
}

func newSpace(temp string) (*space, error) {
	for {
		path, err := os.MkdirTemp(temp, prefix)
		if err != nil {
			return nil, fmt.Errorf("make a directory for temporary files: %w", err)
		}
		lock, err := hold(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EWOULDBLOCK) {
			continue // another client's sweep took it for a dead one's before it was locked
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), os.RemoveAll(path))
		}
		s := &space{path: path, lock: lock}
		if err := os.WriteFile(s.settings(), []byte(settings), 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("write the settings of git: %w", err), s.remove())
		}
		return s, nil
	}
}

func (s *space) settings() string { return filepath.Join(s.path, "config") }

func (s *space) remove() error {
	defer s.lock.Close()
	if err := os.RemoveAll(s.path); err != nil {
		return fmt.Errorf("remove temporary files: %w", err)
	}
	return nil
}

// hold takes the lock of a directory without waiting, and sees that the directory is still there then.
func hold(path string) (*os.File, error) {
	lock, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if _, err := os.Stat(path); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}
