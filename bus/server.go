package bus

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"fulmar/messages"
)

const serverStart = 30 * time.Second

// Server is an embedded nats-server with JetStream on disk. It syncs every write before it acknowledges, so what is
// acknowledged is kept.
type Server struct {
	s    *server.Server
	lock *os.File // held while it runs: of one directory there is one server
}

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
	lock, err := reserve(dir, listen)
	if err != nil {
		return nil, fmt.Errorf("start the embedded bus: %w", err)
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the embedded bus in %s: %w", dir, err), lock.Close())
	}
	b := &Server{s, lock}
	s.Start()
	if !s.ReadyForConnections(serverStart) {
		b.Stop()
		return nil, fmt.Errorf("start the embedded bus in %s: it was not ready within %s", dir, serverStart)
	}
	return b, nil
}

// reserve locks the directory, because two servers would spoil the data of one another, and sees that the address is
// free. The server itself would look for neither, or look for long.
func reserve(dir, listen string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make its directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock its directory: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another one uses the directory %s", dir)
	}
	if err == nil && listen != "" {
		var l net.Listener
		if l, err = net.Listen("tcp", listen); err == nil {
			err = l.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
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
	_ = s.lock.Close() // nothing was written to it
}

// ErrNoBus reports that no bus answered.
var ErrNoBus = errors.New("no bus answers")

// Connect connects to the bus at a URL, or at the first of several that answers, with a credentials file if one is named. It keeps reconnecting for ever.
func Connect(urls, creds, name string) (*nats.Conn, error) {
	o := []nats.Option{nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond)}
	if creds != "" {
		o = append(o, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(urls, o...)
	if bad, ok := errors.AsType[*url.Error](err); ok {
		err = bad.Err // its text has the password
	}
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrNoBus, shown(urls), err)
	}
	return nc, nil
}

// shown gives URLs, separated by commas, without the credentials in them.
func shown(urls string) string {
	var list []string
	for u := range strings.SplitSeq(urls, ",") {
		list = append(list, messages.ShownURL(strings.TrimSpace(u)))
	}
	return strings.Join(list, ",")
}
