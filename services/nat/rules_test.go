package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/firewall"
	"fulmar/firewall/nstest"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestALateAnswerOfTheOldInstanceDoesNotTakeTheFlowBack(t *testing.T) {
	eachBackend(t, aLateAnswerOfTheOldInstanceDoesNotTakeTheFlowBack)
}

func aLateAnswerOfTheOldInstanceDoesNotTakeTheFlowBack(t *testing.T, w *world) {
	w.nat(t)
	first, space := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	// The host's port and the instance's are the same, so that a masquerade of the late answer is the flow in reverse.
	dns := func(generation uint64, i *fulmarv1.Instance) deployment {
		return deployment{stack: "web", generation: generation, units: []unit{{"web", []string{"53:53/udp"}, i}}}
	}
	w.deploy(t, dns(1, first))
	flow, err := dial(w.client.Do, "udp4", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if got, err := ask(flow); got != first.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	w.deploy(t, dns(2, second))
	until(t, func() error { return redirects(2) })
	late := append(ipv4(unix.IPPROTO_UDP, first.GetAddress(), "192.0.2.2", 8+4),
		udp(53, uint16(flow.LocalAddr().(*net.UDPAddr).Port), []byte("late"))...)
	sendRaw(t, space, late)
	if got, err := ask(flow); got != second.GetName() || err != nil {
		t.Errorf("after the late answer: %q, %v", got, err)
	}
}

func TestAPacketOutsideOfTheWindowDoesNotReachTheHost(t *testing.T) {
	eachBackend(t, aPacketOutsideOfTheWindowDoesNotReachTheHost)
}

func aPacketOutsideOfTheWindowDoesNotReachTheHost(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.deploy(t, web(1, i))
	kept, err := dial(w.client.Do, "tcp4", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if got, err := ask(kept); got != i.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	from := uint16(kept.LocalAddr().(*net.TCPAddr).Port)
	for seq := range uint32(4) { // behind the window or ahead of it, whatever the connection's numbers are
		for ack := range uint32(4) {
			sendRaw(t, w.client, append(ipv4(unix.IPPROTO_TCP, "192.0.2.2", "192.0.2.1", 20),
				tcpAck("192.0.2.2", "192.0.2.1", from, 8080, seq<<30, ack<<30)...))
		}
	}
	if w.backend == firewall.IPTables { // which counts
		until(t, func() error { return hit("mangle", `-A FULMAR -p tcp .*web-1 -j DROP`) })
	}
	if got, err := ask(kept); got != i.GetName() || err != nil {
		t.Errorf("the connection it was sent into: %q, %v", got, err)
	}
}

func TestInstancesDoNotReachTheHostsOwnServices(t *testing.T) {
	eachBackend(t, instancesDoNotReachTheHostsOwnServices)
}

func instancesDoNotReachTheHostsOwnServices(t *testing.T, w *world) {
	w.nat(t)
	i, space := w.instance(t, "web", "web", 1, 2)
	w.deploy(t, web(1, i))
	w.base(t)

	bridge, err := netlink.LinkByName("br-nat")
	if err != nil {
		t.Fatal(err)
	}
	loopback, err := net.ListenPacket("udp4", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()
	sendFrame(t, space, bridge.Attrs().HardwareAddr, append(ipv4(unix.IPPROTO_UDP, i.GetAddress(), "127.0.0.1", 8+1), udp(1234, 7777, []byte("x"))...))
	if err := loopback.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := loopback.ReadFrom(make([]byte, 16)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a service on the host's loopback device heard %d bytes of %v, %v", n, from, err)
	}

	if err := hit("raw", `-A FULMAR -d 127.0.0.0/8 -i br-nat -j DROP`); err != nil { // another rule may have stopped it later
		t.Error(err)
	}

	service, err := net.Listen("tcp4", "10.79.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	err = space.Do(func() error {
		conn, err := net.DialTimeout("tcp4", "10.79.0.1:7777", 300*time.Millisecond)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a connection to a service of the host ended with %v", err)
	}
}

func TestInstancesReachTheWorldAsTheHost(t *testing.T) {
	eachBackend(t, instancesReachTheWorldAsTheHost)
}

func instancesReachTheWorldAsTheHost(t *testing.T, w *world) {
	w.nat(t)
	_, space := w.instance(t, "web", "web", 1, 2)
	outside := w.client.Listen(t, netip.MustParseAddrPort("192.0.2.2:9000"))
	w.base(t)
	conn, err := dial(space.Do, "tcp4", "192.0.2.2:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := outside.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if from := accepted.RemoteAddr().(*net.TCPAddr).IP.String(); from != "192.0.2.1" {
		t.Errorf("it came from %s", from)
	}
}

func TestTwoNetworksMeetAtPublishedPortsOnly(t *testing.T) {
	eachBackend(t, twoNetworksMeetAtPublishedPortsOnly)
}

func twoNetworksMeetAtPublishedPortsOnly(t *testing.T, w *world) {
	other := nstest.Bridge(t, "br-other", netip.MustParsePrefix("10.80.0.1/24"))
	if err := w.bus.Networks.Put(t.Context(), "other", &fulmarv1.Network{
		Name: "other", Host: testHost, Bridge: "br-other", Prefix: "10.80.0.0/24", Gateway: "10.80.0.1",
	}, 0); err != nil {
		t.Fatal(err)
	}
	w.nat(t)
	i, here := w.instance(t, "web", "web", 1, 2)
	there := nstest.New(t)
	there.Attach(t, "vm-other", other, netip.MustParsePrefix("10.80.0.2/24"), netip.MustParseAddr("10.80.0.1"))
	serveTCP(t, there.Listen(t, netip.MustParseAddrPort("10.80.0.2:80")), "other")
	w.deploy(t, web(1, i))
	expectWho(t, there.Do, "tcp4", "192.0.2.1:8080", i.GetName())
	for name, c := range map[string]struct {
		from *nstest.Space
		to   string
	}{"one way": {there, i.GetAddress() + ":80"}, "the other way": {here, "10.80.0.2:80"}} {
		err := c.from.Do(func() error {
			conn, err := net.DialTimeout("tcp4", c.to, 300*time.Millisecond)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("%s: an instance reached another network at %s", name, c.to)
		}
	}
}

func TestTheBridgeKeepsItsAddress(t *testing.T) { eachBackend(t, theBridgeKeepsItsAddress) }

func theBridgeKeepsItsAddress(t *testing.T, w *world) {
	before, err := netlink.LinkByName("br-nat")
	if err != nil {
		t.Fatal(err)
	}
	w.nat(t)
	w.base(t)
	for last := range byte(20) { // one of twenty would have a lower address
		w.instance(t, "web", "web", 1, 10+last)
	}
	after, err := netlink.LinkByName("br-nat")
	if err != nil {
		t.Fatal(err)
	}
	if after.Attrs().HardwareAddr.String() != before.Attrs().HardwareAddr.String() {
		t.Errorf("it was %s and is %s", before.Attrs().HardwareAddr, after.Attrs().HardwareAddr)
	}
}

// hit checks that packets met a rule.
func hit(table, rule string) error {
	out, err := exec.Command("iptables-save", "-c", "-t", table).Output()
	if err != nil {
		return err
	}
	hits := regexp.MustCompile(`(?m)^\[(\d+):\d+\] ` + rule + `$`).FindSubmatch(out)
	if hits == nil || string(hits[1]) == "0" {
		return fmt.Errorf("no packet met %s:\n%s", rule, out)
	}
	return nil
}

// base waits until the base of the host's network stands.
func (w *world) base(t *testing.T) {
	t.Helper()
	until(t, func() error {
		if rules := rulesOf(t); !strings.Contains(rules, "-A POSTROUTING -j FULMAR-POST") {
			return fmt.Errorf("the base does not stand:\n%s", rules)
		}
		return setting("net/ipv4/conf/br-nat/send_redirects", "0")
	})
}

// setting checks a setting of the kernel.
func setting(path, want string) error {
	got, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return err
	}
	if string(got) != want+"\n" {
		return fmt.Errorf("%s is %s", path, strconv.Quote(string(got)))
	}
	return nil
}

// ipv4 is the header of a packet with a payload of size bytes.
func ipv4(protocol byte, from, to string, size int) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 4<<4|5, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+size))
	copy(h[12:], netip.MustParseAddr(from).AsSlice())
	copy(h[16:], netip.MustParseAddr(to).AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// udp is a datagram without a checksum, which IPv4 allows.
func udp(from, to uint16, payload []byte) []byte {
	d := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(d, from)
	binary.BigEndian.PutUint16(d[2:], to)
	binary.BigEndian.PutUint16(d[4:], uint16(8+len(payload)))
	return append(d, payload...)
}

// tcpAck is a segment without payload.
func tcpAck(fromAddr, toAddr string, from, to uint16, seq, ack uint32) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s, from)
	binary.BigEndian.PutUint16(s[2:], to)
	binary.BigEndian.PutUint32(s[4:], seq)
	binary.BigEndian.PutUint32(s[8:], ack)
	s[12], s[13] = 5<<4, 0x10
	binary.BigEndian.PutUint16(s[14:], 1024)
	pseudo := append(append([]byte{}, netip.MustParseAddr(fromAddr).AsSlice()...), netip.MustParseAddr(toAddr).AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(s)))
	binary.BigEndian.PutUint16(s[16:], checksum(append(pseudo, s...)))
	return s
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sendRaw sends a packet as it is, routed by the namespace.
func sendRaw(t *testing.T, space *nstest.Space, packet []byte) {
	t.Helper()
	err := space.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sendFrame sends a packet by the device eth0 of the namespace, whatever its routes are.
func sendFrame(t *testing.T, space *nstest.Space, to net.HardwareAddr, packet []byte) {
	t.Helper()
	err := space.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		addr := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Attrs().Index, Halen: 6} // IPv4 in network byte order
		copy(addr.Addr[:], to)
		return unix.Sendto(fd, packet, 0, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRulesStandBeforeThoseOfOthers(t *testing.T) { eachBackend(t, rulesStandBeforeThoseOfOthers) }

// What is put before ours is passed at once, but not a second time in a minute.
func rulesStandBeforeThoseOfOthers(t *testing.T, w *world) {
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.nat(t)
	w.deploy(t, web(1, i))
	iptables(t, "-I", "FORWARD", "-j", "DROP")
	until(t, func() error {
		got, err := try(w.client.Do, "tcp4", "192.0.2.1:8080")
		if err == nil && got != i.GetName() {
			t.Fatalf("answered by %q", got)
		}
		return err
	})
	iptables(t, "-D", "FORWARD", "-j", "DROP")
	iptables(t, "-I", "FORWARD", "-j", "ACCEPT")
	iptables(t, "-t", "nat", "-F", "FULMAR-POST") // once this is restored, the other was seen too
	until(t, func() error {
		if rules := rulesOf(t); !strings.Contains(rules, "-A FULMAR-POST ") {
			return fmt.Errorf("missing in\n%s", rules)
		}
		return nil
	})
	if rules := rulesOf(t); strings.Index(rules, "-A FORWARD -j ACCEPT") > strings.Index(rules, "-A FORWARD -j FULMAR") {
		t.Errorf("they fight for the first place:\n%s", rules)
	}
	iptables(t, "-D", "FORWARD", "-j", "ACCEPT")
}
