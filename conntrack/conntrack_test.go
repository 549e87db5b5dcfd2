package conntrack

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/goleak"

	"fulmar/firewall/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

var (
	hostAddr   = netip.MustParsePrefix("192.0.2.1/24")
	clientAddr = netip.MustParsePrefix("192.0.2.2/24")
	gateway    = netip.MustParsePrefix("10.77.0.1/24")
	first      = netip.MustParsePrefix("10.77.0.2/24")
	second     = netip.MustParsePrefix("10.77.0.3/24")
)

// network is a host that translates its ports 80 (TCP) and 53 (UDP) to 8080 and 5353 of the first of two backends.
type network struct{ client, first, second *nstest.Space }

func newNetwork(t *testing.T) network {
	t.Helper()
	n := network{client: nstest.New(t), first: nstest.New(t), second: nstest.New(t)}
	bridge := nstest.Bridge(t, "br-ct", gateway)
	n.client.Connect(t, "client", hostAddr, clientAddr)
	n.first.Attach(t, "first", bridge, first, gateway.Addr())
	n.second.Attach(t, "second", bridge, second, gateway.Addr())
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.translate(t, first.Addr())
	return n
}

// translate replaces the host's rules by such that lead to addr. Entries of earlier tests go with them.
func (n network) translate(t *testing.T, addr netip.Addr) {
	t.Helper()
	cmd := exec.Command("iptables-restore")
	cmd.Stdin = bytes.NewBufferString("*nat\n" +
		"-A PREROUTING -d 192.0.2.1 -p tcp --dport 80 -j DNAT --to-destination " + addr.String() + ":8080\n" +
		"-A PREROUTING -d 192.0.2.1 -p udp --dport 53 -j DNAT --to-destination " + addr.String() + ":5353\n" +
		"COMMIT\n*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// accept returns the connections that a listener on addr takes, for as long as the test runs.
func accept(t *testing.T, s *nstest.Space, addr netip.AddrPort) <-chan net.Conn {
	t.Helper()
	l := s.Listen(t, addr)
	conns, done := make(chan net.Conn, 16), make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return conns
}

func dial(t *testing.T, s *nstest.Space, network, addr string) net.Conn {
	t.Helper()
	var conn net.Conn
	if err := s.Do(func() (err error) {
		conn, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	}); err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// eventually waits until the kernel answers as wanted: it moves entries from state to state by itself.
func eventually(t *testing.T, want map[netip.Addr]int, addrs ...netip.Addr) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var got map[netip.Addr]int
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); <-tick.C {
		var err error
		if got, err = Established(addrs...); err != nil {
			t.Fatal(err)
		}
		if cmp.Equal(want, got, cmpopts.EquateComparable(netip.Addr{})) {
			return
		}
	}
	t.Fatalf("established (-want +got):\n%s", cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})))
}

func TestEstablishedCountsWhatTheAddressStillAnswers(t *testing.T) {
	n := newNetwork(t)
	ones := accept(t, n.first, netip.AddrPortFrom(first.Addr(), 8080))
	a, b := dial(t, n.client, "tcp4", "192.0.2.1:80"), dial(t, n.client, "tcp4", "192.0.2.1:80")
	serverA, serverB := <-ones, <-ones
	eventually(t, map[netip.Addr]int{first.Addr(): 2, second.Addr(): 0}, first.Addr(), second.Addr())

	// A flow that the address opened itself is no client of it.
	outside := accept(t, n.client, netip.AddrPortFrom(clientAddr.Addr(), 9000))
	dial(t, n.first, "tcp4", "192.0.2.2:9000")
	defer func() { _ = (<-outside).Close() }()
	eventually(t, map[netip.Addr]int{first.Addr(): 2}, first.Addr())

	// Half closed is not closed.
	if err := a.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, map[netip.Addr]int{first.Addr(): 2}, first.Addr())
	for _, c := range []net.Conn{a, serverA, b, serverB} {
		_ = c.Close()
	}
	eventually(t, map[netip.Addr]int{first.Addr(): 0}, first.Addr())
}

// TestAHandshakeCountsIfItCameByAPublishedPort has the kernel hold two that were answered and never finished.
func TestAHandshakeCountsIfItCameByAPublishedPort(t *testing.T) {
	newNetwork(t)
	t.Cleanup(func() {
		if err := DeleteAddress(first.Addr()); err != nil {
			t.Error(err)
		}
	})
	for _, to := range []struct{ address, port, client string }{{first.Addr().String(), "8080", "40000"}, {"192.0.2.1", "80", "40001"}} {
		out, err := exec.Command("conntrack", "-I", "-p", "tcp", "--state", "SYN_RECV", "--timeout", "60",
			"-s", "192.0.2.2", "--sport", to.client, "-d", to.address, "--dport", to.port,
			"-r", first.Addr().String(), "--reply-port-src", "8080", "-q", "192.0.2.2", "--reply-port-dst", to.client).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := 0
		if to.port == "80" {
			want = 1
		}
		if got, err := Established(first.Addr()); err != nil || got[first.Addr()] != want {
			t.Errorf("after a handshake to %s:%s %v count, %v; want %d", to.address, to.port, got, err, want)
		}
	}
}

func TestARequestThatNobodyAnsweredIsNoFlow(t *testing.T) {
	n := newNetwork(t)
	err := n.first.Do(func() error { return exec.Command("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP").Run() })
	if err != nil {
		t.Fatal(err)
	}
	err = n.client.Do(func() error {
		if conn, err := net.DialTimeout("tcp4", "192.0.2.1:80", time.Second); err == nil {
			return errors.Join(errors.New("somebody answered"), conn.Close())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	waiting := 0
	err = dump(match{protocol: protocolTCP, replySource: first.Addr()}, func(f flow) {
		if f.state == nl.TCP_CONNTRACK_SYN_SENT {
			waiting++
		}
	})
	if err != nil || waiting != 1 {
		t.Fatalf("the kernel has %d unanswered requests: %v", waiting, err)
	}
	eventually(t, map[netip.Addr]int{first.Addr(): 0}, first.Addr())
}

func TestManyAddressesAreCountedAtOnce(t *testing.T) {
	n := newNetwork(t)
	conns := accept(t, n.first, netip.AddrPortFrom(first.Addr(), 8080))
	dial(t, n.client, "tcp4", "192.0.2.1:80")
	defer func() { _ = (<-conns).Close() }()
	want, addrs := map[netip.Addr]int{first.Addr(): 1}, []netip.Addr{first.Addr()}
	for a := second.Addr(); len(addrs) <= manyAddresses; a = a.Next() {
		want[a], addrs = 0, append(addrs, a)
	}
	eventually(t, want, addrs...)
}

// echo answers every datagram with name.
func echo(t *testing.T, s *nstest.Space, addr netip.AddrPort, name string) {
	t.Helper()
	pc, done := s.ListenPacket(t, addr), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(name), from)
		}
	}()
	t.Cleanup(func() {
		_ = pc.Close()
		<-done
	})
}

func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	k, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:k])
}

func TestUDPFlowsMoveOnlyWhenTheyAreFlushed(t *testing.T) {
	flush := map[string]func(netip.Addr, uint16) error{
		"by a filtered delete": FlushUDP,
		"one by one, on a kernel without filtered delete": func(addr netip.Addr, port uint16) error {
			return removeEach(match{protocol: protocolUDP, replySource: addr, port: port})
		},
	}
	for name, flush := range flush {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			echo(t, n.first, netip.AddrPortFrom(first.Addr(), 5353), "first")
			echo(t, n.second, netip.AddrPortFrom(second.Addr(), 5353), "second")
			conn := dial(t, n.client, "udp4", "192.0.2.1:53")
			if got := ask(t, conn); got != "first" {
				t.Fatalf("before the switch: answered by %s", got)
			}
			n.translate(t, second.Addr())
			for _, other := range []struct {
				addr netip.Addr
				port uint16
			}{{first.Addr(), 5353}, {first.Addr(), 54}, {second.Addr(), 53}} {
				if err := flush(other.addr, other.port); err != nil {
					t.Fatal(err)
				}
				if got := ask(t, conn); got != "first" {
					t.Fatalf("flushing %v moved the flow of %v: answered by %s", other, first, got)
				}
			}
			if err := flush(first.Addr(), 53); err != nil {
				t.Fatal(err)
			}
			if got := ask(t, conn); got != "second" {
				t.Fatalf("after the flush: answered by %s", got)
			}
		})
	}
}

func TestDeleteAddressResetsItsClientsAndNobodyElses(t *testing.T) {
	n := newNetwork(t)
	ones := accept(t, n.first, netip.AddrPortFrom(first.Addr(), 8080))
	twos := accept(t, n.second, netip.AddrPortFrom(second.Addr(), 8080))
	gone := dial(t, n.client, "tcp4", "192.0.2.1:80")
	serverGone := <-ones
	n.translate(t, second.Addr())
	stays := dial(t, n.client, "tcp4", "192.0.2.1:80")
	serverStays := <-twos
	defer serverStays.Close()
	outside := accept(t, n.client, netip.AddrPortFrom(clientAddr.Addr(), 9000))
	dial(t, n.first, "tcp4", "192.0.2.2:9000")
	defer func() { _ = (<-outside).Close() }()
	eventually(t, map[netip.Addr]int{first.Addr(): 1, second.Addr(): 1}, first.Addr(), second.Addr())

	if err := DeleteAddress(first.Addr()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []match{{replySource: first.Addr()}, {source: first.Addr()}, {destination: first.Addr()}} {
		if err := dump(m, func(f flow) { t.Errorf("still in the table: %+v", f) }); err != nil {
			t.Fatal(err)
		}
	}
	// The instance is gone with its tap, so nobody answers the client but the host, which knows nothing of the connection.
	_ = serverGone.Close()
	if _, err := gone.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := gone.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := gone.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the client of the address that is gone hangs: %v", err)
	}
	if _, err := stays.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := serverStays.Read(make([]byte, 5)); err != nil {
		t.Errorf("the client of another address was cut: %v", err)
	}
}

func TestReadUsage(t *testing.T) {
	n := newNetwork(t)
	before, err := ReadUsage()
	if err != nil {
		t.Fatal(err)
	}
	conns := accept(t, n.first, netip.AddrPortFrom(first.Addr(), 8080))
	for range 10 {
		dial(t, n.client, "tcp4", "192.0.2.1:80")
		defer func() { _ = (<-conns).Close() }()
	}
	after, err := ReadUsage()
	if err != nil {
		t.Fatal(err)
	}
	if after.Count < before.Count+10 || after.Count > after.Max || after.Max < 1024 {
		t.Errorf("usage went from %+v to %+v by 10 connections", before, after)
	}
}

func TestOnlyAddressesAndPortsThatCanHaveFlows(t *testing.T) {
	six := netip.MustParseAddr("fe80::1")
	for name, err := range map[string]error{
		"count of an IPv6 address":  func() error { _, err := Established(six); return err }(),
		"count of no address":       func() error { _, err := Established(netip.Addr{}); return err }(),
		"flush of an IPv6 address":  FlushUDP(six, 53),
		"flush of no port":          FlushUDP(first.Addr(), 0),
		"delete of no address":      DeleteAddress(netip.Addr{}),
		"delete of an IPv6 address": DeleteAddress(six),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 12, 0, 1, 2, 3, 4})
	f.Add([]byte{2, 0, 0, 0, 20, 0, 1, 128, 16, 0, 1, 128, 8, 0, 1, 0, 10, 0, 0, 1, 3, 0})
	f.Fuzz(func(_ *testing.T, message []byte) { parse(message) })
}
