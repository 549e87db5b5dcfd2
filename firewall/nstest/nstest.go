// Package nstest gives tests of the packet path a network of their own: the test process moves into a new network
// namespace as a whole, which then plays the host, and further namespaces play its clients and its unikernels. Nothing
// outside is touched, and everything ends with the process.
package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const entered = "FULMAR_TEST_NETNS"

// Enter moves the test process into a network namespace of its own, with the loopback device up, by running it again
// there. Call it first in TestMain. Without root it does nothing; see [NeedRoot].
func Enter() {
	if os.Geteuid() != 0 {
		return
	}
	if os.Getenv(entered) == "" {
		runtime.LockOSThread() // the thread that leaves is the one that the new program keeps
		fatal("leave the network namespace", unix.Unshare(unix.CLONE_NEWNET))
		self, err := os.Executable()
		fatal("find the test program", err)
		fatal("run the test program again", syscall.Exec(self, os.Args, append(os.Environ(), entered+"=1")))
	}
	lo, err := netlink.LinkByName("lo")
	fatal("find the loopback device", err)
	fatal("set the loopback device up", netlink.LinkSetUp(lo))
}

func fatal(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "nstest: %s: %v\n", what, err)
		os.Exit(1)
	}
}

// NeedRoot skips the test unless [Enter] could move it into a network namespace of its own.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(entered) == "" {
		t.Skip("needs root: it makes network namespaces")
	}
}

// Space is a further network namespace.
type Space struct{ handle netns.NsHandle }

// New makes a network namespace that ends with the test.
func New(t testing.TB) *Space {
	t.Helper()
	NeedRoot(t)
	var handle netns.NsHandle
	err := onThread(func() (err error) {
		if handle, err = netns.New(); err != nil { // unshares the calling thread, which is thrown away
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	s := &Space{handle: handle}
	t.Cleanup(func() {
		if err := s.handle.Close(); err != nil {
			t.Errorf("close a network namespace: %v", err)
		}
	})
	return s
}

// Do runs f in the namespace, on a thread of its own. Sockets that f opens stay there, wherever they are used.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on an operating system thread that nothing else uses before or after.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
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
	configure(t, name, addr)
	return bridge
}

// Attach connects the namespace to a bridge of the test's own namespace: device eth0 there with address addr and a default
// route by gateway, and device name on the bridge.
func (s *Space) Attach(t testing.TB, name string, bridge netlink.Link, addr netip.Prefix, gateway netip.Addr) {
	t.Helper()
	s.pair(t, name, addr, gateway)
	link, err := netlink.LinkByName(name)
	check(t, "find "+name, err)
	check(t, "attach "+name, netlink.LinkSetMaster(link, bridge))
	check(t, "set "+name+" up", netlink.LinkSetUp(link))
}

// Connect connects the namespace to the test's own by a pair of devices: eth0 there with address addr and a default route
// by here, and name with address here on this side.
func (s *Space) Connect(t testing.TB, name string, here, addr netip.Prefix) {
	t.Helper()
	s.pair(t, name, addr, here.Addr())
	configure(t, name, here)
}

func (s *Space) pair(t testing.TB, name string, addr netip.Prefix, gateway netip.Addr) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.handle))}
	check(t, "make "+name, netlink.LinkAdd(veth))
	t.Cleanup(func() { check(t, "remove "+name, netlink.LinkDel(veth)) })
	check(t, "configure "+name, s.Do(func() error {
		configure(t, "eth0", addr)
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	}))
}

func configure(t testing.TB, name string, addr netip.Prefix) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	check(t, "find "+name, err)
	check(t, "give "+name+" an address", netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{
		IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32),
	}}))
	check(t, "set "+name+" up", netlink.LinkSetUp(link))
}

func check(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
