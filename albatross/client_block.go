package albatross

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// blockChunk is the size of the frames in which a block device is sent: what a daemon takes of a compressed one.
const blockChunk = 64 << 10

// maxBlockChunk is the largest frame that a server takes of a block device's content.
const maxBlockChunk = 1 << 20

// Blocks returns the block device of a name, or all of a path and below, by their full names.
func (c *Client) Blocks(ctx context.Context, name Name) ([]BlockDevice, error) {
	reply, err := c.ask(ctx, "list blocks of", name, BlockInfo{})
	if err != nil {
		return nil, err
	}
	m, ok := reply.(Blocks)
	if !ok {
		return nil, unexpected("list blocks of", name, reply)
	}
	if !name.HasLabel() {
		for i := range m {
			m[i].Name = name.Path().Join(m[i].Name)
		}
	}
	return m, nil
}

// AddBlock makes a block device. It is [ErrExists] if there is one of the name.
func (c *Client) AddBlock(ctx context.Context, name Name, add BlockAdd) error {
	_, err := c.ask(ctx, "add block", name, add)
	return err
}

// RemoveBlock removes a block device. It is [ErrNotFound] if there is none and [ErrInUse] if a unikernel uses it.
func (c *Client) RemoveBlock(ctx context.Context, name Name) error {
	_, err := c.ask(ctx, "remove block", name, BlockRemove{})
	return err
}

// SetBlock fills a block device with what data gives, which is a whole zlib stream if set says that it is compressed: a real
// daemon never answers to half of one.
func (c *Client) SetBlock(ctx context.Context, name Name, set BlockSet, data io.Reader) error {
	k, err := c.open(ctx, VMMDSocket, "set block", name, set)
	if err != nil {
		return err
	}
	if err := k.send(data); err != nil {
		return errors.Join(err, k.Close())
	}
	_, err = k.reply()
	return errors.Join(err, k.Close())
}

// send writes data in frames, and the one that ends the stream.
func (k *conn) send(data io.Reader) error {
	chunk := make([]byte, blockChunk)
	for {
		n, err := io.ReadFull(data, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read data of block %v: %w", k.header.Name, err)
		}
		if n > 0 {
			if err := WriteFrame(k, chunk[:n]); err != nil {
				return k.refusal(err)
			}
		}
		if err != nil {
			break
		}
	}
	if err := WriteFrame(k, nil); err != nil {
		return k.refusal(err)
	}
	return nil
}

// DumpBlock writes the content of a block device to w. It is a zlib stream if the reply, which is returned, says so; ask for
// level 0 to have it plain.
func (c *Client) DumpBlock(ctx context.Context, name Name, dump BlockDump, w io.Writer) (BlockImage, error) {
	k, err := c.open(ctx, VMMDSocket, "dump block", name, dump)
	if err != nil {
		return BlockImage{}, err
	}
	image, err := k.dump(w)
	return image, errors.Join(err, k.Close())
}

func (k *conn) dump(w io.Writer) (BlockImage, error) {
	reply, err := k.reply()
	if err != nil {
		return BlockImage{}, err
	}
	image, ok := reply.(BlockImage)
	if !ok {
		return BlockImage{}, unexpected(k.what, k.header.Name, reply)
	}
	for {
		m, err := k.receive()
		if err != nil {
			return image, k.wrap(noEOF(err))
		}
		data, ok := m.Payload.(BlockData)
		switch {
		case !ok:
			return image, fmt.Errorf("%s %v: %w: %T", k.what, k.header.Name, ErrUnexpected, m.Payload)
		case data.Data == nil:
			return image, nil
		}
		if _, err := w.Write(data.Data); err != nil {
			return image, fmt.Errorf("write data of block %v: %w", k.header.Name, err)
		}
	}
}

// BlockReader reads what a client streams after a [BlockSet], as a server does: frames of at most 1 MB until an empty one,
// which is io.EOF. The connection's end before that is io.ErrUnexpectedEOF.
type BlockReader struct {
	r    io.Reader
	rest []byte
	err  error
}

// NewBlockReader returns a reader of the frames that r gives.
func NewBlockReader(r io.Reader) *BlockReader { return &BlockReader{r: r} }

// Read implements io.Reader.
func (b *BlockReader) Read(p []byte) (int, error) {
	if len(b.rest) == 0 && b.err == nil {
		b.rest, b.err = ReadFrame(b.r, maxBlockChunk)
		switch {
		case b.err != nil:
			b.err = noEOF(b.err)
		case len(b.rest) == 0:
			b.err = io.EOF
		}
	}
	if len(b.rest) == 0 {
		return 0, b.err
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
