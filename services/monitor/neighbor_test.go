package monitor

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fulmar/bus"
	"fulmar/bus/bustest"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// guest is a unit at the other end of a tap that misses what comes before it is ready.
type guest struct {
	t    *testing.T
	tap  *os.File
	miss int // so many ARP requests are lost

	asked int
}

// newGuest makes a network namespace, in which the test's goroutine is from then on, with 10.9.0.1/24 on a tap.
func newGuest(t *testing.T, miss int) *guest {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: a network namespace cannot be made")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("no taps here:", err)
	}
	request, err := unix.NewIfreq("tap0")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, tap: os.NewFile(uintptr(fd), "tap0"), miss: miss}
	var wg sync.WaitGroup
	wg.Go(g.serve)
	t.Cleanup(func() { _ = g.tap.Close(); wg.Wait() })
	return g
}

// serve answers ARP requests for 10.9.0.7, and pings, until the tap is closed.
func (g *guest) serve() {
	mac := []byte{2, 0, 0, 0, 0, 7}
	buf := make([]byte, 2048)
	for {
		n, err := g.tap.Read(buf)
		if err != nil {
			return
		}
		frame := bytes.Clone(buf[:n])
		copy(frame[0:6], frame[6:12])
		copy(frame[6:12], mac)
		switch {
		case n >= 42 && frame[12] == 8 && frame[13] == 6 && bytes.Equal(frame[38:42], []byte{10, 9, 0, 7}):
			if g.asked++; g.asked <= g.miss {
				continue
			}
			frame[21] = 2 // a reply
			copy(frame[32:42], frame[22:32])
			copy(frame[22:32], append(mac, 10, 9, 0, 7))
		case n >= 42 && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_ICMP && frame[34] == 8:
			copy(frame[26:34], append(bytes.Clone(frame[30:34]), frame[26:30]...))
			frame[34] = 0 // a reply, and its checksum by RFC 1624
			sum := uint32(frame[36])<<8 + uint32(frame[37]) + 0x800
			sum += sum >> 16
			frame[36], frame[37] = byte(sum>>8), byte(sum)
		default:
			continue
		}
		if _, err := g.tap.Write(frame); err != nil {
			return
		}
	}
}

func TestALostARPRequestDoesNotCostASecond(t *testing.T) {
	b := bustest.Open(t, bustest.Server(t), bus.Options{Service: "monitor", Host: host}) // before the goroutine moves
	newGuest(t, 4)                                                                       // with what the kernel asks by itself, the fifth request would come after 4 s
	s, err := New(b, Config{Host: host}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s.pinger = opened(t)
	if err := s.neighbors.open(); err != nil {
		t.Fatal(err)
	}
	defer s.neighbors.close()
	ping := &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Icmp{Icmp: &fulmarv1.IcmpProbe{}}}
	checks, err := s.newChecks(spec(t, "web", ping).GetHealth(), "10.9.0.7")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	c := newCandidate("web", "10.9.0.7", checks[0], begin, begin.Add(20*time.Second), func() { s.nudge("10.9.0.7") })
	if err := c.prove(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 3500*time.Millisecond {
		t.Errorf("it took %s: nobody asked the neighbour again before the kernel did", took)
	}
}

func TestPingByADatagramSocket(t *testing.T) {
	newGuest(t, 0)
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		t.Skip("ping sockets cannot be allowed:", err)
	}
	p := opened(t)
	if _, ok := p.conn.(*net.UDPConn); !ok {
		t.Errorf("the socket is a %T, want a datagram socket", p.conn)
	}
	if err := p.ping(t.Context(), netip.MustParseAddr("10.9.0.7"), 10*time.Second); err != nil {
		t.Error(err)
	}
}

func TestAUnitThatIsNotThereCostsItsPatienceOnly(t *testing.T) {
	newGuest(t, 0)
	p, nobody := opened(t), netip.MustParseAddr("10.9.0.8")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	http, err := newHTTPProbe(get(80).GetHttp(), nobody)
	if err != nil {
		t.Fatal(err)
	}
	http.request.URL.Path = "/"
	for name, p := range map[string]probe{
		"tcp": tcpProbe(netip.AddrPortFrom(nobody, 80)), "icmp": icmpProbe{pinger: p, address: nobody}, "http": http,
	} { // no subtests, they would leave the namespace
		if err := p.ask(t.Context(), 20*time.Millisecond, time.Minute); !errors.Is(err, errNoAnswer) {
			t.Errorf("%s gives %v", name, err)
		}
		begin := time.Now()
		if err := p.ask(over, time.Minute, time.Minute); err == nil {
			t.Errorf("%s: an answer of nobody", name)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s: it took %s after all was over", name, took)
		}
	}
}

func TestAUnitThatTheKernelWasToldOfIsNotAskedFor(t *testing.T) {
	g := newGuest(t, 0)
	p, unit := opened(t), netip.MustParseAddr("10.9.0.7")
	tap, err := netlink.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: tap.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED,
		IP: unit.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7},
	}); err != nil {
		t.Fatal(err)
	}
	n := newNeighbors()
	if err := n.open(); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if err := n.ask(unit); err != nil {
		t.Fatal(err)
	}
	if err := p.ping(t.Context(), unit, 10*time.Second); err != nil { // which the unit hears after all that was asked
		t.Fatal(err)
	}
	if g.asked > 0 {
		t.Error("all were asked for a unit that is known")
	}
}

func TestNoARPWhereThereIsNobodyToAsk(t *testing.T) {
	newGuest(t, 0)
	n := newNeighbors()
	if err := n.open(); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if err := n.ask(netip.MustParseAddr("10.9.0.1")); err != nil { // the host's own: no subtest, it would leave the namespace
		t.Error(err)
	}
	if err := n.ask(netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("an address without a route was asked for")
	}
}

func TestARPRequest(t *testing.T) {
	got := arpRequest(net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.7"))
	want := []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 9, 0, 1, 0, 0, 0, 0, 0, 0, 10, 9, 0, 7}
	if !bytes.Equal(got, want) {
		t.Errorf("gives % x, want % x", got, want)
	}
}
