package albatross

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
)

// DefaultMaxFrame is the largest frame that [Client] takes unless told otherwise, in bytes.
const DefaultMaxFrame = 256 << 20

// firstRead is what is allocated for a frame before any of it has come.
const firstRead = 1 << 20

// ErrFrameTooLarge reports a frame whose announced length is above the limit; nothing of it was read or allocated.
var ErrFrameTooLarge = errors.New("albatross: frame too large")

// ReadFrame reads one frame of at most limit bytes and returns what it holds. A frame of no bytes, which ends a stream, is
// an empty slice. The error is io.EOF before the first byte of a frame, io.ErrUnexpectedEOF within one,
// and [ErrFrameTooLarge] for a longer one. Memory is taken as bytes arrive, not as they are announced.
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("read frame length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if limit < 0 || uint64(n) > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes announced, %d allowed", ErrFrameTooLarge, n, limit)
	}
	for have, frame := 0, make([]byte, min(int(n), firstRead)); ; {
		if _, err := io.ReadFull(r, frame[have:]); err != nil {
			return nil, fmt.Errorf("read frame of %d bytes: %w", n, noEOF(err))
		}
		if have = len(frame); have == int(n) {
			return frame, nil
		}
		larger := make([]byte, min(2*have, int(n)))
		copy(larger, frame)
		frame = larger
	}
}

// noEOF turns an end of input within a frame into the error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteFrame writes one frame that holds data. Without data it writes the frame that ends a stream.
func WriteFrame(w io.Writer, data []byte) error {
	if uint64(len(data)) > math.MaxUint32 {
		return fmt.Errorf("%w: %d bytes", ErrFrameTooLarge, len(data))
	}
	bufs := net.Buffers{binary.BigEndian.AppendUint32(nil, uint32(len(data)))}
	if len(data) > 0 {
		bufs = append(bufs, data)
	}
	if _, err := bufs.WriteTo(w); err != nil {
		return fmt.Errorf("write frame of %d bytes: %w", len(data), err)
	}
	return nil
}
