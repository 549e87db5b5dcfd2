package solo5

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const allSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Flags of memfd_create since Linux 6.3.
const (
	mfdNoExecSeal = 0x8
	mfdExec       = 0x10
)

// Seal copies a file, whatever its position, to memory that nobody can change
// any more. Whoever wants to check an image (its digest, for one) and run what
// was checked seals it first, checks the copy and gives that to [PrepareSPT],
// which does not copy a sealed image again. Guests of one sealed image share
// what they do not write to.
func Seal(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("seal image: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is no regular file", ErrNotSolo5)
	}
	if info.Size() > maxImageBytes {
		return nil, fmt.Errorf("%w: it is larger than %d MB", ErrNotSolo5, maxImageBytes/megabyte)
	}
	return sealed(func(m *os.File) error { return copyAll(m, f, info.Size()) })
}

// SealBytes is [Seal] for an image that is in memory already.
func SealBytes(image []byte) (*os.File, error) {
	return sealed(func(m *os.File) error {
		_, err := m.Write(image)
		return err
	})
}

// sealed returns a sealed file in memory that fill has written.
func sealed(fill func(*os.File) error) (*os.File, error) {
	m, err := newMemory("solo5-image", mfdNoExecSeal)
	if err != nil {
		return nil, err
	}
	if err := fill(m); err != nil {
		return nil, errors.Join(fmt.Errorf("copy image: %w", err), m.Close())
	}
	if err := seal(m); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// isSealed reports whether nobody can change the file any more.
func isSealed(f *os.File) bool {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil && seals&allSeals&^unix.F_SEAL_SEAL == allSeals&^unix.F_SEAL_SEAL
}

// copyAll copies size bytes from the start of a file, within the kernel.
func copyAll(to, from *os.File, size int64) error {
	for off := int64(0); off < size; {
		n, err := unix.Sendfile(int(to.Fd()), int(from.Fd()), &off, int(size-off))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("sendfile", err)
		case n == 0:
			return errors.New("the file got shorter while it was read")
		}
	}
	return nil
}

// newMemory returns an empty file in memory. Kernels since 6.3 want to be told
// whether it is to be executed and older ones refuse the flag.
func newMemory(name string, flag int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flag)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if flag == mfdExec && errors.Is(err, unix.EACCES) {
		return nil, errors.New("run from memory: the system forbids it, sysctl vm.memfd_noexec is 2 and must be 1 or 0")
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// seal makes the file in memory unchangeable.
func seal(m *os.File) error {
	if _, err := unix.FcntlInt(m.Fd(), unix.F_ADD_SEALS, allSeals); err != nil {
		return fmt.Errorf("seal %s: %w", m.Name(), err)
	}
	return nil
}
