package bus

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const serverStart = 30 * time.Second

// Server is an embedded nats-server with JetStream on disk. It syncs every write before it acknowledges, so what is
// acknowledged is kept.
type Server struct{ s *server.Server }

// StartServer starts a server that keeps its data in dir and listens at the address, or nowhere if that is empty.
func StartServer(dir, listen string) (*Server, error) {
	o := &server.Options{
		ServerName: "fulmar", JetStream: true, StoreDir: dir, SyncAlways: true, DontListen: listen == "",
		NoSigs: true, NoLog: true, MaxPayload: 8 << 20,
	}
	if listen != "" {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return nil, fmt.Errorf("listen address %q: %w", listen, err)
		}
		if o.Port, err = strconv.Atoi(port); err != nil || o.Port < 0 || o.Port > 65535 {
			return nil, fmt.Errorf("listen address %q: port %q is not within 0 to 65535", listen, port)
		}
		if o.Port == 0 {
			o.Port = server.RANDOM_PORT
		}
		o.Host = host
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("start the embedded bus in %s: %w", dir, err)
	}
	s.Start()
	if !s.ReadyForConnections(serverStart) {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("start the embedded bus in %s: it was not ready within %s; is %q taken, or another server using the directory?", dir, serverStart, listen)
	}
	return &Server{s}, nil
}

// URL is where the server listens.
func (s *Server) URL() string { return s.s.ClientURL() }

// Connect connects to the server within the process.
func (s *Server) Connect(name string) (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(s.s), nats.Name(name), nats.MaxReconnects(-1))
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded bus: %w", err)
	}
	return nc, nil
}

// Stop stops the server and waits until its data is on disk.
func (s *Server) Stop() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// ErrNoBus reports that no bus answered.
var ErrNoBus = errors.New("no bus answers")

// Connect connects to the bus at a URL, with a credentials file if one is named. It keeps reconnecting for ever.
func Connect(url, creds, name string) (*nats.Conn, error) {
	o := []nats.Option{nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond)}
	if creds != "" {
		o = append(o, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(url, o...)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrNoBus, url, err)
	}
	return nc, nil
}
