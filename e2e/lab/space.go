// Package lab is a small internet for the demonstration, the end-to-end tests and the benchmarks: this process moves
// into a network namespace of its own, which plays the host, and a second one plays its clients. Nothing of the
// machine's own network is touched, and the namespaces end with the process.
package lab

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
const entered = "FULMAR_LAB_NETNS"

// Addresses between the host and its clients: TEST-NET-1 of RFC 5737.
const (
	HostAddr   = "192.0.2.1"
	ClientAddr = "192.0.2.2"
	linkBits   = 24
	linkName   = "clients"
)

// Enter moves the process into a new network namespace by running its program again there; it must be called first.
// Without root it is an error.
func Enter() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("this needs root: it makes network namespaces, taps, control groups and firewall rules of its own")
	}
	if os.Getenv(entered) == "" {
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
	return configure("lo", "127.0.0.1", 8)
}

// Space is the namespace of the clients.
type Space struct{ handle netns.NsHandle }

// newSpace makes a namespace that is connected with this one, which is its gateway.
func newSpace() (*Space, error) {
	s := &Space{}
	err := onThread(func() (err error) {
		if s.handle, err = netns.New(); err != nil { // unshares the calling thread, which is thrown away
			return err
		}
		return configure("lo", "127.0.0.1", 8)
	})
	if err != nil {
		return nil, fmt.Errorf("make a namespace for clients: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = linkName
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.handle))}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("connect the namespace of clients: %w", err)
	}
	if err := configure(linkName, HostAddr, linkBits); err != nil {
		return nil, err
	}
	return s, s.Do(func() error {
		if err := configure("eth0", ClientAddr, linkBits); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(HostAddr)})
	})
}

// Do runs f in the namespace, on a thread of its own. Sockets that f opens stay there, wherever they are used.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.handle); err != nil {
			return fmt.Errorf("enter the namespace of clients: %w", err)
		}
		return f()
	})
}

// Dial opens a connection from the namespace.
func (s *Space) Dial(d net.Dialer, network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = s.Do(func() error {
		conn, err = d.Dial(network, to.String())
		return err
	})
	return conn, err
}

// close lets the namespace go, and removes what connects it: the kernel would do so too, but some time later.
func (s *Space) close() error {
	link, err := netlink.LinkByName(linkName)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	return errors.Join(err, s.handle.Close())
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

func configure(device, address string, bits int) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(bits, 32)}}
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("configure %s: %w", device, err)
	}
	return nil
}
