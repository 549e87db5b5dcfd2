package crash_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vishvananda/netlink"

	"fulmar/bus"
	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	busAddress = "127.0.0.1:4222"
	busURL     = "nats://" + busAddress
	prefix     = "10.80.0.0/18" // addresses rest longer than a test runs
	gateway    = "10.80.0.1"

	socketGroup = 64999 // whose members may talk to the host
)

// services are those that a bus connects, in the order of the line.
var services = [...]string{"builder", "ipam", "vmm", "monitor", "nat", "gc"}

// world is an installation, with what a test looks at it with.
type world struct {
	*lab.Lab
	t       *testing.T
	image   string // file
	object  string // the same in the store
	bus     *bus.Bus
	log     *lab.Log
	members map[string]*member
	order   []*member // in which they were started
	daemons map[string]*lab.Wire

	mu    sync.Mutex
	turns map[string]*sync.Mutex // of who freezes a service
}

// newWorld installs Fulmar, with so many of each service.
func newWorld(t *testing.T, replicas int) *world {
	t.Helper()
	w := newLab(t)
	w.add("bus", lab.How{})
	w.connect()
	w.add("host", lab.How{})
	for i := range replicas {
		for _, s := range services {
			name := s
			w.turns[s] = &sync.Mutex{}
			if i > 0 {
				name = fmt.Sprintf("%s-%d", s, i+1)
			}
			w.add(name, lab.How{})
		}
	}
	w.ready()
	return w
}

// newLab makes a lab in which nothing runs yet.
func newLab(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, taps, control groups and firewall rules")
	}
	dir, err := os.MkdirTemp("", "fulmar-crash-*") // a short path: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(dir, os.Getenv(binKey))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: l, t: t, image: os.Getenv(imageKey), members: map[string]*member{}, daemons: map[string]*lab.Wire{}, turns: map[string]*sync.Mutex{}}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.end)
	return w
}

// add starts a member.
func (w *world) add(name string, how lab.How) *member {
	w.t.Helper()
	command, _, _ := strings.Cut(name, "-")
	m := &member{name: name}
	until, args := `"service started"`, []string(nil)
	switch command {
	case "bus":
		command, until, args = "fulmar", "the bus is up", []string{"bus", "--data", filepath.Join(w.Dir, "data"), "--listen", busAddress}
	case "host":
		until, args = `"host started"`, []string{"--run-dir", w.RunDir(), "--state-dir", w.StateDir(), "--cgroup", w.Cgroup}
	default:
		m.wire = w.wire(func() (*lab.Wire, error) { return lab.NewBusWire(busAddress) })
		args = append(w.args(name, command), "--nats", m.wire.URL())
	}
	if how.Env == nil {
		how.Env = []string{"XTABLES_LOCKFILE=" + filepath.Join(w.Dir, "xtables.lock")}
	}
	m.start = func() (*lab.Process, error) { return w.StartAs(how, command, until, args...) }
	w.members[name] = m
	w.order = append(w.order, m)
	m.run()
	if _, err := m.running(w.patient(w.t)); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// args is the command line of a service.
func (w *world) args(name, command string) []string {
	switch command {
	case "builder":
		return []string{"--file-root", w.Dir}
	case "ipam":
		return []string{"--sweep", "1s"}
	case "vmm":
		dir := filepath.Join(w.Dir, "to-"+name)
		w.daemons[name] = w.wire(func() (*lab.Wire, error) { return w.NewDaemonWire(dir, socketGroup) })
		return []string{"--host", lab.HostName, "--dir", dir, "--cache", filepath.Join(w.Dir, "images")}
	}
	return []string{"--host", lab.HostName}
}

func (w *world) wire(make func() (*lab.Wire, error)) *lab.Wire {
	w.t.Helper()
	wire, err := make()
	if err != nil {
		w.t.Fatal(err)
	}
	return wire
}

// end stops everything, the bus last, and fails the test for every member that ended by itself.
func (w *world) end() {
	for _, m := range slices.Backward(w.order) {
		starts, complaints := m.end()
		if m.wire != nil {
			m.wire.Close()
		}
		if starts > 1 {
			w.t.Logf("%s was started %d times", m.name, starts)
		}
		for _, c := range complaints {
			w.t.Error(c)
		}
	}
	for _, d := range w.daemons {
		d.Close()
	}
	if w.t.Failed() {
		w.showLogs()
	}
}

// showLogs shows what was wrong by what the processes have said, and keeps the rest as artifacts.
func (w *world) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(w.Dir, "*.log"))
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(w.t.ArtifactDir(), filepath.Base(name)), text, 0o644)
		}
		if err != nil {
			w.t.Error(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "{") || strings.Contains(line, `"level":"ERROR"`) {
				w.t.Logf("%s says: %s", filepath.Base(name), strings.TrimSpace(line))
			}
		}
	}
}

// connect opens the bus and follows its log until the test ends.
func (w *world) connect() {
	w.t.Helper()
	nc, err := bus.Connect(busURL, "", "crash")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	if w.bus, err = bus.Open(w.t.Context(), nc, bus.Options{Service: "crash"}); err != nil {
		w.t.Fatal(err)
	}
	if w.log, err = lab.Follow(context.WithoutCancel(w.t.Context()), w.bus); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.log.Close)
}

// ready makes the network with its bridge, stores the image, and waits until the host is known.
func (w *world) ready() {
	w.t.Helper()
	ctx := w.patient(w.t)
	n := &fulmarv1.Network{Name: "default", Host: lab.HostName, Bridge: lab.Bridge, Prefix: prefix, Gateway: gateway}
	if err := errors.Join(makeBridge(), w.bus.Networks.Put(ctx, n.GetName(), n, 0)); err != nil {
		w.t.Fatal(err)
	}
	image, err := os.ReadFile(w.image)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := sha256.Sum256(image)
	w.object = hex.EncodeToString(sum[:])
	if _, err := w.bus.Images.PutBytes(ctx, w.object, image); err != nil {
		w.t.Fatal(err)
	}
	w.until(w.t, func(ctx context.Context) error {
		_, rev, err := w.bus.Hosts.Get(ctx, lab.HostName)
		if err == nil && rev == 0 {
			err = errors.New("vmm has not told what its host runs")
		}
		return err
	})
}

func makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = lab.Bridge
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	p := netip.MustParsePrefix(prefix)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(gateway), Mask: net.CIDRMask(p.Bits(), 32)}}
	if err := errors.Join(netlink.AddrAdd(bridge, address), netlink.LinkSetUp(bridge)); err != nil {
		return fmt.Errorf("set up the bridge: %w", err)
	}
	return nil
}

// patient gives a context for what must happen.
func (w *world) patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// until polls until f is nil. Each time it has a second: a bus that is killed does not answer.
func (w *world) until(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx := w.patient(t)
	err := lab.Until(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return f(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// nothingLeft fails the test unless nothing of any deployment is left.
func (w *world) nothingLeft() {
	w.t.Helper()
	w.until(w.t, func(ctx context.Context) error {
		left, err := w.Remains(ctx, w.bus)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return err
	})
}

// request stores a request, and asks again until it is known to be stored, under one id so that it is stored once. It
// gives its generation.
func (w *world) request(t *testing.T, kind fulmarv1.Kind, stack, id, body string) uint64 {
	t.Helper()
	var generation uint64
	w.until(t, func(ctx context.Context) error {
		ack, err := w.bus.JS.Publish(ctx, messages.RequestSubject(kind, stack), []byte(body), jetstream.WithMsgID(id))
		if err == nil {
			generation = ack.Sequence
		}
		return err
	})
	return generation
}

// head reads the head of a stack; a bus that is killed meanwhile is asked again.
func (w *world) head(t *testing.T, stack string) *fulmarv1.Head {
	t.Helper()
	var head *fulmarv1.Head
	w.until(t, func(ctx context.Context) (err error) {
		head, _, err = w.bus.Heads.Get(ctx, stack)
		return err
	})
	return head
}
