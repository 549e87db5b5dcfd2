package host

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"fulmar/albatross"
	"fulmar/solo5"
)

// The replies of albatross.
const (
	blockAdded   = albatross.Text("added block device")
	blockSet     = albatross.Text("set block device")
	blockRemoved = albatross.Text("removed block")
)

const (
	blockNameMax = 200              // bytes: it is the name of a file
	dumpChunk    = 4096             // bytes of a block device in one message
	drainTime    = 10 * time.Second // in which a client must have sent the rest of a stream that is refused
)

// blockCommand carries out one command for block devices and names it.
func (s *Service) blockCommand(ctx context.Context, conn net.Conn, request albatross.Wire, ration *ration) (name string, reply albatross.Payload, err error) {
	block := request.Name
	switch c := request.Payload.(type) {
	case albatross.BlockInfo:
		return "block_info", s.listBlocks(block), nil
	case albatross.BlockAdd:
		reply, err = s.addBlock(block, c.Size, bytes.NewReader(nil))
		return "block_add", reply, err
	case albatross.OldBlockAdd:
		content, err := s.content(c.Data, c.Compressed && c.Data != nil, ration)
		if err == nil {
			reply, err = s.addBlock(block, c.Size, content)
		}
		return "block_add", reply, err
	case albatross.BlockRemove:
		reply, err = s.removeBlock(block)
		return "block_remove", reply, err
	case albatross.BlockSet:
		reply, err = s.receiveBlock(ctx, conn, block, c.Compressed)
		return "block_set", reply, err
	case albatross.OldBlockSet:
		content, err := s.content(c.Data, c.Compressed, ration)
		if err == nil {
			reply, err = s.setBlock(block, content)
		}
		return "block_set", reply, err
	case albatross.BlockDump:
		return "block_dump", nil, s.sendBlock(ctx, conn, request.Header, c.Level)
	case albatross.OldBlockDump:
		reply, err = s.dumpBlock(block, c.Level, ration)
		return "block_dump", reply, err
	}
	return "other", nil, refusal("unknown command")
}

// content reads what a command of the old form carries. Not more is uncompressed than a request may have.
func (s *Service) content(data []byte, compressed bool, ration *ration) (io.Reader, error) {
	if !compressed {
		return bytes.NewReader(data), nil
	}
	data, err := ration.uncompress(data, s.cfg.MaxImage)
	if err != nil {
		return nil, err
	}
	return bytes.NewReader(data), nil
}

// listBlocks lists the block device of a name, or all in a path, named from there.
func (s *Service) listBlocks(asked albatross.Name) albatross.Payload {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	reply := albatross.Blocks{}
	for name, size := range s.ledger.blocks {
		if shown, ok := relative(name, asked); ok {
			reply = append(reply, albatross.BlockDevice{Name: shown, Size: size, Active: s.ledger.usedBy(name, albatross.Name{})})
		}
	}
	slices.SortFunc(reply, func(a, b albatross.BlockDevice) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	return reply
}

// addBlock makes a block device of size MB that begins with content, and answers when it is on the disk.
func (s *Service) addBlock(name albatross.Name, size int, content io.Reader) (albatross.Payload, error) {
	if !name.HasLabel() {
		return nil, refuse("add block: %s is a path and names no block device", name)
	}
	if len(name.String()) > blockNameMax {
		return nil, refuse("add block: the name is longer than %d bytes", blockNameMax)
	}
	s.ledger.mu.Lock()
	err := s.ledger.checkBlock(name, size)
	if err == nil {
		s.ledger.blocks[name], s.ledger.busy[name] = size, true
	}
	s.ledger.mu.Unlock()
	if err != nil {
		return nil, err
	}
	err = s.store.saveBlock(name, size, content)
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	delete(s.ledger.busy, name)
	if err != nil {
		delete(s.ledger.blocks, name)
		return nil, err
	}
	s.log.Info("block device made", "block", name.String(), "size_mb", size)
	return blockAdded, nil
}

// removeBlock removes a block device, and answers when that is on the disk.
func (s *Service) removeBlock(name albatross.Name) (albatross.Payload, error) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if err := s.ledger.take(name, "remove"); err != nil {
		return nil, err
	}
	defer delete(s.ledger.busy, name)
	if err := s.store.dropBlock(name); err != nil {
		return nil, err
	}
	delete(s.ledger.blocks, name)
	s.log.Info("block device removed", "block", name.String())
	return blockRemoved, nil
}

// takeBlock has a block device for the caller alone until it calls give, once or more.
func (s *Service) takeBlock(name albatross.Name, what string) (size int, give func(), err error) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if err := s.ledger.take(name, what); err != nil {
		return 0, nil, err
	}
	return s.ledger.blocks[name], sync.OnceFunc(func() {
		s.ledger.mu.Lock()
		defer s.ledger.mu.Unlock()
		delete(s.ledger.busy, name)
	}), nil
}

// setBlock replaces the content of a block device. Until all of it is on the disk the old one is there.
func (s *Service) setBlock(name albatross.Name, content io.Reader) (albatross.Payload, error) {
	size, give, err := s.takeBlock(name, "set")
	if err != nil {
		return nil, err
	}
	defer give()
	if err := s.store.saveBlock(name, size, content); err != nil {
		return nil, err
	}
	s.log.Info("block device set", "block", name.String())
	return blockSet, nil
}

// receiveBlock is setBlock with what the client sends after the command. A refusal is only told when the client has sent it all, as it may
// not look for a reply before.
func (s *Service) receiveBlock(ctx context.Context, conn net.Conn, name albatross.Name, compressed bool) (reply albatross.Payload, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	paced := &pacedStream{Conn: conn}
	stream := albatross.NewBlockReader(paced)
	content := io.Reader(stream)
	if compressed {
		content = &inflater{from: stream}
	}
	reply, err = s.setBlock(name, content)
	paced.until = time.Now().Add(drainTime)
	_, _ = io.Copy(io.Discard, stream)
	if _, lost := errors.AsType[*net.OpError](err); lost || errors.Is(err, io.ErrUnexpectedEOF) {
		err = refusal("set block: the stream has no end")
	}
	if errors.Is(err, albatross.ErrFrameTooLarge) {
		err = refusal(err.Error())
	}
	return reply, err
}

// pacedStream reads from a client that must send something every readTime, or be done by a certain time.
type pacedStream struct {
	net.Conn
	until time.Time
}

func (p *pacedStream) Read(b []byte) (int, error) {
	deadline := p.until
	if deadline.IsZero() {
		deadline = time.Now().Add(readTime)
	}
	_ = p.SetReadDeadline(deadline)
	return p.Conn.Read(b)
}

// inflater uncompresses a zlib stream, once it is read from.
type inflater struct {
	from io.Reader
	zlib io.Reader
}

func (i *inflater) Read(b []byte) (n int, err error) {
	if i.zlib == nil {
		if i.zlib, err = zlib.NewReader(i.from); err != nil {
			i.zlib = nil
			return 0, inflateRefusal(err)
		}
	}
	n, err = i.zlib.Read(b)
	return n, inflateRefusal(err)
}

// inflateRefusal words what is wrong with a compressed stream. Its end, and what the client's connection fails with, are not.
func inflateRefusal(err error) error {
	if _, lost := errors.AsType[*net.OpError](err); lost || err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return uncompressRefusal(err)
}

// sendBlock sends the content of a block device as a stream. What it returns was not sent to the client yet.
func (s *Service) sendBlock(ctx context.Context, conn net.Conn, h albatross.Header, level int) error {
	if level < zlib.NoCompression || level > zlib.BestCompression {
		return refuse("dump block: compression level %d is not 0 to 9", level)
	}
	_, give, err := s.takeBlock(h.Name, "dump")
	if err != nil {
		return err
	}
	defer give()
	f, err := s.store.openBlock(h.Name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	out := &blockWriter{conn: conn, header: h}
	err = out.send(albatross.BlockImage{Compressed: level > 0})
	if err == nil {
		err = copyOut(out, f, level)
	}
	give() // who has read all finds it free
	if err == nil {
		err = out.send(albatross.BlockData{})
	}
	if err != nil { // the stream has begun: the client sees that it has no end
		s.log.Warn("could not send a block device", "block", h.Name.String(), "err", err)
	}
	return nil
}

// copyOut writes all of a file, compressed unless the level is 0.
func copyOut(to io.Writer, from io.Reader, level int) error {
	from = struct{ io.Reader }{from} // in pieces of the buffer
	if level == 0 {
		_, err := io.CopyBuffer(to, from, make([]byte, dumpChunk))
		return err
	}
	z, err := zlib.NewWriterLevel(to, level)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(z, from, make([]byte, dumpChunk)); err != nil {
		return err
	}
	return z.Close()
}

// blockWriter sends what is written to it as messages to one client, each of which must be taken in time.
type blockWriter struct {
	conn   net.Conn
	header albatross.Header
}

func (w *blockWriter) send(p albatross.Payload) error {
	_ = w.conn.SetWriteDeadline(time.Now().Add(writeTime))
	return albatross.WriteReply(w.conn, w.header, p)
}

// Write implements io.Writer.
func (w *blockWriter) Write(b []byte) (int, error) {
	if len(b) == 0 { // that would be the end
		return 0, nil
	}
	if err := w.send(albatross.BlockData{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// dumpBlock returns the content of a block device, as it was before albatross 2.6.
func (s *Service) dumpBlock(name albatross.Name, level int, ration *ration) (albatross.Payload, error) {
	size, give, err := s.takeBlock(name, "dump")
	if err != nil {
		return nil, err
	}
	defer give()
	if size > s.cfg.MaxImage/blockUnit {
		return nil, refusal("dump block: too large for one message, use a newer client")
	}
	if err := ration.take(size * blockUnit); err != nil {
		return nil, err
	}
	f, err := s.store.openBlock(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var content bytes.Buffer
	if err := copyOut(&content, f, level); err != nil {
		return nil, refuse("dump block: %s", err)
	}
	return albatross.OldBlockImage{Compressed: level > 0, Image: content.Bytes()}, nil
}

// blockSizes lists the sizes of a unikernel's block devices, in MB.
func (s *Service) blockSizes(r record) (sizes []int) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	for _, b := range r.Args.Blocks {
		name, _ := blockName(r.Name, b)
		sizes = append(sizes, s.ledger.blocks[name])
	}
	return sizes
}

// openBlocks opens the block devices of a unikernel, which has booked them. It returns those that it opened also when one fails.
func (s *Service) openBlocks(r record) ([]solo5.Block, error) {
	var blocks []solo5.Block
	for _, b := range r.Args.Blocks {
		name, ok := blockName(r.Name, b)
		if !ok {
			return blocks, fmt.Errorf("open block device %q: it has no name", hostDevice(b))
		}
		f, err := s.store.openBlock(name)
		if err != nil {
			return blocks, err
		}
		blocks = append(blocks, solo5.Block{Name: b.Name, File: f, SectorSize: sectorSize(b)})
	}
	return blocks, nil
}

func closeBlocks(blocks []solo5.Block) error {
	var errs []error
	for _, b := range blocks {
		errs = append(errs, b.File.Close())
	}
	return errors.Join(errs...)
}
