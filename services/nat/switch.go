package nat

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/bridge"
	"fulmar/conntrack"
	"fulmar/firewall"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// show leads clients to a publication, by one commit, and then moves the UDP flows of what it replaces. The caller has
// the turn. What it replaces is removed later, when no switch waits.
func (s *Service) show(ctx context.Context, pub firewall.Publication) error {
	if len(pub.Ports) == 0 {
		return nil
	}
	begin := time.Now()
	old, known := s.rules.shown[pub.Generation]
	switch {
	case s.rules.read && known && old.Redirected && samePorts(old.Publication, pub):
	case s.rules.read && !known && reachable(pub, s.rules.networks):
		if err := s.kernel.Publish(ctx, pub, maps.Values(s.rules.shown)); err != nil {
			s.log.Warn("switch met rules that others changed", "deployment", pub.Name(), "err", err)
			if err := s.restore(ctx, "switch"); err != nil {
				return err
			}
		}
		s.rules.shown[pub.Generation] = firewall.Shown{Publication: pub, Redirected: true}
		s.metrics.switches.Inc()
		s.metrics.seconds.Observe(time.Since(begin).Seconds())
	default:
		if err := s.restore(ctx, "switch"); err != nil {
			return err
		}
	}
	return s.flush(pub)
}

// reachable reports whether the base of the network of every address of pub stands.
func reachable(pub firewall.Publication, networks []firewall.Network) bool {
	for _, addr := range pub.Addresses() {
		if !slices.ContainsFunc(networks, func(n firewall.Network) bool { return n.Prefix.Contains(addr) }) {
			return false
		}
	}
	return true
}

// flush makes the UDP flows to the ports of pub begin anew, so that they go to pub: those that an older instance answers,
// and those that the host itself took while nobody held the port.
func (s *Service) flush(pub firewall.Publication) error {
	var local []netip.Addr
	for _, port := range pub.Ports {
		if port.Protocol != "udp" {
			continue
		}
		if local == nil {
			var err error
			if local, err = localAddresses(); err != nil {
				return err
			}
		}
		for _, addr := range slices.Concat(local, answering(s.rules.shown, port)) {
			if err := conntrack.FlushUDP(addr, port.Port); err != nil {
				return err
			}
		}
	}
	return nil
}

// answering gives the addresses, other than its own, that flows to a port may still go to.
func answering(all map[uint64]firewall.Shown, port firewall.Port) []netip.Addr {
	var addrs []netip.Addr
	for _, pub := range all {
		for _, other := range pub.Ports {
			if other.Protocol == port.Protocol && other.Port == port.Port && other.Address != port.Address {
				addrs = append(addrs, other.Address)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func localAddresses() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// prepare sets what the kernel needs besides rules: its settings, and a MAC address for every bridge that does not change
// with its ports. The caller has the turn.
func (s *Service) prepare() error {
	var errs []error
	for _, n := range s.rules.networks {
		errs = append(errs, firewall.Tune(n.Sysctls()), s.pin(n.Bridge))
	}
	return errors.Join(errs...)
}

// pin pins the address of a bridge, once.
func (s *Service) pin(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", name, err)
	}
	if s.pinned[link.Attrs().Index] {
		return nil
	}
	if err := bridge.Pin(&netlink.Handle{}, link); err != nil {
		return err
	}
	s.pinned[link.Attrs().Index] = true
	return nil
}

// forget deletes what the connection table has of addresses whose holders have ended.
func forget(addrs []netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		errs = append(errs, conntrack.DeleteAddress(addr))
	}
	return errors.Join(errs...)
}

// unheld gives those of addrs that no instance of any head has.
func unheld(heads map[string]*fulmarv1.Head, addrs []netip.Addr) []netip.Addr {
	inUse := map[string]bool{}
	for _, head := range heads {
		for _, d := range head.GetDeployments() {
			for _, i := range d.GetInstances() {
				inUse[i.GetAddress()] = true
			}
		}
	}
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return inUse[a.String()] })
}
