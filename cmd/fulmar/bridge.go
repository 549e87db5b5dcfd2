package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fulmar/bridge"
	"fulmar/bus"
	"fulmar/firewall"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// ensureBridge makes the bridge of a network if it is missing, pins its MAC address, gives it the gateway's address
// and sets it up. A bridge whose address is not pinned takes over the lowest one of its ports, so it would change when
// another unikernel's tap leaves, and guests that cached it would answer nothing.
func ensureBridge(n *fulmarv1.Network) error {
	_, err := mendBridge(n, make(map[int]bool))
	return err
}

// mendBridge is [ensureBridge], and says what was missing. It pins the addresses of bridges whose index is not in pinned yet:
// where nobody can tell that one was pinned before, to do so again makes the kernel forget all who are on it.
func mendBridge(n *fulmarv1.Network, pinned map[int]bool) (missing []string, err error) {
	name := n.GetBridge()
	wrap := func(what string, err error) error { return fmt.Errorf("%s bridge %s: %w", what, name, err) }
	link, err := netlink.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, hardwareAddr(n)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return missing, wrap("make", err)
		}
		missing = append(missing, "bridge")
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return missing, wrap("find", err)
	}
	if link.Type() != "bridge" {
		return missing, fmt.Errorf("interface %s of network %s is no bridge but of type %s", name, n.GetName(), link.Type())
	}
	if index := link.Attrs().Index; !pinned[index] {
		if err := bridge.Pin(&netlink.Handle{}, link); err != nil {
			return missing, err
		}
		pinned[index] = true
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil { // before its address: who hears of that finds the bridge complete
			return missing, wrap("set up", err)
		}
		missing = append(missing, "up")
	}
	prefix, err := netip.ParsePrefix(n.GetPrefix())
	if err != nil {
		return missing, wrap("address", err)
	}
	address := &net.IPNet{IP: net.ParseIP(n.GetGateway()), Mask: net.CIDRMask(prefix.Bits(), 32)}
	switch err := netlink.AddrAdd(link, &netlink.Addr{IPNet: address}); {
	case err == nil:
		missing = append(missing, "address")
	case !errors.Is(err, unix.EEXIST):
		return missing, wrap("address", err)
	}
	return missing, nil
}

// hardwareAddr is that of the bridge that up makes for a network: always the same, as unikernels that were there when the bridge was removed remember it.
func hardwareAddr(n *fulmarv1.Network) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge " + n.GetBridge() + " of " + n.GetHost()))
	return append(net.HardwareAddr{2}, sum[:5]...) // administered locally
}

// tune gives the kernel's settings the values that a network needs.
func tune(n *fulmarv1.Network) error {
	prefix, err := netip.ParsePrefix(n.GetPrefix())
	if err != nil {
		return fmt.Errorf("tune bridge %s: %w", n.GetBridge(), err)
	}
	return firewall.Tune(firewall.Network{Bridge: n.GetBridge(), Prefix: prefix}.Sysctls())
}

// keepTime is how often up looks at its bridges, of which it hears as a rule before that.
const keepTime = 10 * time.Second

// keeper sees that the bridges of this host's networks are there, with their addresses, as long as up runs: also of those that are added meanwhile.
// The kernel tells of each address that goes, and with a bridge its address goes. A bridge whose network is removed stays as it is.
type keeper struct {
	host string
	log  *slog.Logger
	told map[string]string // by network, why its bridge is no good

	pinned map[int]bool // bridges, by their index
}

// keepBridges keeps them until ctx ends. What was no good at start has been told.
func (c *upCmd) keepBridges(ctx context.Context, server *bus.Server, log *slog.Logger) error {
	k := &keeper{host: c.Host, log: log, told: make(map[string]string), pinned: make(map[int]bool)}
	nc, err := server.Connect("up")
	if err != nil {
		return err
	}
	defer nc.Close()
	b, err := bus.Open(ctx, nc, bus.Options{Service: "up", Host: c.Host, Log: log})
	if err != nil {
		return err
	}
	addresses, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		return fmt.Errorf("follow the addresses of bridges: %w", err)
	}
	defer addresses.Close()
	all, _, err := b.Networks.Readable(ctx)
	if err != nil {
		return err
	}
	for name, n := range k.own(all) {
		if _, err := mendBridge(n, k.pinned); err != nil {
			k.told[name] = err.Error()
		}
	}
	view := b.Networks.View()
	heard := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return view.Run(ctx) })
	g.Go(func() error {
		k.listen(ctx, addresses, heard)
		return nil
	})
	g.Go(func() error { return k.keep(ctx, view, heard) })
	return g.Wait()
}

// own picks the networks of this host.
func (k *keeper) own(all map[string]*fulmarv1.Network) map[string]*fulmarv1.Network {
	own := make(map[string]*fulmarv1.Network)
	for name, n := range all {
		if n.GetHost() == k.host {
			own[name] = n
		}
	}
	return own
}

// listen says on heard when addresses come or go, until ctx ends, or the kernel tells no more: keep looks without it, too, only later.
func (k *keeper) listen(ctx context.Context, addresses *nl.NetlinkSocket, heard chan<- struct{}) {
	stop := context.AfterFunc(ctx, addresses.Close)
	defer stop()
	for {
		_, _, err := addresses.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS):
			k.log.Error("addresses of bridges were not followed any more", "err", err, "instead", "up looks at them every "+keepTime.String())
			return
		}
		select {
		case heard <- struct{}{}:
		default: // it will be looked at
		}
	}
}

// keep mends what is not as the networks have it.
func (k *keeper) keep(ctx context.Context, view *bus.View[*fulmarv1.Network], heard <-chan struct{}) error {
	tick := time.NewTicker(keepTime)
	defer tick.Stop()
	for {
		changed := view.Changed()
		for name, n := range k.own(view.All()) {
			k.mend(name, n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-heard:
		case <-tick.C:
		}
	}
}

// mend mends the bridge of a network, and tells once why it cannot.
func (k *keeper) mend(name string, n *fulmarv1.Network) {
	missing, err := mendBridge(n, k.pinned)
	if slices.Contains(missing, "bridge") { // it has lost the settings that nat gave it, and nat looks at them once a minute
		err = errors.Join(err, tune(n))
	}
	if len(missing) > 0 {
		k.log.Warn("bridge was put right", "network", name, "bridge", n.GetBridge(), "missing", strings.Join(missing, ", "))
	}
	if err == nil {
		delete(k.told, name)
		return
	}
	if k.told[name] != err.Error() && !errors.Is(err, unix.ENODEV) { // it was removed meanwhile, which will be heard
		k.told[name] = err.Error()
		k.log.Error("could not put a bridge right", "network", name, "err", err, "cure", "fulmar network add "+name+" with another --bridge changes it, fulmar network rm "+name+" removes it")
	}
}
