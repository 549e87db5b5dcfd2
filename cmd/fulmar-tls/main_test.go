package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

func TestMain(m *testing.M) {
	hosttest.Main(func() { goleak.VerifyTestMain(m) })
}

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
	if err := os.WriteFile(filepath.Join(w.dir, name), text, 0o600); err != nil {
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

// start runs a program that listens on an inherited socket, until SIGTERM at the test's end, after which it must exit with 0.
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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
	if err := os.MkdirAll(filepath.Join(w.dir, "run/util"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(w.dir, "run", albatross.VMMDSocket))
	if err != nil {
		w.t.Fatal(err)
	}
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

// TestCertificatesMayHoldImages sends a create as albatross's own clients do: with the image in the certificate.
func TestCertificatesMayHoldImages(t *testing.T) {
	w := newWorld(t)
	w.daemon()
	overlay, err := exec.Command("./overlay", w.dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	endpoint := &remote.Endpoint{Address: w.start(w.build("-overlay", strings.TrimSpace(string(overlay)))), Roots: w.pool}
	image := make([]byte, 6<<20)
	if _, err := rand.Read(image); err != nil {
		t.Fatal(err)
	}
	if got, err := w.create(endpoint, image); err != nil || !bytes.Equal(got, image[:10]) {
		t.Errorf("got %x, %v", got, err)
	}
	if _, err := w.create(endpoint, make([]byte, 17<<20)); err == nil {
		t.Error("17 MB were taken")
	}
}

// create asks for a create with the image in the certificate, and returns the start of the image that the daemon has heard.
func (w *world) create(endpoint *remote.Endpoint, image []byte) ([]byte, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	name, err := albatross.ParseName("web")
	if err != nil {
		return nil, err
	}
	leaf, err := w.root.Leaf(name, albatross.UnikernelCreate{Config: albatross.Config{Image: image, Args: albatross.Args{CPUs: 1}}}, time.Now())
	if err != nil {
		return nil, err
	}
	conn, err := endpoint.Dial(ctx, leaf)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	frame, err := albatross.ReadFrame(conn, 1<<20)
	if err != nil {
		return nil, err
	}
	m, err := albatross.Unmarshal(frame)
	if err != nil {
		return nil, err
	}
	got, ok := m.Payload.(albatross.Image)
	if !ok {
		return nil, albatross.ErrUnexpected
	}
	return got.Image, nil
}

// TestInetd hands one connection over on standard input.
func TestInetd(t *testing.T) {
	w := newWorld(t)
	w.daemon()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	program := w.build()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		f, err := conn.(*net.TCPConn).File()
		if err != nil {
			done <- err
			return
		}
		_ = conn.Close()
		cmd := exec.Command(program, "--inetd")
		cmd.Env, cmd.Stdin = w.env(), f
		out, err := cmd.CombinedOutput()
		_ = f.Close()
		t.Logf("%s", out)
		done <- err
	}()
	image := bytes.Repeat([]byte("image"), 1000)
	if got, err := w.create(&remote.Endpoint{Address: l.Addr().String(), Roots: w.pool}, image); err != nil || !bytes.Equal(got, image[:10]) {
		t.Errorf("got %x, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Errorf("the endpoint ended with %v", err)
	}
}

func TestItSaysWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	good := config{Cert: w.dir + "/server.pem", Key: w.dir + "/server.key", CA: w.dir + "/cacert.pem"}
	log := slog.New(slog.DiscardHandler)
	for want, change := range map[string]func(*config){
		"nothing to listen on": func(*config) {},
		"read root CA":         func(c *config) { c.CA = w.dir + "/nosuch.pem" },
		"no certificate":       func(c *config) { c.CA = w.dir + "/server.key" },
		"certificate and key":  func(c *config) { c.Key = w.dir + "/cacert.pem" },
		"listen for clients":   func(c *config) { c.Listen = "127.0.0.1:99999" },
	} {
		cfg := good
		change(&cfg)
		if err := serve(t.Context(), cfg, log); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestUnikernelsAreManagedFromAfar runs a real unikernel on a real host, by certificates alone.
func TestUnikernelsAreManagedFromAfar(t *testing.T) {
	w := newWorld(t)
	cfg := host.Config{RunDir: filepath.Join(w.dir, "run"), StateDir: filepath.Join(w.dir, "state"), Cgroup: "fulmar-test-" + filepath.Base(w.dir), UIDBase: 720000}
	svc, err := host.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("host ended: %v", err)
		}
		for _, controller := range []string{"memory", "pids", ""} {
			_ = os.Remove(filepath.Join("/sys/fs/cgroup", controller, cfg.Cgroup))
		}
	})
	<-svc.Ready()
	endpoint := &remote.Endpoint{Address: w.start(w.build()), Roots: w.pool, CA: w.plainCA()}
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	c := endpoint.Client()
	name, err := albatross.ParseName("web")
	if err != nil {
		t.Fatal(err)
	}
	image, err := albatross.Compress(hosttest.Guest(t, 0), 6)
	if err != nil {
		t.Fatal(err)
	}
	args := albatross.Args{Memory: 32, CPUIDs: []int{0}, Arguments: []string{"args", "first"}}
	create := func() error { return c.Create(ctx, name, albatross.Config{Compressed: true, Image: image, Args: args}) }
	if err := create(); err != nil {
		t.Fatal(err)
	}
	if err := create(); !errors.Is(err, albatross.ErrExists) {
		t.Errorf("a second create: %v", err)
	}
	w.checkConsole(ctx, c, name, "first")
	args.Arguments = []string{"args", "second"}
	if err := c.RestartWith(ctx, name, args); err != nil {
		t.Error(err)
	}
	w.checkConsole(ctx, c, name, "second")
	list, err := c.Info(ctx, albatross.Name{})
	if err != nil || len(list) != 1 || list[0].Name != name || list[0].Memory != 32 {
		t.Errorf("info: %+v, %v", list, err)
	}
	if err := c.Destroy(ctx, name); err != nil {
		t.Error(err)
	}
	if err := c.Destroy(ctx, name); !errors.Is(err, albatross.ErrNotFound) {
		t.Errorf("a second destroy: %v", err)
	}
	w.checkDelegation(ctx, endpoint, image)
}

// checkDelegation starts unikernels in a path that was delegated, within its policy and beyond.
func (w *world) checkDelegation(ctx context.Context, endpoint *remote.Endpoint, image []byte) {
	w.t.Helper()
	user, err := w.root.Delegate("user", albatross.Policy{CPUIDs: []int{0}, Unikernels: 1, Memory: 48}, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	c := (&remote.Endpoint{Address: endpoint.Address, Roots: w.pool, CA: user}).Client()
	create := func(name string, memory int) error {
		n, err := albatross.ParseName(name)
		if err != nil {
			w.t.Fatal(err)
		}
		args := albatross.Args{Memory: memory, CPUIDs: []int{0}, Arguments: []string{"args", "delegated"}}
		return c.Create(ctx, n, albatross.Config{Compressed: true, Image: image, Args: args})
	}
	if err := create("user:large", 64); !errors.Is(err, albatross.ErrPolicy) {
		w.t.Errorf("more memory than allowed: %v", err)
	}
	if err := create("user:one", 32); err != nil {
		w.t.Error(err)
	}
	if err := create("user:two", 8); !errors.Is(err, albatross.ErrPolicy) {
		w.t.Errorf("more unikernels than allowed: %v", err)
	}
	if err := create("other", 8); !errors.Is(err, albatross.ErrName) {
		w.t.Errorf("outside of the path: %v", err)
	}
	name, err := albatross.ParseName("user:one")
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkConsole(ctx, c, name, "delegated")
	if err := c.Destroy(ctx, name); err != nil {
		w.t.Error(err)
	}
}

// plainCA is a CA without a policy between the root and the leaves.
func (w *world) plainCA() *remote.Authority {
	w.t.Helper()
	key := w.key()
	template := *w.root.Chain[0]
	template.Subject.CommonName, template.RawSubject, template.SubjectKeyId = "plain", nil, []byte("plain")
	der, err := x509.CreateCertificate(rand.Reader, &template, w.root.Chain[0], key.Public(), w.root.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	plain, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return &remote.Authority{Chain: []*x509.Certificate{plain, w.root.Chain[0]}, Key: key}
}

// checkConsole waits until a unikernel has said something.
func (w *world) checkConsole(ctx context.Context, c *albatross.Client, name albatross.Name, want string) {
	w.t.Helper()
	said := errors.New("said")
	err := c.Subscribe(ctx, name, albatross.ConsoleSubscribe{Count: 100}, func(line albatross.ConsoleLine) error {
		if strings.Contains(line.Line, want) {
			return said
		}
		return nil
	})
	if !errors.Is(err, said) {
		w.t.Errorf("console: %v, want %q", err, want)
	}
}
