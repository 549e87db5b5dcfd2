package ipam

import (
	"fmt"
	"net/netip"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Assign gives the instances of a deployment, in the order of its units. They are decided in the order in which the units
// use one another: one of equal digest is kept, and for the others claim gets an address.
func Assign(head *fulmarv1.Head, d *fulmarv1.Deployment, claim func(*fulmarv1.Instance) (netip.Addr, error)) ([]*fulmarv1.Instance, error) {
	p, err := NewPool(d.GetNetwork())
	if err != nil {
		return nil, err
	}
	order, err := messages.ContentOrder(d.GetContent())
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	var keepable []*fulmarv1.Instance
	if d.GetKind() != fulmarv1.Kind_KIND_RENEW {
		keepable = messages.Keepable(head, d.GetGeneration())
	}
	assigned := map[string]*fulmarv1.Instance{}
	for _, name := range order {
		spec, unit := find(d, name)
		at := messages.NewAddress(d.GetStack(), name, netip.Addr{}, p.prefix, d.GetNetwork().GetGateway())
		sum, err := digest(spec, unit, d.GetNetwork(), at, addressIn(assigned))
		if err != nil {
			return nil, err
		}
		if i := kept(keepable, name, sum); i != nil {
			assigned[name] = i
			continue
		}
		i := &fulmarv1.Instance{Unit: name, Name: messages.InstanceName(d.GetStack(), name, d.GetGeneration()), Network: p.name, Digest: sum}
		a, err := claim(i)
		if err != nil {
			return nil, err
		}
		i.Address = a.String()
		assigned[name] = i
	}
	var instances []*fulmarv1.Instance
	for _, u := range d.GetContent().GetUnits() {
		instances = append(instances, assigned[u.GetName()])
	}
	return instances, nil
}

// kept gives the instance that a unit of a digest keeps, among those that may be kept, newest first.
func kept(keepable []*fulmarv1.Instance, unit, digest string) *fulmarv1.Instance {
	for _, i := range keepable {
		if i.GetUnit() == unit && i.GetDigest() == digest {
			return i
		}
	}
	return nil
}

// Complete adds the facts of the lease to a deployment.
func Complete(d *fulmarv1.Deployment, instances []*fulmarv1.Instance) error {
	byUnit := map[string]*fulmarv1.Instance{}
	for _, i := range instances {
		byUnit[i.GetUnit()] = i
	}
	for _, u := range d.GetUnits() {
		spec, _ := find(d, u.GetName())
		i := byUnit[u.GetName()]
		u.Instance = i
		_, _, generation, _ := messages.ParseInstance(i.GetName())
		u.Kept = generation != d.GetGeneration()
		p, err := NewPool(d.GetNetwork())
		if err != nil {
			return err
		}
		a, err := netip.ParseAddr(i.GetAddress())
		if err != nil {
			return fmt.Errorf("instance %s: %w", i.GetName(), err)
		}
		at := messages.NewAddress(d.GetStack(), u.GetName(), a, p.prefix, d.GetNetwork().GetGateway())
		if u.Args, err = messages.RenderArgs(spec.GetArgs(), at, addressIn(byUnit)); err != nil {
			return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unit %s: %w", u.GetName(), err)
		}
	}
	return nil
}

func addressIn(instances map[string]*fulmarv1.Instance) func(string) (string, error) {
	return func(unit string) (string, error) {
		i, ok := instances[unit]
		if !ok {
			return "", fmt.Errorf("unit %q has no address", unit)
		}
		return i.GetAddress(), nil
	}
}

// find gives the spec and the facts of a unit.
func find(d *fulmarv1.Deployment, name string) (spec *fulmarv1.UnitSpec, unit *fulmarv1.Unit) {
	for _, s := range d.GetContent().GetUnits() {
		if s.GetName() == name {
			spec = s
		}
	}
	for _, u := range d.GetUnits() {
		if u.GetName() == name {
			unit = u
		}
	}
	return spec, unit
}
