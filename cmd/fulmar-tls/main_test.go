package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	for _, socket := range []string{albatross.VMMDSocket, albatross.ConsoleSocket, albatross.StatsSocket} {
		w.open(socket)
	}
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
	if err := c.Destroy(ctx, name); err != nil { // as albatross answers it: it is no more waited for
		t.Errorf("a second destroy: %v", err)
	}
	if err := c.Destroy(ctx, name); !errors.Is(err, albatross.ErrNotFound) {
		t.Errorf("a third destroy: %v", err)
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
