package host

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

const blockUnit = 1 << 20 // bytes in the sizes of block devices

// errTooLong reports more content than the block device has room for.
const errTooLong = refusal("stream exceeds size")

// loadBlocks lists the block devices with their sizes in MB. Files that are none are reported and passed over.
func (s *store) loadBlocks(log *slog.Logger) (map[albatross.Name]int, error) {
	files, err := os.ReadDir(s.path("blocks"))
	if err != nil {
		return nil, fmt.Errorf("read block devices: %w", err)
	}
	sizes := make(map[albatross.Name]int, len(files))
	for _, f := range files {
		name, err := albatross.ParseName(f.Name())
		if err != nil || name.String() != f.Name() {
			log.Warn("found a file that is no block device", "file", s.path("blocks", f.Name()), "err", err)
			continue
		}
		info, err := f.Info()
		if err != nil {
			return nil, fmt.Errorf("read block device %s: %w", name, err)
		}
		sizes[name] = int(info.Size() / blockUnit)
	}
	return sizes, nil
}

// saveBlock writes a block device of size MB that begins with content and goes on with zeros, to stay through a power cut. The one before is
// there until that is done.
func (s *store) saveBlock(name albatross.Name, size int, content io.Reader) (err error) {
	f, err := os.CreateTemp(s.path("tmp"), "block-*")
	if err != nil {
		return fmt.Errorf("write block device: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, removeFile(f.Name()))
		}
	}()
	bytes := int64(size) * blockUnit
	if err := reserve(f, bytes); err != nil {
		return fmt.Errorf("make room for a block device of %d MB: %w", size, err)
	}
	if err := fill(f, bytes, content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write block device: %w", err)
	}
	if err := os.Rename(f.Name(), s.blockPath(name)); err != nil {
		return fmt.Errorf("write block device: %w", err)
	}
	return syncDir(s.path("blocks"))
}

// reserve makes a file so many zeros, and sees that there is room for others in their place where the file system can.
func reserve(f *os.File, bytes int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, bytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(bytes)
	}
	return err
}

// fill writes all of content at the start of f. What the reader fails with is returned as it is.
func fill(f *os.File, bytes int64, content io.Reader) error {
	if _, err := io.Copy(f, io.LimitReader(content, bytes)); err != nil {
		return err
	}
	switch n, err := io.ReadFull(content, make([]byte, 1)); {
	case n > 0:
		return errTooLong
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// openBlock opens a block device for reading and writing.
func (s *store) openBlock(name albatross.Name) (*os.File, error) {
	f, err := os.OpenFile(s.blockPath(name), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open block device: %w", err)
	}
	return f, nil
}

// dropBlock removes a block device, also after a power cut.
func (s *store) dropBlock(name albatross.Name) error {
	if err := removeFile(s.blockPath(name)); err != nil {
		return err
	}
	return syncDir(s.path("blocks"))
}

// blockPath is where the content of a block device is. Its name is short enough, or there is no such device.
func (s *store) blockPath(name albatross.Name) string { return s.path("blocks", name.String()) }
