package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

const (
	connectionsMax = 512              // of one socket; the oldest that has not yet asked anything makes room
	readTime       = 10 * time.Second // in which the next piece of a request must come
	headTime       = time.Second / 4  // in which the start of a frame that is too large must come, if its answer is to name it
	writeTime      = 10 * time.Second // in which a reply must be taken
)

// answerer answers one request of a connection, which ends with it unless there may be more.
type answerer func(ctx context.Context, conn net.Conn, request albatross.Wire) (more bool)

// serve accepts connections until ctx ends, and then waits for those whose commands are being carried out.
func (s *Service) serve(ctx context.Context, l net.Listener, answer answerer) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	conns := &connections{}
	defer conns.wait()
	defer conns.closeUnasked()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if exhausted(err) {
			s.log.Error("could not accept a connection", "err", err)
			pauseAccept(ctx)
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		c := conns.add(conn)
		if c == nil {
			s.metrics.connections.WithLabelValues("refused").Inc()
			_ = conn.Close()
			continue
		}
		s.metrics.connections.WithLabelValues("accepted").Inc()
		conns.group.Go(func() {
			defer conns.remove(c)
			for s.converse(ctx, conns, c, answer) {
				if conns.setAsked(c, false); ctx.Err() != nil { // from here on closeUnasked finds it
					return
				}
			}
		})
	}
}

// exhausted says whether an error of accept is of a shortage that passes.
func exhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pauseAccept gives a shortage time to pass.
func pauseAccept(ctx context.Context) {
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// converse reads one request and has it answered. It says whether the client may ask for more.
func (s *Service) converse(ctx context.Context, conns *connections, c *connection, answer answerer) (more bool) {
	body := &pacedReader{head: make([]byte, 0, headMax), conn: c.Conn, ration: s.ration()}
	defer body.ration.release()
	frame, err := albatross.ReadFrame(body, s.cfg.MaxImage)
	var request albatross.Wire
	if err == nil {
		request, err = albatross.Unmarshal(frame)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return false // nobody is there to be told
	case err != nil:
		s.metrics.commands.WithLabelValues("unreadable", "refused").Inc()
		s.log.Warn("refused an unreadable request", "err", err)
		s.reply(c.Conn, body.header(), albatross.Failure(err.Error()))
		return false
	}
	conns.setAsked(c, true)
	return answer(ctx, c.Conn, request)
}

// reply sends one message. A client that does not take it is left to itself.
func (s *Service) reply(conn net.Conn, h albatross.Header, p albatross.Payload) {
	_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
	err := albatross.WriteReply(conn, h, p)
	if errors.Is(err, albatross.ErrValue) { // such as two CPU ids in an answer to who knows only one
		err = albatross.WriteReply(conn, h, albatross.Failure(err.Error()))
	}
	if err != nil {
		s.log.Debug("could not reply", "err", err)
	}
}

// pacedReader reads a request piece by piece: each must come in time, and what is large must fit into the budget of all.
type pacedReader struct {
	conn   net.Conn
	ration *ration
	head   []byte // what came first, at most headMax bytes
}

func (r *pacedReader) Read(p []byte) (int, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(readTime))
	n, err := r.conn.Read(p)
	r.head = append(r.head, p[:min(n, headMax-len(r.head))]...)
	if busy := r.ration.take(n); busy != nil {
		return n, busy
	}
	return n, err
}

// header finds out whom a request that could not be read as a whole must be answered: as good as may be.
func (r *pacedReader) header() albatross.Header {
	if len(r.head) == frameLength && !bytes.Equal(r.head, make([]byte, frameLength)) { // too large: nothing of it was read, but perhaps it is there
		_ = r.conn.SetReadDeadline(time.Now().Add(headTime))
		n, err := r.conn.Read(r.head[len(r.head):headMax:headMax])
		if err != nil {
			return albatross.Header{}
		}
		r.head = r.head[:len(r.head)+n]
	}
	return headerOf(r.head[min(frameLength, len(r.head)):])
}

const (
	frameLength = 4   // bytes of a frame before the message
	headMax     = 512 // bytes in which the header of a message is looked for
)

// headerOf reads the header at the start of a message that may go on with anything or end anywhere. It is empty if it cannot be read.
func headerOf(message []byte) albatross.Header {
	s := cryptobyte.String(message)
	var tag, length uint8
	if !s.ReadUint8(&tag) || !s.ReadUint8(&length) || length > 0x80 && !s.Skip(int(length&0x7f)) {
		return albatross.Header{}
	}
	var header cryptobyte.String
	if !s.ReadASN1Element(&header, asn1.SEQUENCE) {
		return albatross.Header{}
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(header)
		b.AddBytes([]byte{0xa1, 0x04, 0xa0, 0x02, 0x05, 0x00}) // any payload will do
	})
	whole, err := b.Bytes()
	if err != nil {
		return albatross.Header{}
	}
	w, err := albatross.Unmarshal(whole)
	if err != nil {
		return albatross.Header{}
	}
	return w.Header
}

// connection is one client.
type connection struct {
	net.Conn
	asked bool // its request has come
}

// connections are the clients of one socket, oldest first.
type connections struct {
	mu    sync.Mutex
	all   []*connection
	group sync.WaitGroup
}

// add takes a client in. If there are too many, the oldest that has not asked anything is closed; if all have, there is no room: nil.
func (cs *connections) add(conn net.Conn) *connection {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.all) >= connectionsMax {
		idle := -1
		for i, c := range cs.all {
			if !c.asked {
				idle = i
				break
			}
		}
		if idle < 0 {
			return nil
		}
		_ = cs.all[idle].Close() // its goroutine ends and finds itself removed
		cs.all = append(cs.all[:idle], cs.all[idle+1:]...)
	}
	c := &connection{Conn: conn}
	cs.all = append(cs.all, c)
	return c
}

// setAsked says whether the client's request has come: until it is answered it is not closed for another.
func (cs *connections) setAsked(c *connection, asked bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.asked = asked
}

// remove ends a client.
func (cs *connections) remove(c *connection) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	_ = c.Close()
	for i, other := range cs.all {
		if other == c {
			cs.all = append(cs.all[:i], cs.all[i+1:]...)
			return
		}
	}
}

// closeUnasked closes the clients whose request has not come.
func (cs *connections) closeUnasked() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		if !c.asked {
			_ = c.Close()
		}
	}
}

// wait blocks until every client is done.
func (cs *connections) wait() { cs.group.Wait() }
