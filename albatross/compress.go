package albatross

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// ErrCompressed reports an image that is no zlib stream, or one that is larger than allowed when uncompressed.
var ErrCompressed = errors.New("albatross: bad compressed image")

// Compress returns data as a zlib stream, the only form that daemons read. Level is 0 (none) to 9.
func Compress(data []byte, level int) ([]byte, error) {
	if level < zlib.NoCompression || level > zlib.BestCompression {
		return nil, fmt.Errorf("%w: compression level %d is not 0 to 9", ErrValue, level)
	}
	var buf bytes.Buffer
	w, err := zlib.NewWriterLevel(&buf, level)
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return buf.Bytes(), nil
}

// Uncompress returns what a zlib stream holds, if that is at most limit bytes. What follows the stream is ignored.
// The error is an [ErrCompressed].
func Uncompress(data []byte, limit int) ([]byte, error) {
	var buf bytes.Buffer
	if err := UncompressTo(&buf, data, limit); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// UncompressTo is [Uncompress] for who bounds what is kept of many at once: an error of w ends it, and is in the error too.
func UncompressTo(w io.Writer, data []byte, limit int) error {
	r, err := zlib.NewReader(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCompressed, err)
	}
	n, err := io.Copy(w, io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCompressed, err)
	}
	if n > int64(limit) {
		return fmt.Errorf("%w: more than %d bytes when uncompressed", ErrCompressed, limit)
	}
	return nil
}
