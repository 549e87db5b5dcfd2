// Package netspace makes network namespaces for tests, the demonstration and the benchmarks: the process moves into a
// namespace of its own as a whole, which then plays the host, and further namespaces play who is connected with it.
// Nothing of the machine's own network is touched, and the namespaces end with the process. Only root can do that.
package netspace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// entered marks the program that runs in the namespace already.
const entered = "FULMAR_NETSPACE"

// Enter moves the process into a network namespace of its own, with the loopback device up, by running its program
// again there. It must be called first.
func Enter() error {
	if !Entered() {
		runtime.LockOSThread() // the thread that leaves is the one that the new program keeps
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("leave the network namespace: %w", err)
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("run again in the namespace: %w", err)
		}
		return fmt.Errorf("run again in the namespace: %w", syscall.Exec(self, os.Args, append(os.Environ(), entered+"=1")))
	}
	return loopback()
}

// Entered reports whether [Enter] has moved the process.
func Entered() bool { return os.Getenv(entered) != "" }

// Space is a further network namespace.
type Space struct{ handle netns.NsHandle }

// New makes a network namespace with its loopback device up.
func New() (*Space, error) {
	s := &Space{handle: netns.None()}
	err := onThread(func() (err error) {
		if s.handle, err = netns.New(); err != nil { // unshares the calling thread, which is thrown away
			return err
		}
		return loopback()
	})
	if err != nil {
		if s.handle.IsOpen() {
			err = errors.Join(err, s.handle.Close())
		}
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return s, nil
}

// Close lets the namespace go: it ends with what was opened in it.
func (s *Space) Close() error { return s.handle.Close() }

// Do runs f in the namespace, on a thread of its own. Sockets that f opens stay there, wherever they are used.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// Join connects the namespace with the process's own by a pair of devices: eth0 there, with an address and a default
// route by gateway, and name here, which has no address yet. Who calls it removes that link, and eth0 with it.
func (s *Space) Join(name string, addr netip.Prefix, gateway netip.Addr) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.handle))}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	err := s.Do(func() error {
		if err := Configure("eth0", addr); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect a namespace by %s: %w", name, err), netlink.LinkDel(veth))
	}
	return veth, nil
}

// Configure gives a device of the namespace that it is called in an address, and sets it up.
func Configure(device string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	return nil
}

// loopback sets the loopback device up, to which the kernel then gives its address.
func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set the loopback device up: %w", err)
	}
	return nil
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
