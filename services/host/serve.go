package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"fulmar/albatross"
)

const (
	connectionsMax = 512              // of one socket; the oldest that has not yet asked anything makes room
	readTime       = 10 * time.Second // in which the next piece of a request must come
	writeTime      = 10 * time.Second // in which a reply must be taken
	freeBytes      = 64 << 10         // of a request, that count towards no budget
	budgetImages   = 4                // times MaxImage: what all requests that are being read may hold
)

// errBusy reports that too many large requests are being read.
var errBusy = errors.New("too many large requests at once, try again")

// answerer answers the request of one connection; the connection ends with it.
type answerer func(ctx context.Context, conn net.Conn, request albatross.Wire)

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
			s.converse(ctx, conns, c, answer)
		})
	}
}

// converse reads one request and has it answered.
func (s *Service) converse(ctx context.Context, conns *connections, c *connection, answer answerer) {
	body := &pacedReader{conn: c.Conn, budget: &s.budget, limit: int64(s.cfg.MaxImage) * budgetImages}
	defer body.release()
	frame, err := albatross.ReadFrame(body, s.cfg.MaxImage)
	var request albatross.Wire
	if err == nil {
		request, err = albatross.Unmarshal(frame)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return // nobody is there to be told
	case err != nil:
		s.metrics.commands.WithLabelValues("unreadable", "refused").Inc()
		s.log.Warn("refused an unreadable request", "err", err)
		s.reply(c.Conn, albatross.Header{}, albatross.Failure(err.Error()))
		return
	}
	conns.asked(c)
	answer(ctx, c.Conn, request)
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
	budget *budget
	limit  int64
	read   int64
	taken  int64
}

func (r *pacedReader) Read(p []byte) (int, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(readTime))
	n, err := r.conn.Read(p)
	r.read += int64(n)
	if want := r.read - freeBytes; want > r.taken {
		if !r.budget.take(want-r.taken, r.limit) {
			return n, errBusy
		}
		r.taken = want
	}
	return n, err
}

// release gives the budget back.
func (r *pacedReader) release() { r.budget.give(r.taken) }

// budget counts the bytes that requests hold.
type budget struct {
	mu   sync.Mutex
	used int64
}

func (b *budget) take(n, limit int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > limit {
		return false
	}
	b.used += n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
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

// asked says that the client's request has come: from now on it is not closed for another.
func (cs *connections) asked(c *connection) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.asked = true
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
