package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	_ "crypto/sha512" // a digest may be one
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	maxUnpacked = 16 << 30  // bytes of all layers of an image
	maxWindow   = 128 << 20 // bytes of memory that a layer may ask for to be unpacked
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// blob is a file of a layout and what it must be.
type blob struct {
	name     string // of the file
	digest   digest.Digest
	size     int64 // -1: not known
	unpacked bool  // the digest is of what it is when it is unpacked
}

// openBlob opens a blob. What is read of it also goes to the verifier, if the digest is of the file.
func (l *Layout) openBlob(b blob) (io.ReadCloser, digest.Verifier, error) {
	if err := b.digest.Validate(); err != nil {
		return nil, nil, refuse("digest %.100q: %w", b.digest, err)
	}
	f, size, err := l.files.open(b.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, refuse("it lacks the file %s", b.name)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open file %s: %w", b.name, err)
	}
	if b.size >= 0 && size != b.size {
		f.Close()
		return nil, nil, refuse("%s has %d bytes, not %d", b.name, size, b.size)
	}
	return f, b.digest.Verifier(), nil
}

// layer is a layer that is being read.
type layer struct {
	blob
	*tar.Reader
	source   *source
	unpacked io.Reader
	verifier digest.Verifier
	done     func() error
}

// source tells an error of the disk from one of what is on it, and ends with a context.
type source struct {
	ctx    context.Context
	from   io.Reader
	broken error
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.broken = err
		return 0, err
	}
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.broken = err
	}
	return n, err
}

// budget is what may still be unpacked of an image.
type budget struct {
	from io.Reader
	left *int64
}

var errBudget = errors.New("it unpacks to too many bytes")

func (b budget) Read(p []byte) (int, error) {
	if *b.left <= 0 {
		return 0, errBudget
	}
	n, err := b.from.Read(p[:min(int64(len(p)), *b.left)])
	*b.left -= int64(n)
	return n, err
}

// openLayer opens a layer, whose bytes count against what is left.
func (l *Layout) openLayer(ctx context.Context, b blob, left *int64) (*layer, error) {
	f, verifier, err := l.openBlob(b)
	if err != nil {
		return nil, err
	}
	y := &layer{blob: b, source: &source{ctx: ctx, from: f}, verifier: verifier, done: f.Close}
	var packed io.Reader = y.source
	if !b.unpacked {
		packed = io.TeeReader(packed, verifier)
	}
	in, err := y.unpack(bufio.NewReaderSize(packed, 64<<10))
	if err != nil {
		f.Close()
		return nil, y.fault(err)
	}
	y.unpacked = budget{in, left}
	if b.unpacked {
		y.unpacked = io.TeeReader(y.unpacked, verifier)
	}
	y.Reader = tar.NewReader(y.unpacked)
	return y, nil
}

// unpack gives what is in a layer, however it is compressed.
func (y *layer) unpack(in *bufio.Reader) (io.Reader, error) {
	magic, err := in.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return gzip.NewReader(in)
	case bytes.HasPrefix(magic, zstdMagic):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		closed := y.done
		y.done = func() error { z.Close(); return closed() }
		return z, nil
	}
	return in, nil
}

// fault says what an error of reading a layer means: whether a second try may help.
func (y *layer) fault(err error) error {
	if y.source.broken != nil {
		return fmt.Errorf("read %s: %w", y.name, y.source.broken)
	}
	return refuse("layer %s: %w", y.name, err)
}

// next gives the next entry, or [io.EOF] when there is none and the layer is what it should be.
func (y *layer) next() (*tar.Header, error) {
	h, err := y.Next()
	if err == nil {
		return h, nil
	}
	if !errors.Is(err, io.EOF) {
		return nil, y.fault(err)
	}
	if _, err := io.Copy(io.Discard, y.unpacked); err != nil { // what follows the archive is hashed as well
		return nil, y.fault(err)
	}
	if !y.verifier.Verified() {
		return nil, refuse("layer %s is not what its digest %s says", y.name, y.digest)
	}
	return nil, io.EOF
}

// readSmall reads a blob whole, which is a text.
func (l *Layout) readSmall(b blob) ([]byte, error) {
	f, verifier, err := l.openBlob(b)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readText(b.name, f)
	if err != nil {
		return nil, err
	}
	if _, err := verifier.Write(text); err != nil {
		return nil, err
	}
	if !verifier.Verified() {
		return nil, refuse("%s is not what its digest %s says", b.name, b.digest)
	}
	return text, nil
}

// maxText is the longest text of an image, in bytes: what registries take.
const maxText = 4 << 20

func readText(name string, in io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxText {
		return nil, refuse("%s has more than %d bytes", name, maxText)
	}
	return text, nil
}
