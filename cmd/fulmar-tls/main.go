// Command fulmar-tls is the TLS endpoint before an albatross daemon or Fulmar's host: it carries out the commands that stand in
// the certificates of its clients. It needs no rights but to connect to the daemon's sockets.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/oklog/run"

	"fulmar/albatross/remote"
)

type config struct {
	Cert        string `env:"TLS_CERT" default:"/etc/fulmar/tls/server.pem" help:"Certificate of this endpoint, and those up to the root if it did not sign it."`
	Key         string `env:"TLS_KEY" default:"/etc/fulmar/tls/server.key" help:"Private key of the certificate."`
	CA          string `name:"ca" env:"TLS_CA" default:"/etc/fulmar/tls/cacert.pem" help:"Root CA that signs clients, or delegates to CAs that do."`
	RunDir      string `env:"TLS_RUN_DIR" default:"/run/fulmar" help:"Run directory of the daemon, with util/vmmd.sock, util/console.sock and util/stat.sock."`
	Listen      string `env:"TLS_LISTEN" placeholder:"ADDR" help:"Address to listen on, such as :1025. Empty: the sockets that systemd hands over."`
	Inetd       bool   `help:"Serve the one connection on standard input, and end."`
	MaxImage    int    `env:"TLS_MAX_IMAGE" default:"256" help:"Largest image, in MB."`
	Connections int    `env:"TLS_CONNECTIONS" default:"128" help:"Connections at once at most; one path that the root delegated has at most a quarter, with all below it."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("fulmar-tls"), kong.Description("TLS endpoint for remote management: carries out the commands in the certificates of its clients."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("service", "tls")
	if err := serve(context.Background(), cfg, log); err != nil && !errors.Is(err, run.ErrSignal) {
		log.Error("endpoint stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	server, err := newServer(cfg, log)
	if err != nil {
		return err
	}
	var g run.Group
	if cfg.Inetd {
		conn, err := net.FileConn(os.Stdin)
		if err != nil {
			return fmt.Errorf("take standard input as a connection: %w", err)
		}
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { server.ServeConn(ctx, conn); return nil }, func(error) { cancel() })
	} else {
		listeners, err := listen(cfg.Listen)
		if err != nil {
			return err
		}
		for _, l := range listeners {
			ctx, cancel := context.WithCancel(ctx)
			g.Add(func() error { return server.Serve(ctx, l) }, func(error) { cancel() })
			log.Info("endpoint listened", "addr", l.Addr().String())
		}
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			return fmt.Errorf("notify systemd: %w", err)
		}
	}
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))
	return g.Run()
}

// newServer reads the files of a configuration.
func newServer(cfg config, log *slog.Logger) (*remote.Server, error) {
	certificate, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate and key of the endpoint: %w", err)
	}
	text, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("read root CA: %w", err)
	}
	roots, err := remote.DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read root CA %s: %w", cfg.CA, err)
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	return remote.NewServer(remote.Config{
		Certificate: certificate, CA: pool, Dir: cfg.RunDir, MaxImage: cfg.MaxImage << 20, Connections: cfg.Connections,
	}, log), nil
}

// listen opens an address, or takes the sockets that systemd hands over.
func listen(addr string) ([]net.Listener, error) {
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for clients: %w", err)
		}
		return []net.Listener{l}, nil
	}
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take over sockets: %w", err)
	}
	listeners = slices.DeleteFunc(listeners, func(l net.Listener) bool { return l == nil }) // a socket of another kind
	if len(listeners) == 0 {
		return nil, errors.New("nothing to listen on: give --listen ADDR, --inetd, or sockets by systemd")
	}
	return listeners, nil
}
