package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"fulmar/firewall"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// wanted decides, from the records, what the kernel of a host should have. A record that makes no sense is named by the
// error and left out; the rest is valid.
func wanted(host string, heads map[string]*fulmarv1.Head, networks map[string]*fulmarv1.Network) (firewall.Want, error) {
	var errs []error
	want := firewall.Want{Gone: func(stack string, generation uint64) bool { return gone(heads[stack], generation) }}
	for name, record := range networks {
		if record.GetHost() != host {
			continue
		}
		network, err := parseNetwork(record)
		if err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", name, err))
			continue
		}
		want.Networks = append(want.Networks, network)
	}
	for stack, head := range heads {
		for _, d := range head.GetDeployments() {
			part := partOf(&want, d.GetState())
			if d.GetHost() != host || part == nil || neverUp(d) {
				continue
			}
			pub, err := publication(stack, d)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			*part = append(*part, pub)
		}
	}
	return want, errors.Join(errs...)
}

// partOf gives the part of a Want that is for deployments in a state, or nil.
func partOf(want *firewall.Want, state fulmarv1.State) *[]firewall.Publication {
	switch state {
	case fulmarv1.State_STATE_LIVE:
		return &want.Live
	case fulmarv1.State_STATE_DRAINING:
		return &want.Draining
	case fulmarv1.State_STATE_CONDEMNED:
		return &want.Leaving
	}
	return nil
}

// neverUp reports whether a deployment failed before it had any instance: no rule was ever made for it.
func neverUp(d *fulmarv1.HeadDeployment) bool {
	return d.GetState() == fulmarv1.State_STATE_CONDEMNED && len(d.GetInstances()) == 0
}

// gone reports whether a head proves that the kernel needs no rule of a generation: it is new enough to know it, and
// neither publishes it nor ends it.
func gone(head *fulmarv1.Head, generation uint64) bool {
	return head.GetNewest() >= generation && partOf(&firewall.Want{}, stateOf(head, generation)) == nil
}

func stateOf(head *fulmarv1.Head, generation uint64) fulmarv1.State {
	return messages.Find(head, generation).GetState()
}

func sameNetworks(a, b []firewall.Network) bool {
	order := func(a, b firewall.Network) int { return strings.Compare(a.Bridge, b.Bridge) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), order), slices.SortedFunc(slices.Values(b), order))
}

// bridgeName is what Linux takes as the name of a device and a rule as a word.
var bridgeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)

func parseNetwork(record *fulmarv1.Network) (firewall.Network, error) {
	if !bridgeName.MatchString(record.GetBridge()) {
		return firewall.Network{}, fmt.Errorf("bridge %q: not the name of a device", record.GetBridge())
	}
	prefix, err := netip.ParsePrefix(record.GetPrefix())
	if err != nil || !prefix.Addr().Is4() {
		return firewall.Network{}, fmt.Errorf("prefix %q: not an IPv4 prefix", record.GetPrefix())
	}
	return firewall.Network{Bridge: record.GetBridge(), Prefix: prefix.Masked()}, nil
}

// publication is what a deployment of a head publishes: the ports of its content, at the addresses of its instances.
func publication(stack string, d *fulmarv1.HeadDeployment) (firewall.Publication, error) {
	pub := firewall.Publication{Stack: stack, Generation: d.GetGeneration()}
	for _, unit := range d.GetContent().GetUnits() {
		if len(unit.GetPorts()) == 0 {
			continue
		}
		addr, err := addressOf(d, unit.GetName())
		if err != nil {
			return pub, fmt.Errorf("publish %s: %w", pub.Name(), err)
		}
		for _, p := range unit.GetPorts() {
			if !validPort(p) {
				return pub, fmt.Errorf("publish %s: unit %s: port %d/%s to %d is none", pub.Name(), unit.GetName(), p.GetPort(), p.GetProtocol(), p.GetTarget())
			}
			pub.Ports = append(pub.Ports, firewall.Port{
				Protocol: p.GetProtocol(), Port: uint16(p.GetPort()), Address: addr, Target: uint16(p.GetTarget()),
			})
		}
	}
	return pub, nil
}

func addressOf(d *fulmarv1.HeadDeployment, unit string) (netip.Addr, error) {
	for _, i := range d.GetInstances() {
		if i.GetUnit() != unit {
			continue
		}
		addr, err := netip.ParseAddr(i.GetAddress())
		if err != nil || !addr.Is4() {
			return addr, fmt.Errorf("unit %s: %q is no IPv4 address", unit, i.GetAddress())
		}
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("unit %s has no instance", unit)
}

func validPort(p *fulmarv1.Port) bool {
	valid := func(n uint32) bool { return n >= 1 && n <= 65535 }
	return (p.GetProtocol() == "tcp" || p.GetProtocol() == "udp") && valid(p.GetPort()) && valid(p.GetTarget())
}

// unchanged reports whether clients see no difference between a deployment and the one that it replaced: the same
// instances at the same ports, none of which had to be started again. A first deployment changes everything.
func unchanged(head *fulmarv1.Head, d *fulmarv1.Deployment) bool {
	mine := messages.Find(head, d.GetGeneration())
	before := replaced(head, d)
	if mine == nil || before == nil || len(mine.GetInstances()) == 0 || len(mine.GetInstances()) != len(before.GetInstances()) {
		return false
	}
	for _, i := range mine.GetInstances() {
		if !slices.ContainsFunc(before.GetInstances(), func(o *fulmarv1.Instance) bool { return o.GetName() == i.GetName() }) {
			return false
		}
	}
	if slices.ContainsFunc(d.GetUnits(), func(u *fulmarv1.Unit) bool { return !u.GetKept() }) {
		return false
	}
	a, err := publication(head.GetStack(), mine)
	b, berr := publication(head.GetStack(), before)
	return err == nil && berr == nil && samePorts(a, b)
}

// replaced is the newest older deployment that was live, or that is if d is only staged.
func replaced(head *fulmarv1.Head, d *fulmarv1.Deployment) *fulmarv1.HeadDeployment {
	for _, o := range slices.Backward(head.GetDeployments()) {
		serves := o.GetState() == fulmarv1.State_STATE_LIVE || o.GetState() == fulmarv1.State_STATE_DRAINING && !o.GetStaged()
		if o.GetGeneration() < d.GetGeneration() && serves {
			return o
		}
	}
	return nil
}

func samePorts(a, b firewall.Publication) bool {
	if len(a.Ports) != len(b.Ports) {
		return false
	}
	for _, p := range a.Ports {
		if !slices.Contains(b.Ports, p) {
			return false
		}
	}
	return true
}

// added gives the ports of pub that nothing in the head of its stack publishes yet.
func added(head *fulmarv1.Head, pub firewall.Publication) []firewall.Port {
	have := map[firewall.Port]bool{}
	for _, d := range head.GetDeployments() {
		if d.GetState() != fulmarv1.State_STATE_LIVE {
			continue
		}
		for _, unit := range d.GetContent().GetUnits() {
			for _, p := range unit.GetPorts() {
				have[firewall.Port{Protocol: p.GetProtocol(), Port: uint16(p.GetPort())}] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(pub.Ports), func(p firewall.Port) bool {
		return have[firewall.Port{Protocol: p.Protocol, Port: p.Port}]
	})
}

// held reports whether an instance's address belongs to another one by now.
func held(heads map[string]*fulmarv1.Head, gone *fulmarv1.Instance) bool {
	for _, head := range heads {
		for _, d := range head.GetDeployments() {
			for _, i := range d.GetInstances() {
				if i.GetNetwork() == gone.GetNetwork() && i.GetAddress() == gone.GetAddress() && i.GetName() != gone.GetName() {
					return true
				}
			}
		}
	}
	return false
}
