package host

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// reserve locks directories, which what names, until host ends. No two hosts may share any: one that starts removes what it cannot
// explain there, which is all that belongs to the other.
func (s *Service) reserve(what string, dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err == nil {
			s.reserved = append(s.reserved, f)
			err = lockFile(f)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("the %s is in use by another host: give each one of its own", what)
		}
		if err != nil {
			return fmt.Errorf("lock the %s: %w", what, cause(err))
		}
	}
	return nil
}

// A host that was killed may have begun to start a process, which holds what is locked until it is another program. It is then no other host
// that has it, and it is free in a moment.
const (
	lockTime  = time.Second
	lockPause = 5 * time.Millisecond // between two tries: a flock that waits could not be given up
)

// lockFile locks f until it is closed. That another host has it is [unix.EWOULDBLOCK].
func lockFile(f *os.File) error {
	limit := time.NewTimer(lockTime)
	defer limit.Stop()
	tick := time.NewTicker(lockPause)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-limit.C:
			return err
		case <-tick.C:
		}
	}
}

// unreserve lets another host have what was reserved.
func (s *Service) unreserve() error {
	var errs []error
	for _, f := range s.reserved {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
