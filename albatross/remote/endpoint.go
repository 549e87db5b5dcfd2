package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"fulmar/albatross"
)

// imageChunk is the size of the frames in which an image is sent.
const imageChunk = 64 << 10

// What can be wrong between a client and an endpoint.
var (
	// ErrServer reports an endpoint that is not who it should be.
	ErrServer = errors.New("remote: endpoint is not to be trusted")
	// ErrRefused reports an endpoint that does not trust our certificate.
	ErrRefused = errors.New("remote: endpoint refused the certificate")
)

// Endpoint is a TLS endpoint, and the CA in whose name it is asked.
type Endpoint struct {
	Address string         // host and port
	Roots   *x509.CertPool // that sign the endpoint's certificate
	CA      *Authority     // which signs a certificate for each command
}

// Client returns a client of the daemon behind the endpoint. It knows names in the CA's path, and the path itself.
// Policies cannot be set by it: [Authority.Delegate] does that.
func (e *Endpoint) Client() *albatross.Client { return &albatross.Client{Open: e.Open} }

// Open asks the endpoint, as [albatross.Client] wants it: with a certificate that carries the command, whose image follows.
func (e *Endpoint) Open(ctx context.Context, name albatross.Name, m albatross.Command) (net.Conn, error) {
	var image []byte
	if create, ok := m.(albatross.UnikernelCreate); ok {
		if len(create.Config.Image) == 0 {
			return nil, fmt.Errorf("%w: the image is empty", albatross.ErrValue)
		}
		image, create.Config.Image = create.Config.Image, nil
		m = create
	}
	leaf, err := e.CA.Leaf(name, m, time.Now())
	if err != nil {
		return nil, err
	}
	conn, err := e.Dial(ctx, leaf)
	if err != nil || image == nil {
		return conn, err
	}
	return SendImage(ctx, conn, image), nil
}

// Dial connects to the endpoint with a certificate that carries a command. What the endpoint says next is the answer; an
// [ErrRefused] shows when it is read.
func (e *Endpoint) Dial(ctx context.Context, certificate tls.Certificate) (net.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{
		Certificates: []tls.Certificate{certificate},
		MinVersion:   tls.VersionTLS13,
		// The certificates of endpoints have a common name and no name that Go would look at: the chain is verified below.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return checkServer(cs.PeerCertificates, e.Roots) },
	}}
	conn, err := d.DialContext(ctx, "tcp", e.Address)
	if err != nil {
		if context.Cause(ctx) != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, fmt.Errorf("dial endpoint %s: %w", e.Address, err)
	}
	return &answers{Conn: conn}, nil
}

// checkServer says what is wrong with an endpoint's certificates. Those who may sign commands may not sign endpoints: they
// could have the commands of others sent to them.
func checkServer(peer []*x509.Certificate, roots *x509.CertPool) error {
	chain, err := verify(peer, roots, x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrServer, err)
	}
	if peer[0].IsCA {
		return fmt.Errorf("%w: its certificate is of a CA", ErrServer)
	}
	for _, c := range chain[:len(chain)-1] {
		if delegated(c) {
			return fmt.Errorf("%w: its certificate is of %q, which is a client", ErrServer, c.Subject.CommonName)
		}
	}
	return nil
}

// SendImage sends what follows the certificate of a create without an image. The connection that it returns stands for conn and
// tells what went wrong if there is no answer: an endpoint that takes no more says why.
func SendImage(ctx context.Context, conn net.Conn, image []byte) net.Conn {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for chunk := range slices.Chunk(image, imageChunk) {
		if err := albatross.WriteFrame(conn, chunk); err != nil {
			return &halfSent{Conn: conn, err: fmt.Errorf("send image: %w", err)}
		}
	}
	if err := albatross.WriteFrame(conn, nil); err != nil {
		return &halfSent{Conn: conn, err: fmt.Errorf("send image: %w", err)}
	}
	return conn
}

// answers is a connection to an endpoint.
type answers struct{ net.Conn }

// Read implements net.Conn. A TLS 1.3 client hears only here that the endpoint does not want it.
func (a *answers) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return n, err
}

// halfSent is a connection to which not all was sent: the answer may say why.
type halfSent struct {
	net.Conn
	err error
}

// Read implements net.Conn.
func (h *halfSent) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if err != nil {
		err = errors.Join(err, h.err)
	}
	return n, err
}
