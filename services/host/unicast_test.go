package host

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

func TestTargets(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	own := []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("10.8.0.1/24")}
	many := make([]netip.Prefix, maxOwn+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, 0, byte(i)}), 24)
	}
	for what, c := range map[string]struct {
		s    speaker
		to   gateway
		want string
	}{
		"one of a known address":              {speaker{1, netip.MustParseAddr("10.9.0.2")}, gateway{mac, own}, "[10.8.0.1 10.9.0.1 10.9.0.2]"},
		"one of an unknown address":           {speaker{1, netip.Addr{}}, gateway{mac, own}, "[10.8.0.1 10.9.0.1]"},
		"one that claims to be the bridge":    {speaker{1, netip.MustParseAddr("10.9.0.1")}, gateway{mac, own}, "[10.8.0.1 10.9.0.1]"},
		"a bridge without an address":         {speaker{1, netip.MustParseAddr("10.9.0.2")}, gateway{mac, nil}, "[10.9.0.2]"},
		"a bridge of which nothing is known":  {speaker{1, netip.MustParseAddr("10.9.0.2")}, gateway{}, "[]"},
		"a bridge with more than are counted": {speaker{1, netip.Addr{}}, gateway{mac, many}, fmt.Sprint(targets(speaker{}, gateway{mac, many[:maxOwn]}))},
	} {
		t.Run(what, func(t *testing.T) {
			if got := fmt.Sprint(targets(c.s, c.to)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// lan is a bridge with 10.9.0.1/24, and on it somebody who is no unikernel.
type lan struct {
	*Service
	br       *netlink.Bridge
	somebody *station
	marks    byte
}

// station is who sends and hears frames at a port.
type station struct {
	*tap
	mac net.HardwareAddr
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	hosttest.NeedRoot(t)
	l := &lan{Service: &Service{log: slog.New(slog.DiscardHandler)}, br: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}}
	if err := netlink.LinkAdd(l.br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l.br) })
	l.address(t, netlink.AddrAdd, "10.9.0.1/24")
	if err := netlink.LinkSetUp(l.br); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByIndex(l.br.Index)
	if err != nil {
		t.Fatal(err)
	}
	l.br = link.(*netlink.Bridge)
	if l.bridges, err = newBridges(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.bridges.close)
	l.somebody = l.station(t, net.HardwareAddr{2, 0, 0, 0, 0, 9})
	return l
}

// address changes an address of the bridge.
func (l *lan) address(t testing.TB, change func(netlink.Link, *netlink.Addr) error, text string) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err == nil {
		err = change(l.br, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// station joins the bridge by a tap of which host knows nothing.
func (l *lan) station(t testing.TB, mac net.HardwareAddr) *station {
	t.Helper()
	tap, err := l.bridges.open(os.Getuid(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.file.Close() })
	if err := l.bridges.attach(tap, l.br, t.Name()); err != nil {
		t.Fatal(err)
	}
	return &station{tap, mac}
}

// unikernel joins as a unikernel does that is about to pass its gate.
func (l *lan) unikernel(t testing.TB, label, addr string) *station {
	t.Helper()
	name, err := albatross.ParseName(":" + label)
	if err != nil {
		t.Fatal(err)
	}
	args := albatross.Args{Arguments: []string{"--ipv4=" + addr + "/24"}, Bridges: []albatross.Bridge{{Netif: "net0", Bridge: l.br.Name}}}
	s := l.station(t, albatross.MAC(name, "net0"))
	if err := l.quieten(record{Name: name, Args: args}, wire{mac: s.mac, tap: s.tap, bridge: l.br}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.bridges.unicasts.drop(s.index) })
	return s
}

var toAll = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const (
	request = 1
	reply   = 2
)

// arp says with what is ARP: sender is at mac, who is target? The first address is that of the frame.
func (s *station) arp(t testing.TB, to net.HardwareAddr, operation byte, sender, target string) {
	t.Helper()
	s.send(t, slices.Concat(to, s.mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, operation}, s.mac, netip.MustParseAddr(sender).AsSlice(),
		make([]byte, 6), netip.MustParseAddr(target).AsSlice(), make([]byte, 18)))
}

func (s *station) send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := s.file.Write(frame); err != nil {
		t.Fatal(err)
	}
}

// heard lists the ARP that has come to the station, and that it has not read yet, as "operation sender target".
func (l *lan) heard(t testing.TB, s *station) (all []string) {
	t.Helper()
	from := l.somebody
	if s == from {
		from = &station{mac: net.HardwareAddr{2, 0, 0, 0, 0, 8}}
		from = l.station(t, from.mac)
		defer func() { _ = from.file.Close() }()
	}
	l.marks++
	mark := slices.Concat(toAll, from.mac, []byte{0x88, 0xb5, l.marks}, make([]byte, 45)) // comes last
	from.send(t, mark)
	if err := s.file.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for frame := make([]byte, 2048); ; {
		n, err := s.file.Read(frame)
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame[:n]; {
		case bytes.Equal(f, mark):
			return all
		case n >= 42 && f[12] == 8 && f[13] == 6:
			sender, _ := netip.AddrFromSlice(f[28:32])
			target, _ := netip.AddrFromSlice(f[38:42])
			all = append(all, fmt.Sprintf("%d %s %s", f[21], sender, target))
		}
	}
}

// hears fails unless a station has heard that, and nothing else.
func (l *lan) hears(t testing.TB, what string, s *station, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, l.heard(t, s)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestWhatOnlyTheBridgeCanAnswerWakesNobody(t *testing.T) {
	l := newLAN(t)
	a, b := l.unikernel(t, "a", "10.9.0.2"), l.unikernel(t, "b", "10.9.0.3")
	stranger := l.station(t, net.HardwareAddr{0, 0x80, 0x41, 0, 0, 7}) // a unikernel of another machine
	for _, s := range []*station{a, b, stranger, l.somebody} {
		l.heard(t, s)
	}
	a.arp(t, toAll, request, "10.9.0.2", "10.9.0.2")
	a.arp(t, toAll, request, "10.9.0.2", "10.9.0.1")
	l.hears(t, "who asks for the bridge gets its answer", a, "2 10.9.0.1 10.9.0.2")
	for what, s := range map[string]*station{"a unikernel": b, "a unikernel of another machine": stranger, "somebody": l.somebody} {
		l.hears(t, what+" hears nothing of it", s)
	}

	all := []struct {
		what      string
		from      *station
		operation byte
		said      string
	}{
		{"a question for another unikernel", a, request, "10.9.0.2 10.9.0.3"},
		{"an announcement as an answer", a, reply, "10.9.0.2 10.9.0.2"},
		{"an announcement of another address", a, request, "10.9.0.7 10.9.0.7"},
		{"an announcement of a unikernel of another machine", stranger, request, "10.9.0.2 10.9.0.2"},
		{"somebody's announcement", l.somebody, request, "10.9.0.9 10.9.0.9"},
		{"somebody's announcement of the bridge", l.somebody, request, "10.9.0.1 10.9.0.1"},
		{"somebody's question for a unikernel", l.somebody, request, "10.9.0.9 10.9.0.3"},
	}
	for _, c := range all {
		words := strings.Fields(c.said)
		c.from.arp(t, toAll, c.operation, words[0], words[1])
		for _, s := range []*station{b, stranger, l.somebody} {
			if s != c.from {
				l.hears(t, c.what, s, fmt.Sprintf("%d %s", c.operation, c.said))
			}
		}
		l.heard(t, c.from) // itself
	}
	a.arp(t, b.mac, request, "10.9.0.2", "10.9.0.1")
	l.hears(t, "a question to one alone", b, "1 10.9.0.2 10.9.0.1")
	a.send(t, slices.Concat(toAll, a.mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})) // cut off
	l.hears(t, "nobody makes anything of half a question", b)
}

func TestAnAddressThatHasMovedIsAnnouncedToAll(t *testing.T) {
	l := newLAN(t)
	a := l.unikernel(t, "a", "10.9.0.2")
	b := l.unikernel(t, "b", "10.9.0.3")
	l.hears(t, "an address that is new", a)
	name, err := albatross.ParseName(":b")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.part(&instance{links: []int{b.index}, record: record{Name: name, Args: albatross.Args{
		Arguments: []string{"--ipv4=10.9.0.3/24"}, Bridges: []albatross.Bridge{{Netif: "net0", Bridge: l.br.Name}},
	}}}); err != nil {
		t.Fatal(err)
	}
	l.heard(t, l.somebody)
	c := l.unikernel(t, "c", "10.9.0.3")
	c.arp(t, toAll, request, "10.9.0.3", "10.9.0.3")
	l.hears(t, "an address that has moved, said once", a, "1 10.9.0.3 10.9.0.3")
	l.hears(t, "and to those who are no unikernels", l.somebody, "1 10.9.0.3 10.9.0.3")
}

func TestAddressesOfABridgeAreFollowed(t *testing.T) {
	l := newLAN(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.attend(t.Context())
	}()
	t.Cleanup(func() { <-done })
	a, b := l.unikernel(t, "a", "10.9.0.2"), l.unikernel(t, "b", "10.9.0.3")
	asks := func(what, target string, heard bool) {
		t.Helper()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		timeout := time.After(10 * time.Second)
		for {
			a.arp(t, toAll, request, "10.9.0.2", target)
			if got := len(l.heard(t, b)) > 0; got == heard {
				return
			}
			select {
			case <-tick.C:
			case <-timeout:
				t.Fatalf("%s: others never came to hear it: %v", what, heard)
			}
		}
	}
	asks("the bridge", "10.9.0.1", false)
	asks("nobody yet", "10.8.0.1", true)
	l.address(t, netlink.AddrAdd, "10.8.0.1/24")
	asks("the bridge's other address", "10.8.0.1", false)
	l.address(t, netlink.AddrDel, "10.9.0.1/24")
	asks("what may be somebody else's now", "10.9.0.1", true)
	asks("what is the bridge's still", "10.8.0.1", false)
}

func TestABridgeThatIsGivenAnotherHardwareAddressStillAnswers(t *testing.T) {
	l := newLAN(t)
	a, b := l.unikernel(t, "a", "10.9.0.2"), l.unikernel(t, "b", "10.9.0.3")
	if err := netlink.LinkSetHardwareAddr(l.br, net.HardwareAddr{2, 0, 0, 0, 0, 0x11}); err != nil {
		t.Fatal(err)
	}
	l.heard(t, b)
	a.arp(t, toAll, request, "10.9.0.2", "10.9.0.1")
	l.hears(t, "the question", b)
	l.hears(t, "the answer", a, "2 10.9.0.1 10.9.0.2")
}

func TestThatItMayNotIsToldOnce(t *testing.T) {
	l := newLAN(t)
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, less [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	to, err := l.bridges.read(l.br)
	if err != nil {
		t.Fatal(err)
	}
	less = all
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	u := newUnicasts() // of this thread
	defer u.close()
	u.bridges[l.br.Index] = to
	first, second := u.remake(), u.add(7, speaker{bridge: l.br.Index})
	third := u.drop(7)
	if err := unix.Capset(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
	if !errors.Is(first, unix.EPERM) || second != nil || third != nil {
		t.Errorf("errors %v, %v, %v: want that it may not, once", first, second, third)
	}
}

func TestABridgeThatIsFullIsNamed(t *testing.T) {
	hosttest.NeedRoot(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and all that is in its namespace at once
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	l := newLAN(t)
	const ports = 1023
	attrs := netlink.NewLinkAttrs()
	attrs.MasterIndex = l.br.Index
	for i := 1; i < ports; i++ { // somebody is there
		attrs.Name = fmt.Sprint("other", i)
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
			t.Fatal(err)
		}
	}
	tap, err := l.bridges.open(os.Getuid(), 2)
	if err != nil {
		t.Fatal(err)
	}
	err = l.bridges.attach(tap, l.br, t.Name())
	const want = "bridge br0 has as many ports as Linux allows, 1,023: try again when something has been retired"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := netlink.LinkDel(&netlink.Tuntap{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	if err := l.bridges.attach(tap, l.br, t.Name()); err != nil {
		t.Fatalf("after one has gone: %v", err)
	}
	if err := tap.file.Close(); err != nil {
		t.Fatal(err)
	}
}
