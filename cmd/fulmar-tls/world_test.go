package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/services/host/hosttest"
)

// world is a root CA, and a directory with what an endpoint needs.
type world struct {
	t    *testing.T
	dir  string
	root *remote.Authority
	pool *x509.CertPool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	hosttest.NeedRoot(t)
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil { // in the test's own namespace
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tls") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // for the user of the endpoint
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, pool: x509.NewCertPool()}
	if w.root, err = remote.NewRoot("ca", w.key(), time.Now(), time.Hour); err != nil {
		t.Fatal(err)
	}
	w.pool.AddCert(w.root.Chain[0])
	key, err := remote.NewKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	server, err := w.root.Server("server", key.Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	text, err := remote.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	w.write("server.key", text)
	w.write("server.pem", remote.EncodeCertificates(server))
	w.write("cacert.pem", remote.EncodeCertificates(w.root.Chain...))
	return w
}

func (w *world) key() crypto.Signer {
	w.t.Helper()
	key, err := remote.NewKey("ed25519")
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

func (w *world) write(name string, text []byte) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chown(path, user, user)); err != nil {
		w.t.Fatal(err)
	}
}

// env is the environment of an endpoint's process.
func (w *world) env(more ...string) []string {
	return append(os.Environ(), append([]string{
		"TLS_CERT=" + w.dir + "/server.pem", "TLS_KEY=" + w.dir + "/server.key", "TLS_CA=" + w.dir + "/cacert.pem", "TLS_RUN_DIR=" + w.dir + "/run",
	}, more...)...)
}

// build builds the program.
func (w *world) build(args ...string) string {
	w.t.Helper()
	program := filepath.Join(w.dir, "program")
	if out, err := exec.Command("go", append(append([]string{"build", "-o", program}, args...), ".")...).CombinedOutput(); err != nil {
		w.t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// The endpoint runs as a user that has no rights but to connect to the daemon's sockets.
const (
	user        = 65534
	socketGroup = 65533
)

// open lets the endpoint connect to a socket of the daemon.
func (w *world) open(socket string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "run", socket)
	if err := errors.Join(os.Chown(path, 0, socketGroup), os.Chmod(path, 0o660)); err != nil {
		w.t.Fatal(err)
	}
}

// start runs a program that listens on an inherited socket, and has no other network, until SIGTERM at the test's end, after which it
// must exit with 0.
func (w *world) start(program string) (addr string) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = errors.Join(f.Close(), l.Close()) }()
	var log bytes.Buffer
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, program)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = w.env(), []*os.File{f}, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{ // as its systemd unit has it
		Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET, Credential: &syscall.Credential{Uid: user, Gid: user, Groups: []uint32{socketGroup}},
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			w.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			w.t.Errorf("after SIGTERM: %v\n%s", err, log.String())
		}
	})
	return l.Addr().String()
}

// daemon answers creates with the size of their image, and all else with nothing.
func (w *world) daemon() {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, "run/util"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(w.dir, "run", albatross.VMMDSocket))
	if err != nil {
		w.t.Fatal(err)
	}
	w.open(albatross.VMMDSocket)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h, m, err := albatross.ReadRequest(conn, 32<<20)
			if create, ok := m.(albatross.UnikernelCreate); err == nil && ok {
				_ = albatross.WriteReply(conn, h, albatross.Image{Image: create.Config.Image[:10]})
			}
			_ = conn.Close()
		}
	})
	w.t.Cleanup(func() { _ = l.Close(); group.Wait() })
}
