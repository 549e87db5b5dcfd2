package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserve locks directories, which what names, until host ends. No two hosts may share any: one that starts removes what it cannot
// explain there, which is all that belongs to the other.
func (s *Service) reserve(what string, dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err == nil {
			s.reserved = append(s.reserved, f)
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
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

// unreserve lets another host have what was reserved.
func (s *Service) unreserve() error {
	var errs []error
	for _, f := range s.reserved {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
