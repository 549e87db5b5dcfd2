package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"fulmar/albatross"
)

const (
	defaultConnections = 128
	defaultMaxImage    = 256 << 20
	speakTime          = 30 * time.Second // in which a client has said what it has to, and a second more for each minRate bytes
	minRate            = 16 << 10
	writeTime          = 10 * time.Second // in which a client takes what it is sent, and a daemon
	replyTime          = 2 * time.Minute  // in which a daemon answers
	lingerTime         = 2 * time.Second  // for a client to see why it is not read any more
	graceTime          = 10 * time.Second // for commands that are being carried out when the server ends
	freeBytes          = 64 << 10         // of an image, that count towards no budget
	budgetImages       = 2                // times MaxImage: what the images of all clients may hold
)

// ErrBusy reports that the clients hold as many images or connections as they may.
var ErrBusy = errors.New("remote: too much at once, try again")

// ErrNoDaemon reports that the daemon's socket cannot be reached.
var ErrNoDaemon = errors.New("remote: the daemon cannot be reached")

// ErrTooLarge reports an image above the limit.
var ErrTooLarge = errors.New("remote: image too large")

// Config is what a Server works with.
type Config struct {
	Certificate tls.Certificate // of the server, with its key
	CA          *x509.CertPool  // the root that signs clients
	Dir         string          // run directory of the daemon, which holds util/vmmd.sock, util/console.sock and util/stat.sock
	MaxImage    int             // largest image and answer, in bytes; 0 means 256 MB
	Connections int             // at most so many at once, and a quarter of them of one path that the root delegated, with what is below it; 0 means 128

	speak time.Duration // in place of speakTime, for tests
}

// Server is a TLS endpoint before a daemon.
type Server struct {
	cfg    Config
	log    *slog.Logger
	daemon *albatross.Client
	conns  *connections
	images atomic.Int64 // bytes that clients hold
}

// NewServer makes a server.
func NewServer(cfg Config, log *slog.Logger) *Server {
	if cfg.MaxImage <= 0 {
		cfg.MaxImage = defaultMaxImage
	}
	if cfg.Connections <= 0 {
		cfg.Connections = defaultConnections
	}
	if cfg.speak == 0 {
		cfg.speak = speakTime
	}
	return &Server{
		cfg: cfg, log: log, daemon: &albatross.Client{Dir: cfg.Dir}, conns: newConnections(cfg.Connections),
	}
}

// Serve answers those who connect until ctx ends, and then waits for the commands that are being carried out, for ten seconds
// at most. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer s.conns.wait()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case exhausted(err):
			s.log.Error("could not accept a connection", "err", err)
			pause(ctx)
			continue
		case err != nil:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		s.conns.group.Go(func() { s.ServeConn(ctx, conn) })
	}
}

// exhausted says whether an error of accept is of a shortage that passes.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause gives a shortage time to pass.
func pause(ctx context.Context) {
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ServeConn answers one client and closes the connection. It returns when that is done.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	log := s.log.With("client", conn.RemoteAddr().String())
	c := s.conns.add(conn)
	if c == nil {
		log.Warn("refused a connection, there are too many")
		return
	}
	defer s.conns.remove(c)
	k, chain, err := s.handshake(ctx, conn)
	if err != nil {
		log.Info("refused a client", "err", err)
		return
	}
	defer func() { _ = k.Close() }() // says close_notify
	request, err := ReadChain(chain)
	switch {
	case errors.Is(err, ErrChainTooLong):
		log.Info("refused a client", "err", err)
		k.fail(albatross.Header{}, err)
		return
	case err != nil: // as albatross does: no answer
		log.Info("refused a certificate", "err", err)
		return
	}
	log = log.With("unikernel", request.Name.String(), "command", fmt.Sprintf("%T", request.Command))
	if !s.conns.authenticated(c, request.Name.Path()) {
		log.Warn("refused a connection, there are too many of its path")
		k.fail(albatross.Header{Name: request.Name}, ErrBusy)
		return
	}
	begin := time.Now()
	if err := s.answer(ctx, k, request); err != nil {
		log.Info("could not carry out a command", "err", err, "dur", time.Since(begin))
		return
	}
	log.Info("relayed a command", "dur", time.Since(begin))
}

// handshake returns the connection of a client that the root signed, and the client's chain.
func (s *Server) handshake(ctx context.Context, conn net.Conn) (*client, []*x509.Certificate, error) {
	var chain []*x509.Certificate
	paced := &pacedConn{Conn: conn}
	paced.expect(s.cfg.speak, minRate)
	k := &client{paced: paced, Conn: tls.Server(paced, &tls.Config{
		Certificates: []tls.Certificate{s.cfg.Certificate},
		MinVersion:   tls.VersionTLS13,
		// Neither the list of CAs nor the extended key usage is asked for: certificates of albatross have any or none.
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // a command is carried out once
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			chain, err = verify(cs.PeerCertificates, s.cfg.CA, x509.ExtKeyUsageAny, time.Now())
			return err
		},
	})}
	if err := k.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("shake hands: %w", err)
	}
	return k, chain, nil
}

// client is the connection of a client.
type client struct {
	*tls.Conn
	paced *pacedConn
}

// fail answers a command with a failure. A client that does not take it is left to itself.
func (k *client) fail(to albatross.Header, err error) {
	message := err.Error()
	if errors.Is(err, ErrNoDaemon) {
		message = ErrNoDaemon.Error() // where its socket should be is not the client's business
	}
	_ = albatross.WriteReply(k, to, albatross.Failure(message))
}

// writer collects what is written into whole TLS records.
func (k *client) writer() *bufio.Writer { return bufio.NewWriterSize(k, 16<<10) }

// linger lets a client that still sends see the answer: a close would reset the connection and could take the answer with it.
func (k *client) linger() {
	if k.CloseWrite() != nil {
		return
	}
	k.paced.expect(lingerTime, 0)
	_, _ = io.Copy(io.Discard, k)
}

// pacedConn ends a connection whose other side is too slow.
type pacedConn struct {
	net.Conn
	start  time.Time // zero: the other side may be silent
	within time.Duration
	rate   int64
	read   int64
}

// expect says that the other side has something to say from now on: all of it within a time, or if there is a rate, more time for
// more bytes.
func (c *pacedConn) expect(within time.Duration, rate int64) {
	c.start, c.within, c.rate, c.read = time.Now(), within, rate, 0
}

// idle says that the other side may be silent.
func (c *pacedConn) idle() { c.start, c.rate = time.Time{}, 0 }

// Read implements net.Conn.
func (c *pacedConn) Read(p []byte) (int, error) {
	var deadline time.Time
	if !c.start.IsZero() {
		deadline = c.start.Add(c.within)
	}
	if c.rate > 0 {
		deadline = deadline.Add(time.Duration(c.read) * time.Second / time.Duration(c.rate))
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.read += int64(n)
	return n, err
}

// Write implements net.Conn.
func (c *pacedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
