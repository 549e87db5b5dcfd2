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

	"github.com/vishvananda/netlink"

	"fulmar/netspace"
)

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
	return netspace.Enter()
}

// Space is the namespace of the clients.
type Space struct {
	*netspace.Space
	link netlink.Link
}

// newSpace makes a namespace that is connected with this one, which is its gateway.
func newSpace() (*Space, error) {
	host, client := netip.MustParseAddr(HostAddr), netip.MustParseAddr(ClientAddr)
	space, err := netspace.New()
	if err != nil {
		return nil, fmt.Errorf("make a namespace for clients: %w", err)
	}
	s := &Space{Space: space}
	if s.link, err = space.Join(linkName, netip.PrefixFrom(client, linkBits), host); err != nil {
		return nil, errors.Join(fmt.Errorf("connect the namespace of clients: %w", err), space.Close())
	}
	if err := netspace.Configure(linkName, netip.PrefixFrom(host, linkBits)); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
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
	return errors.Join(netlink.LinkDel(s.link), s.Close())
}
