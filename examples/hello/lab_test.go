package hello_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"fulmar/examples/hello"
	"fulmar/netspace"
	"fulmar/solo5"
)

const (
	guestIP   = "10.9.0.7"
	guestAddr = guestIP + ":80"
	hostIP    = "10.9.0.1"
	tapName   = "tap0"
)

// guestMAC is fixed, so that a test can send frames to it without asking.
var guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 7}

// image is the unikernel under test, built once by TestMain.
var image string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "hello-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if image, err = hello.Build(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if code == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return code
	}())
}

// A lab is a network namespace with a tap, on which the namespace has hostIP
// and a guest is to have guestIP.
type lab struct {
	t  testing.TB
	ns *netspace.Space
	// tap stays open, so that its carrier does not come and go with guests.
	tap *os.File
	mtu int
	// image is what runs, and prepare makes it run.
	image   string
	prepare func(solo5.Guest) (*solo5.Tender, error)
}

// newLab makes a namespace without a name: it is gone with the test's process
// at the latest.
func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: a network namespace cannot be made")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("no taps here:", err)
	}
	l := &lab{t: t, image: image, prepare: solo5.PrepareSPT}
	var err error
	if l.ns, err = netspace.New(); err != nil {
		t.Fatal(err)
	}
	err = l.do(func() error {
		if err := makeTap(); err != nil {
			return err
		}
		return l.openTap()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.tap.Close(), l.ns.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// makeTap makes the tap in the calling thread's namespace.
func makeTap() error {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: tapName},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("make tap: %w", err)
	}
	// The kernel's own IPv6 chatter would wake the guest.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+tapName+"/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	addr, err := netlink.ParseAddr(hostIP + "/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(tap, addr); err != nil {
		return fmt.Errorf("give tap its address: %w", err)
	}
	return netlink.LinkSetUp(tap)
}

// openTap opens the tap and waits until the kernel has noticed that it has a
// carrier: what is sent before that is lost, and an ARP request comes again
// only after a second.
func (l *lab) openTap() (err error) {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return fmt.Errorf("watch tap: %w", err)
	}
	if l.tap, l.mtu, err = solo5.OpenTap(tapName); err != nil {
		close(done)
	}
	up := false
	for update := range updates { // until it is closed, after done is
		if !up && update.Attrs().Name == tapName && update.Attrs().OperState == netlink.OperUp {
			up = true
			close(done)
		}
	}
	return err
}

// do runs fn in the lab's namespace.
func (l *lab) do(fn func() error) error { return l.ns.Do(fn) }

// run runs a command in the lab's namespace and returns its output.
func (l *lab) run(ctx context.Context, name string, args ...string) string {
	l.t.Helper()
	var out []byte
	err := l.do(func() (err error) {
		out, err = exec.CommandContext(ctx, name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dial connects from within the lab's namespace.
func (l *lab) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := l.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// connect is dial for a test that needs the connection.
func (l *lab) connect(ctx context.Context, network, addr string) net.Conn {
	l.t.Helper()
	conn, err := l.dial(ctx, network, addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			l.t.Fatal(err)
		}
	}
	return conn
}

// client returns an HTTP client in the lab's namespace that keeps up to
// connections of them.
func (l *lab) client(connections int) *http.Client {
	transport := &http.Transport{DialContext: l.dial, MaxIdleConnsPerHost: connections, DisableCompression: true}
	l.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A guest is a running unikernel.
type guest struct {
	t       testing.TB
	cmd     *exec.Cmd
	console *console
	ended   chan struct{} // closed after cmd.Wait
}

// console collects what the guest writes.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
	line chan struct{} // closed when the first line is complete
	once sync.Once
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	if bytes.ContainsRune(p, '\n') {
		c.once.Do(func() { close(c.line) })
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// launch starts a guest with 8 MB of memory, which the README promises to be
// enough.
func (l *lab) launch(args ...string) *guest {
	l.t.Helper()
	file, err := os.Open(l.image)
	if err != nil {
		l.t.Fatal(err)
	}
	defer file.Close()
	tender, err := l.prepare(solo5.Guest{
		Image:  file,
		Memory: 8,
		Nets:   []solo5.Net{{Name: "service", Tap: l.tap, MAC: guestMAC, MTU: l.mtu}},
		Args:   args,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	defer tender.Close()
	cmd, err := tender.Command()
	if err != nil {
		l.t.Fatal(err)
	}
	g := &guest{t: l.t, cmd: cmd, console: &console{line: make(chan struct{})}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = g.console, g.console
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the exit status is in cmd.ProcessState
		close(g.ended)
	}()
	l.t.Cleanup(func() {
		g.kill()
		if l.t.Failed() {
			l.t.Logf("console:\n%s", g.console)
		}
	})
	return g
}

// start launches a guest at guestIP and waits until it is ready.
func (l *lab) start(ctx context.Context, args ...string) *guest {
	l.t.Helper()
	g := l.launch(append([]string{"--ipv4=" + guestIP + "/24", "--ipv4-gateway=" + hostIP}, args...)...)
	g.waitReady(ctx)
	return g
}

// waitReady waits for the line that says that the guest serves.
func (g *guest) waitReady(ctx context.Context) {
	g.t.Helper()
	select {
	case <-g.console.line:
	case <-g.ended:
		g.t.Fatalf("guest ended: %v, console: %s", g.cmd.ProcessState, g.console)
	case <-ctx.Done():
		g.t.Fatal(ctx.Err())
	}
}

// kill ends the guest, if it has not ended.
func (g *guest) kill() {
	_ = g.cmd.Process.Kill()
	<-g.ended
}

// exitStatus waits for the guest's end.
func (g *guest) exitStatus(ctx context.Context) int {
	g.t.Helper()
	select {
	case <-g.ended:
		return g.cmd.ProcessState.ExitCode()
	case <-ctx.Done():
		g.t.Fatal("guest did not end:", ctx.Err())
		return -1
	}
}

// testContext ends before the whole test run would.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
