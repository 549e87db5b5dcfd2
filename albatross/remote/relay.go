package remote

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"fulmar/albatross"
)

// maxChunk is the largest frame of a block device's content.
const maxChunk = 1 << 20

// relay sends one frame of the daemon to the client. It is io.EOF if the daemon closes instead, which the client sees likewise.
func (s *Server) relay(to *bufio.Writer, daemon io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(daemon, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return fmt.Errorf("read answer: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > int64(s.cfg.MaxImage) {
		return fmt.Errorf("read answer: %w: %d bytes announced, %d allowed", albatross.ErrFrameTooLarge, n, s.cfg.MaxImage)
	}
	if _, err := to.Write(head[:]); err != nil {
		return fmt.Errorf("send answer: %w", err)
	}
	if _, err := io.CopyN(to, daemon, n); err != nil {
		return fmt.Errorf("relay answer of %d bytes: %w", n, err)
	}
	if err := to.Flush(); err != nil {
		return fmt.Errorf("send answer: %w", err)
	}
	return nil
}

// relayAll sends frames of the daemon to the client until the daemon closes; each must come in time.
func (s *Server) relayAll(k *client, daemon net.Conn, within time.Duration) error {
	to, from := k.writer(), bufio.NewReader(daemon)
	for {
		if within > 0 {
			_ = daemon.SetReadDeadline(time.Now().Add(within))
		}
		err := s.relay(to, from)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// relaySubscription sends what the daemon says until it closes, or the client says or closes anything.
func (s *Server) relaySubscription(k *client, daemon net.Conn) error {
	k.paced.idle()
	left := make(chan struct{})
	go func() { // ends with the client's connection, which is closed below at the latest
		defer close(left)
		_, _ = k.Read(make([]byte, 1))
		_ = daemon.Close()
	}()
	err := s.relayAll(k, daemon, 0)
	_ = k.CloseWrite()
	_ = k.NetConn().Close()
	<-left
	if errors.Is(err, net.ErrClosed) {
		return nil // the client has seen enough
	}
	return err
}

// relayBlock sends the client's frames to the daemon until an empty one, and the daemon's one answer to the client. The daemon
// may answer before it has read all.
func (s *Server) relayBlock(k *client, daemon net.Conn, to albatross.Header) error {
	k.paced.expect(s.cfg.speak, minRate)
	answered := make(chan error, 1)
	go func() { // ends with the daemon's connection
		answered <- s.relay(k.writer(), daemon)
		_ = daemon.Close()
	}()
	err := relayChunks(daemon, k)
	switch {
	case err == nil:
		_ = daemon.SetReadDeadline(time.Now().Add(replyTime))
	case errors.Is(err, ErrNoDaemon): // it may have said why it does not take more
		_ = daemon.SetReadDeadline(time.Now().Add(lingerTime))
	default: // it waits for what will not come
		_ = daemon.Close()
	}
	if answer := <-answered; answer != nil {
		err = errors.Join(err, answer)
		k.fail(to, err)
		k.linger()
		return err
	}
	if err != nil {
		k.linger()
	}
	return nil
}

// relayChunks sends frames to the daemon until an empty one.
func relayChunks(daemon net.Conn, k *client) error {
	for {
		chunk, err := albatross.ReadFrame(k, maxChunk)
		if err != nil {
			return fmt.Errorf("read block: %w", err)
		}
		_ = daemon.SetWriteDeadline(time.Now().Add(writeTime))
		if err := albatross.WriteFrame(daemon, chunk); err != nil {
			return fmt.Errorf("%w: %w", ErrNoDaemon, err)
		}
		if len(chunk) == 0 {
			return nil
		}
	}
}
