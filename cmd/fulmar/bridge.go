package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/bridge"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// ensureBridge makes the bridge of a network if it is missing, pins its MAC address, gives it the gateway's address
// and sets it up. A bridge whose address is not pinned takes over the lowest one of its ports, so it would change when
// another unikernel's tap leaves, and guests that cached it would answer nothing.
func ensureBridge(n *fulmarv1.Network) error {
	name := n.GetBridge()
	wrap := func(what string, err error) error { return fmt.Errorf("%s bridge %s: %w", what, name, err) }
	link, err := netlink.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return wrap("make", err)
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return wrap("find", err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s of network %s is no bridge but of type %s", name, n.GetName(), link.Type())
	}
	if err := bridge.Pin(&netlink.Handle{}, link); err != nil {
		return err
	}
	prefix, err := netip.ParsePrefix(n.GetPrefix())
	if err != nil {
		return wrap("address", err)
	}
	address := &net.IPNet{IP: net.ParseIP(n.GetGateway()), Mask: net.CIDRMask(prefix.Bits(), 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: address}); err != nil && !errors.Is(err, unix.EEXIST) {
		return wrap("address", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return wrap("set up", err)
	}
	return nil
}
