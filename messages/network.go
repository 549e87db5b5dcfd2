package messages

import (
	"fmt"
	"net/netip"
	"regexp"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

var bridge = regexp.MustCompile(`^[^\s/:]{1,15}$`)

// CheckNetwork refuses a network that cannot give addresses.
func CheckNetwork(n *fulmarv1.Network) error {
	if err := CheckName("network", n.GetName()); err != nil {
		return err
	}
	if err := CheckName("host", n.GetHost()); err != nil {
		return fmt.Errorf("network %s: %w", n.GetName(), err)
	}
	if !bridge.MatchString(n.GetBridge()) {
		return fmt.Errorf("network %s: bridge %q is not the name of an interface", n.GetName(), n.GetBridge())
	}
	p, err := netip.ParsePrefix(n.GetPrefix())
	if err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 {
		return fmt.Errorf("network %s: prefix %q is not an IPv4 prefix of /8 to /30", n.GetName(), n.GetPrefix())
	}
	if p.Masked() != p {
		return fmt.Errorf("network %s: prefix %q has bits beyond its length; %s is meant", n.GetName(), n.GetPrefix(), p.Masked())
	}
	if g, err := netip.ParseAddr(n.GetGateway()); err != nil || !p.Contains(g) || g == p.Addr() {
		return fmt.Errorf("network %s: gateway %q is not an address of a host in %s", n.GetName(), n.GetGateway(), p)
	}
	for _, r := range n.GetReserved() {
		if _, err := ParseReserved(r); err != nil {
			return fmt.Errorf("network %s: %w", n.GetName(), err)
		}
	}
	return nil
}

// ParseReserved reads an address or a prefix that is never leased.
func ParseReserved(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("reserved %q is neither an address nor a prefix", s)
	}
	return p, nil
}

// CheckOverlap refuses a network whose prefix another one of its host has too, in part or whole: each of them would lease
// the same addresses.
func CheckOverlap(n *fulmarv1.Network, others map[string]*fulmarv1.Network) error {
	p, err := netip.ParsePrefix(n.GetPrefix())
	if err != nil {
		return fmt.Errorf("network %s: prefix %q: %w", n.GetName(), n.GetPrefix(), err)
	}
	for _, o := range others {
		other, err := netip.ParsePrefix(o.GetPrefix())
		if err == nil && o.GetName() != n.GetName() && o.GetHost() == n.GetHost() && other.Overlaps(p) {
			return fmt.Errorf("network %s: prefix %s overlaps %s of network %s on host %s", n.GetName(), p, other, o.GetName(), o.GetHost())
		}
	}
	return nil
}
