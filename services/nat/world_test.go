package nat

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"

	"github.com/vishvananda/netlink"
)

const (
	testHost = "host1"
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

// world is a host with a bus, a bridge for instances, and a client outside.
type world struct {
	backend firewall.Backend
	server  *bus.Server
	bus     *bus.Bus // the test's own
	bridge  netlink.Link
	client  *nstest.Space
	events  <-chan *fulmarv1.Event
}

// eachBackend runs a test in a world of its own with each backend of the firewall.
func eachBackend(t *testing.T, test func(t *testing.T, w *world)) {
	for _, backend := range []firewall.Backend{firewall.IPTables, firewall.NFTables} {
		t.Run(string(backend), func(t *testing.T) { test(t, newWorld(t, backend)) })
	}
}

func (w *world) config() Config {
	return Config{Host: testHost, FirewallFlags: FirewallFlags{FirewallBackend: w.backend}}
}

func newWorld(t *testing.T, backend firewall.Backend) *world {
	t.Helper()
	nstest.NeedRoot(t)
	emptyFirewall(t)
	t.Cleanup(func() { emptyFirewall(t) })
	w := &world{backend: backend, server: bustest.Server(t), client: nstest.New(t)}
	w.bus = bustest.Open(t, w.server, bus.Options{Service: "test", Host: testHost})
	w.bridge = nstest.Bridge(t, "br-nat", netip.MustParsePrefix("10.79.0.1/24"))
	w.client.Connect(t, "client", netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	if err := w.bus.Networks.Put(t.Context(), "lan", lan(), 0); err != nil {
		t.Fatal(err)
	}
	w.events = w.listen(t)
	return w
}

func lan() *fulmarv1.Network {
	return &fulmarv1.Network{Name: "lan", Host: testHost, Bridge: "br-nat", Prefix: "10.79.0.0/24", Gateway: "10.79.0.1"}
}

func emptyFirewall(t testing.TB) {
	t.Helper()
	for _, table := range []string{"raw", "mangle", "filter", "nat"} {
		iptables(t, "-t", table, "-F")
		iptables(t, "-t", table, "-X")
	}
	command(t, "nft", "add table ip fulmar; delete table ip fulmar")
}

// flushEverything does what a person does who does not know of nat. Nat may be quicker than a command and make it fail.
func (w *world) flushEverything(t *testing.T) {
	t.Helper()
	if w.backend == firewall.NFTables {
		command(t, "nft", "flush ruleset")
		return
	}
	for _, table := range []string{"filter", "nat", "mangle", "raw"} {
		for _, flag := range []string{"-F", "-X"} {
			if out, err := exec.Command("iptables", "-t", table, flag).CombinedOutput(); err != nil {
				t.Logf("iptables -t %s %s: %v: %s", table, flag, err, out)
			}
		}
	}
}

func iptables(t testing.TB, args ...string) {
	t.Helper()
	command(t, "iptables", args...)
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// listen gives what is said on the bus, except what the test says itself.
func (w *world) listen(t *testing.T) <-chan *fulmarv1.Event {
	t.Helper()
	cons, err := w.bus.JS.OrderedConsumer(t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *fulmarv1.Event, 1000)
	running, err := cons.Consume(func(m jetstream.Msg) {
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(m.Data(), e); err != nil {
			t.Error(err)
		}
		if e.GetService() != "test" {
			events <- e
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		running.Stop()
		<-running.Closed()
	})
	return events
}

// nat runs a nat until the returned function is called, at the latest with the test's end.
func (w *world) nat(t *testing.T) (stop func()) {
	t.Helper()
	b := bustest.Open(t, w.server, bus.Options{Service: "nat", Host: testHost, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	s, err := New(b, w.config(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return bustest.Run(t, s.Run)
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// unit is one unit of a deployment: its ports, as 8080:80/tcp, and what serves it.
type unit struct {
	name     string
	ports    []string
	instance *fulmarv1.Instance
}

// deployment is one to be published.
type deployment struct {
	stack      string
	generation uint64
	units      []unit
	staged     bool
	deadline   time.Time
}

func (d deployment) content() *fulmarv1.Content {
	c := &fulmarv1.Content{Network: "lan"}
	for _, u := range d.units {
		spec := &fulmarv1.UnitSpec{Name: u.name}
		for _, text := range u.ports {
			ports, protocol, _ := strings.Cut(text, "/")
			port, target, _ := strings.Cut(ports, ":")
			spec.Ports = append(spec.Ports, &fulmarv1.Port{Port: number(port), Target: number(target), Protocol: protocol})
		}
		c.Units = append(c.Units, spec)
	}
	return c
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 16)
	return uint32(n)
}

// accept enters the deployment in the head, with its instances, as builder and ipam do.
func (w *world) accept(t *testing.T, d deployment) *fulmarv1.Deployment {
	t.Helper()
	if d.deadline.IsZero() {
		d.deadline = time.Now().Add(time.Minute)
	}
	var instances []*fulmarv1.Instance
	for _, u := range d.units {
		instances = append(instances, u.instance)
	}
	_, err := w.bus.Heads.Edit(t.Context(), d.stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		h, err := messages.Accept(h, d.stack, &fulmarv1.HeadDeployment{
			Generation: d.generation, Content: d.content(), Staged: d.staged, Host: testHost, Deadline: timestamppb.New(d.deadline),
		})
		if err != nil {
			return nil, err
		}
		return messages.SetInstances(h, d.generation, d.content(), instances)
	})
	if err != nil {
		t.Fatal(err)
	}
	return &fulmarv1.Deployment{Stack: d.stack, Generation: d.generation, Network: lan(), Content: d.content(), Staged: d.staged, Deadline: timestamppb.New(d.deadline)}
}

// healthy says that a deployment is healthy.
func (w *world) healthy(t *testing.T, d *fulmarv1.Deployment) {
	t.Helper()
	if err := w.bus.Say(t.Context(), &fulmarv1.Event{Verb: string(messages.Healthy), Deployment: d}, 0); err != nil {
		t.Fatal(err)
	}
}

// next is what is said next.
func (w *world) next(t *testing.T) *fulmarv1.Event {
	t.Helper()
	select {
	case e := <-w.events:
		return e
	case <-time.After(patience):
		t.Fatal("nothing was said")
		return nil
	}
}

// expect checks what is said next.
func (w *world) expect(t *testing.T, verb messages.Verb, d deployment) *fulmarv1.Event {
	t.Helper()
	e := w.next(t)
	if e.GetVerb() != string(verb) || e.GetDeployment().GetStack() != d.stack || e.GetDeployment().GetGeneration() != d.generation {
		t.Fatalf("%s of %s-%d was said (%s), want %s of %s-%d", e.GetVerb(), e.GetDeployment().GetStack(), e.GetDeployment().GetGeneration(),
			e.GetReason(), verb, d.stack, d.generation)
	}
	return e
}

// deploy takes a deployment through nat.
func (w *world) deploy(t *testing.T, d deployment) *fulmarv1.Event {
	t.Helper()
	w.healthy(t, w.accept(t, d))
	return w.expect(t, messages.Published, d)
}

// instance starts what serves a unit in a namespace of its own: every TCP connection to port 80 is answered, line by line,
// with the instance's name, and so is every datagram to port 53.
func (w *world) instance(t *testing.T, stack, unit string, generation uint64, last byte) (*fulmarv1.Instance, *nstest.Space) {
	t.Helper()
	i := &fulmarv1.Instance{
		Unit: unit, Name: messages.InstanceName(stack, unit, generation), Network: "lan",
		Address: netip.AddrFrom4([4]byte{10, 79, 0, last}).String(),
	}
	addr := netip.MustParseAddr(i.GetAddress())
	s := nstest.New(t)
	s.Attach(t, fmt.Sprintf("vm%d", last), w.bridge, netip.PrefixFrom(addr, 24), netip.MustParseAddr("10.79.0.1"))
	serveTCP(t, s.Listen(t, netip.AddrPortFrom(addr, 80)), i.GetName())
	serveUDP(t, s.ListenPacket(t, netip.AddrPortFrom(addr, 53)), i.GetName())
	return i, s
}

func serveTCP(t *testing.T, l net.Listener, name string) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					_ = c.Close()
					mu.Lock()
					delete(conns, c)
					mu.Unlock()
				}()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					if _, err := io.WriteString(c, name+"\n"); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

func serveUDP(t *testing.T, c net.PacketConn, name string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
}

// here runs f in the host's own namespace; it has the shape of [nstest.Space.Do].
func here(f func() error) error { return f() }

const (
	answerTime = 15 * time.Second // for a connection or an answer, on a machine that may stall
	tryTime    = 3 * time.Second  // where none may come, or it is tried again
)

// dial connects from where do runs.
func dial(do func(func() error) error, network, addr string) (net.Conn, error) {
	return dialWithin(do, network, addr, answerTime)
}

func dialWithin(do func(func() error) error, network, addr string, limit time.Duration) (conn net.Conn, err error) {
	err = do(func() (err error) {
		d := net.Dialer{Timeout: limit}
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// ask sends a line on a connection and gives the answer.
func ask(conn net.Conn) (string, error) { return askWithin(conn, answerTime) }

func askWithin(conn net.Conn, limit time.Duration) (string, error) {
	if _, err := conn.Write([]byte("?\n")); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	buf := make([]byte, 128)
	n, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// who asks once, on a connection of its own.
func who(do func(func() error) error, network, addr string) (string, error) {
	return whoWithin(do, network, addr, answerTime)
}

// try is who where no answer may come, or it is asked again.
func try(do func(func() error) error, network, addr string) (string, error) {
	return whoWithin(do, network, addr, tryTime)
}

func whoWithin(do func(func() error) error, network, addr string, limit time.Duration) (string, error) {
	conn, err := dialWithin(do, network, addr, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return askWithin(conn, limit)
}

// expectWho checks who answers at an address.
func expectWho(t *testing.T, do func(func() error) error, network, addr, want string) {
	t.Helper()
	if got, err := who(do, network, addr); err != nil || got != want {
		t.Errorf("%s %s was answered by %q, %v; want %s", network, addr, got, err, want)
	}
}

// until repeats f until it gives no error: the kernel follows, and tells nobody when it has.
func until(t *testing.T, f func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	err := errors.New("not tried")
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
