// Package nstest gives tests of the packet path a network of their own: the test process moves into a new network
// namespace as a whole, which then plays the host, and further namespaces play its clients and its unikernels. Nothing
// outside is touched, and everything ends with the process.
package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"fulmar/netspace"
)

// Enter moves the test process into a network namespace of its own, as [netspace.Enter] does. Call it first in
// TestMain. Without root it does nothing; see [NeedRoot].
func Enter() {
	if os.Geteuid() != 0 {
		return
	}
	if err := netspace.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		os.Exit(1)
	}
}

// NeedRoot skips the test unless [Enter] could move it into a network namespace of its own.
func NeedRoot(t testing.TB) {
	t.Helper()
	if !netspace.Entered() {
		t.Skip("needs root: it makes network namespaces")
	}
}

// Space is a further network namespace.
type Space struct{ *netspace.Space }

// New makes a network namespace that ends with the test.
func New(t testing.TB) *Space {
	t.Helper()
	NeedRoot(t)
	s, err := netspace.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close a network namespace: %v", err)
		}
	})
	return &Space{s}
}

// Listen opens a TCP listener in the namespace, closed with the test.
func (s *Space) Listen(t testing.TB, addr netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	err := s.Do(func() (err error) {
		l, err = net.Listen("tcp4", addr.String())
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket opens a UDP socket in the namespace, closed with the test.
func (s *Space) ListenPacket(t testing.TB, addr netip.AddrPort) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := s.Do(func() (err error) {
		c, err = net.ListenPacket("udp4", addr.String())
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Bridge makes a bridge with an address in the test's own namespace, removed with the test.
func Bridge(t testing.TB, name string, addr netip.Prefix) netlink.Link {
	t.Helper()
	NeedRoot(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	check(t, "make bridge "+name, netlink.LinkAdd(bridge))
	t.Cleanup(func() { check(t, "remove bridge "+name, netlink.LinkDel(bridge)) })
	check(t, "make bridge "+name, netspace.Configure(name, addr))
	return bridge
}

// Attach connects the namespace to a bridge of the test's own namespace: device eth0 there with address addr and a default
// route by gateway, and device name on the bridge.
func (s *Space) Attach(t testing.TB, name string, bridge netlink.Link, addr netip.Prefix, gateway netip.Addr) {
	t.Helper()
	link := s.join(t, name, addr, gateway)
	check(t, "attach "+name, netlink.LinkSetMaster(link, bridge))
	check(t, "set "+name+" up", netlink.LinkSetUp(link))
}

// Connect connects the namespace to the test's own by a pair of devices: eth0 there with address addr and a default route
// by here, and name with address here on this side.
func (s *Space) Connect(t testing.TB, name string, here, addr netip.Prefix) {
	t.Helper()
	s.join(t, name, addr, here.Addr())
	check(t, "connect "+name, netspace.Configure(name, here))
}

func (s *Space) join(t testing.TB, name string, addr netip.Prefix, gateway netip.Addr) netlink.Link {
	t.Helper()
	link, err := s.Join(name, addr, gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, "remove "+name, netlink.LinkDel(link)) })
	return link
}

func check(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
