package host_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// quietBridge makes a bridge with 10.9.0.1/24 and another, somebody, on it, and gives what sends frames for him. Nothing
// but the test speaks there.
func quietBridge(t *testing.T) (br *netlink.Bridge, send func(frame []byte)) {
	t.Helper()
	hosttest.NeedRoot(t)
	const onAll = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	before, err := os.ReadFile(onAll)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(onAll, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(onAll, before, 0) })
	snooping := false // it would announce that it listens
	br = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(br, addr); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "port", br.Index
	somebody := &netlink.Veth{LinkAttrs: attrs, PeerName: "somebody"}
	if err := netlink.LinkAdd(somebody); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(somebody) })
	peer, err := netlink.LinkByName("somebody")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []netlink.Link{br, somebody, peer} {
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return br, func(frame []byte) {
		t.Helper()
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	}
}

// arp is a broadcast of somebody: who has target, tell sender.
func arp(sender, target string) []byte {
	mac := []byte{2, 0, 0, 0, 0, 9}
	frame := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, mac)
	frame = append(frame, netip.MustParseAddr(sender).AsSlice()...)
	frame = append(frame, 0, 0, 0, 0, 0, 0)
	return append(frame, netip.MustParseAddr(target).AsSlice()...)
}

// heard is how many frames the unikernel of a tap has read.
func heard(t *testing.T, tap netlink.Link) uint64 {
	t.Helper()
	link, err := netlink.LinkByIndex(tap.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxPackets
}

// tapOf is the tap of a unikernel.
func tapOf(t *testing.T, n albatross.Name) netlink.Link {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Alias == n.String() {
			return l
		}
	}
	t.Fatalf("%v has no tap", n)
	return nil
}

// until waits for what gives no event.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	untilIn(t, 10*time.Second, what, f)
}

// untilIn is until for what may take longer.
func untilIn(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(limit)
	for !f() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("in vain: %s", what)
		}
	}
}

func TestOthersDoNotWakeAUnikernel(t *testing.T) {
	cfg := config(t)
	_, send := quietBridge(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 1)
	a, b := name(t, ":a"), name(t, ":b")
	d.create(t, a, unikernel(image, 1, "wait", "--ipv4=10.9.0.2/24"))
	d.await(t, a, is("up"))
	d.create(t, b, unikernel(image, 1, "wait", "--ipv4=10.9.0.3/24"))
	d.await(t, b, is("up"))
	tapA, tapB := tapOf(t, a), tapOf(t, b)

	send(slices.Concat(albatross.MAC(b, "net0"), []byte{2, 0, 0, 0, 0, 9, 8, 0}, make([]byte, 46))) // he speaks to b, which has said nothing yet
	conn, err := net.Dial("udp4", "10.9.0.3:7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil { // the bridge speaks to b, without asking who that is
		t.Fatal(err)
	}
	until(t, "b hears what is for it", func() bool { return heard(t, tapB) == 2 })
	send(arp("10.9.0.9", "10.9.0.2")) // he asks for a
	until(t, "a hears that it is asked for", func() bool { return heard(t, tapA) > 0 })
	if n := heard(t, tapA); n != 1 {
		t.Errorf("a heard %d frames, want the one that asks for it", n)
	}
	send(arp("10.9.0.1", "10.9.0.1")) // the bridge announces itself
	until(t, "a hears of the bridge", func() bool { return heard(t, tapA) == 2 })
	send(arp("10.9.0.3", "10.9.0.3")) // b's address is somebody's now
	until(t, "a hears that an address has moved", func() bool { return heard(t, tapA) == 3 })
}

func TestAUnikernelDoesNotTakeThePacketsOfTheBridge(t *testing.T) {
	cfg := config(t)
	br, send := quietBridge(t)
	d := start(t, cfg).destroyAll(t)
	link, err := netlink.LinkByIndex(br.Index)
	if err != nil {
		t.Fatal(err)
	}
	own := link.Attrs().HardwareAddr
	n := name(t, ":a")
	c := unikernel(hosttest.Guest(t, 1), 1, "wait")
	c.Bridges[0].MAC = own
	d.create(t, n, c)
	d.await(t, n, is("up"))
	before := link.Attrs().Statistics.RxPackets
	send(slices.Concat(own, []byte{2, 0, 0, 0, 0, 9, 0x88, 0xb5}, make([]byte, 46)))
	until(t, "the bridge hears what is for it", func() bool {
		link, err := netlink.LinkByIndex(br.Index)
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().Statistics.RxPackets > before
	})
}

// neighbor is what the kernel knows of an address.
func neighbor(t *testing.T, br *netlink.Bridge, addr string) *netlink.Neigh {
	t.Helper()
	list, err := netlink.NeighList(br.Index, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if n.IP.String() == addr {
			return &n
		}
	}
	return nil
}

func TestTheKernelIsToldOfUnikernelsWhileTheyRun(t *testing.T) {
	cfg := config(t)
	br, _ := quietBridge(t)
	d := start(t, cfg)
	image := hosttest.Guest(t, 1)
	a, b, c := name(t, ":a"), name(t, ":b"), name(t, ":c")
	told := func(n albatross.Name, addr string) bool {
		have := neighbor(t, br, addr)
		return have != nil && have.HardwareAddr.String() == albatross.MAC(n, "net0").String() && have.Flags&netlink.NTF_EXT_LEARNED != 0
	}
	d.create(t, a, unikernel(image, 1, "wait", "--ipv4=10.9.0.2/24"))
	if !told(a, "10.9.0.2") {
		t.Errorf("of a the kernel knows %+v", neighbor(t, br, "10.9.0.2"))
	}
	d.create(t, b, unikernel(image, 1, "wait", "--ipv4=10.9.0.2/24")) // it claims to be a
	d.create(t, c, unikernel(image, 1, "wait", "--ipv4=10.9.0.1/24")) // it claims to be the bridge
	if !told(a, "10.9.0.2") || neighbor(t, br, "10.9.0.1") != nil {
		t.Errorf("others were believed: %+v, %+v", neighbor(t, br, "10.9.0.2"), neighbor(t, br, "10.9.0.1"))
	}
	for _, n := range []albatross.Name{b, c} {
		if err := d.Destroy(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if !told(a, "10.9.0.2") {
		t.Error("the end of b took a away")
	}

	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighDel(neighbor(t, br, "10.9.0.2")); err != nil {
		t.Fatal(err)
	}
	d = start(t, cfg).destroyAll(t)
	if !told(a, "10.9.0.2") {
		t.Error("a restart of host did not bring a back")
	}
	if err := d.Destroy(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if have := neighbor(t, br, "10.9.0.2"); have != nil {
		t.Errorf("a is gone, and the kernel knows %+v", have)
	}
}

func TestATapIsNoPartOfIPv6(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	n := name(t, ":a")
	d.create(t, n, unikernel(hosttest.Guest(t, 1), 1, "wait"))
	tap := tapOf(t, n)
	if addrs, err := netlink.AddrList(tap, unix.AF_INET6); err != nil || len(addrs) > 0 {
		t.Errorf("the tap has addresses %v, %v", addrs, err)
	}
	text, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", tap.Attrs().Name, "disable_ipv6"))
	if err != nil || strings.TrimSpace(string(text)) != "1" {
		t.Errorf("disable_ipv6 is %q, %v", text, err)
	}
}

func TestATapWhoseNameIsTakenGetsAnother(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "fulmar-tap1" // as a second host in this namespace has it
	other := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(other) })
	n := name(t, ":a")
	d.create(t, n, unikernel(hosttest.Guest(t, 1), 1, "wait"))
	if tap := tapOf(t, n); tap.Attrs().Name == attrs.Name || !strings.HasPrefix(tap.Attrs().Name, "fulmar-tap") {
		t.Errorf("the tap is called %s", tap.Attrs().Name)
	}
}

func TestOthersHearThatAnAddressHasMoved(t *testing.T) {
	cfg := config(t)
	quietBridge(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 1)
	a, b, c := name(t, ":a"), name(t, ":b"), name(t, ":c")
	d.create(t, a, unikernel(image, 1, "wait", "--ipv4=10.9.0.2/24"))
	d.await(t, a, is("up"))
	tapA := tapOf(t, a)
	d.create(t, b, unikernel(image, 1, "wait", "--ipv4=10.9.0.3/24"))
	d.await(t, b, is("up"))
	if n := heard(t, tapA); n != 0 {
		t.Errorf("a heard %d frames of one that is new", n)
	}
	if err := d.Destroy(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	d.create(t, c, unikernel(image, 1, "wait", "--ipv4=10.9.0.3/24"))
	until(t, "a hears of c", func() bool { return heard(t, tapA) == 1 })
}
