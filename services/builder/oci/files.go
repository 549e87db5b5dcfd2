package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/rootfs"
)

// maxMembers is how many files an archive of an image has at most.
const maxMembers = 100_000

// files are the files of a layout, by their names in it.
type files interface {
	// open gives a file and its size, or [fs.ErrNotExist].
	open(name string) (io.ReadCloser, int64, error)
	io.Closer
}

// directory is a layout as it lies on the disk. No link leads out of it.
type directory struct{ *os.Root }

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	f, err := openIn(d.Root, name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// openIn opens a file below a root, and refuses one that is not below it.
func openIn(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe that nobody writes to is no reason to wait
	if err == nil {
		return f, nil
	}
	if _, ok := errors.AsType[syscall.Errno](err); !ok { // the system did not say it, but the root
		return nil, refuse("%w", err)
	}
	return nil, err
}

// archive is a layout in a tar archive that is not compressed.
type archive struct {
	*os.File
	members map[string]member // by path, with a slash before it
}

type member struct {
	rootfs.Entry
	offset int64
}

// openArchive reads what an archive has where.
func openArchive(f *os.File) (*archive, error) {
	a := &archive{File: f, members: map[string]member{}}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, refuse("it is not a tar archive: %w", err)
		}
		if err != nil {
			return nil, err
		}
		name, err := within(h.Name)
		if err != nil {
			return nil, refuse("%w", err)
		}
		offset, err := f.Seek(0, io.SeekCurrent) // the reader of archives reads no byte too many
		if err != nil {
			return nil, err
		}
		if err := a.add(name, offset, h); err != nil {
			return nil, err
		}
	}
	if len(a.members) == 0 {
		return nil, refuse("it is not the archive of an image: it has no file")
	}
	return a, nil
}

func (a *archive) add(name string, offset int64, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg:
		a.members[name] = member{rootfs.Entry{Kind: rootfs.File, Size: h.Size}, offset}
	case tar.TypeSymlink: // docker save wrote a layer that two images share as a link
		a.members[name] = member{Entry: rootfs.Entry{Kind: rootfs.Link, Link: h.Linkname}}
	}
	for dir := path.Dir(name); dir != "/" && a.members[dir].Kind == rootfs.Absent; dir = path.Dir(dir) { // an archive need not name them
		a.members[dir] = member{Entry: rootfs.Entry{Kind: rootfs.Directory}}
	}
	if len(a.members) > maxMembers {
		return refuse("it has more than %d files", maxMembers)
	}
	return nil
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	at, err := rootfs.Find(name, 1<<62, func(at string) (rootfs.Entry, error) { return a.members[at].Entry, nil })
	if err != nil {
		return nil, 0, errors.Join(fs.ErrNotExist, err)
	}
	m := a.members[at]
	return io.NopCloser(io.NewSectionReader(a.File, m.offset, m.Size)), m.Size, nil
}

// openFiles opens a layout, which is a directory or an archive.
func openFiles(root *os.Root, name string) (files, error) {
	f, err := openIn(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "it does not exist")
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if info.IsDir() {
		f.Close()
		dir, err := root.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		return directory{dir}, nil
	}
	a, err := openRegular(f, info)
	if err != nil {
		f.Close()
		return nil, err
	}
	return a, nil
}

func openRegular(f *os.File, info fs.FileInfo) (*archive, error) {
	if !info.Mode().IsRegular() {
		return nil, refuse("it is neither a directory nor a file")
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.HasPrefix(magic[:], gzipMagic) || bytes.HasPrefix(magic[:], zstdMagic) {
		return nil, refuse("the archive is compressed as a whole; uncompress it (its layers may be compressed)")
	}
	return openArchive(f)
}
