package remote

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fulmar/albatross"
)

// lab is a root CA, a server before a daemon, and the daemon.
type lab struct {
	t      *testing.T
	root   *Authority
	server *Server
	addr   string
	daemon *daemon
	stop   func() // ends the server, when every client is done
}

// newLab starts a server whose daemon answers by f.
func newLab(t *testing.T, cfg Config, f func(conn net.Conn, h albatross.Header, m albatross.Command)) *lab {
	t.Helper()
	l := &lab{t: t, root: newRoot(t), daemon: newDaemon(t, f)}
	key := newKey(t)
	c, err := l.root.Server("server", key.Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Certificate, cfg.CA, cfg.Dir = chainOf([]*x509.Certificate{c}, key), l.roots(), l.daemon.dir
	l.server = NewServer(cfg, slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.server.Serve(ctx, listener) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server ended: %v", err)
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *lab) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(l.root.Chain[0])
	return pool
}

// endpoint asks the server in the name of a CA.
func (l *lab) endpoint(ca *Authority) *Endpoint {
	return &Endpoint{Address: l.addr, Roots: l.roots(), CA: ca}
}

// raw sends what a client says after the handshake and returns what it hears until the server closes, and how that ended.
func (l *lab) raw(chain tls.Certificate, say []byte) ([]albatross.Wire, error) {
	l.t.Helper()
	conn, err := l.endpoint(l.root).Dial(testContext(l.t), chain)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	if _, err := conn.Write(say); err != nil {
		l.t.Logf("write: %v", err)
	}
	var heard []albatross.Wire
	for {
		frame, err := albatross.ReadFrame(conn, 1<<20)
		if errors.Is(err, io.EOF) {
			return heard, nil
		}
		if err != nil {
			return heard, err
		}
		w, err := albatross.Unmarshal(frame)
		if err != nil {
			return heard, err
		}
		heard = append(heard, w)
	}
}

// daemon answers on the three sockets.
type daemon struct {
	dir string
	mu  sync.Mutex
	saw []albatross.Wire // commands, in their order
}

func newDaemon(t *testing.T, f func(conn net.Conn, h albatross.Header, m albatross.Command)) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "util"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: dir}
	var group sync.WaitGroup
	t.Cleanup(group.Wait) // after the listeners are closed
	for _, socket := range []string{albatross.VMMDSocket, albatross.ConsoleSocket, albatross.StatsSocket} {
		l, err := net.Listen("unix", filepath.Join(dir, socket))
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				group.Go(func() { d.serve(conn, f) })
			}
		})
		t.Cleanup(func() { _ = l.Close() })
	}
	return d
}

// serve answers policies with success, as long as they allow no more than 16 unikernels, and leaves the rest to f.
func (d *daemon) serve(conn net.Conn, f func(conn net.Conn, h albatross.Header, m albatross.Command)) {
	defer func() { _ = conn.Close() }()
	for {
		h, m, err := albatross.ReadRequest(conn, 16<<20)
		if err != nil {
			return
		}
		d.mu.Lock()
		d.saw = append(d.saw, albatross.Wire{Header: h, Payload: m})
		d.mu.Unlock()
		add, ok := m.(albatross.PolicyAdd)
		if !ok {
			f(conn, h, m)
			return
		}
		if add.Policy.Unikernels > 16 {
			_ = albatross.WriteReply(conn, h, albatross.Failure("policy above allows 16 unikernels, which is fewer than 100"))
			return
		}
		_ = albatross.WriteReply(conn, h, albatross.Text("added policy"))
	}
}

// commands returns what the daemon has seen so far.
func (d *daemon) commands() []albatross.Wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]albatross.Wire(nil), d.saw...)
}

func newRoot(t *testing.T) *Authority {
	t.Helper()
	root, err := NewRoot("ca", newKey(t), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := NewKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// forged is a certificate that nobody of good will makes.
type forged struct {
	cn        string
	extension []byte // of the OID of albatross; nil if none
	ca        bool
	usage     []x509.ExtKeyUsage
	from, to  time.Duration // from now; zero means an hour before and after
	key       crypto.Signer // nil means a new one
}

// forge makes the certificates, each signed by the one before, the first by the authority. They come leaf first, without the root.
func forge(t *testing.T, by *Authority, list ...forged) tls.Certificate {
	t.Helper()
	parent, key := by.Chain[0], by.Key
	chain := by.signers()
	for _, f := range list {
		own := f.key
		if own == nil {
			own = newKey(t)
		}
		if f.from == 0 {
			f.from = -time.Hour
		}
		if f.to == 0 {
			f.to = time.Hour
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: f.cn}, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(f.from), NotAfter: time.Now().Add(f.to), IsCA: f.ca, ExtKeyUsage: f.usage, KeyUsage: leafUsage,
		}
		if f.ca {
			template.KeyUsage = caUsage
		}
		if f.extension != nil {
			template.ExtraExtensions = []pkix.Extension{{Id: albatross.ExtensionOID(), Value: f.extension}}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		key = own
		chain = append([]*x509.Certificate{parent}, chain...)
	}
	return chainOf(chain, key)
}

// extension is the value of a command.
func extension(t *testing.T, m albatross.Command) []byte {
	t.Helper()
	value, err := albatross.MarshalExtension(m)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustName(t *testing.T, s string) albatross.Name {
	t.Helper()
	n, err := albatross.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// testWriter logs what the server logs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
