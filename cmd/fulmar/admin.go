package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

type networkCmd struct {
	Ls  networkLsCmd  `cmd:"" help:"List the networks."`
	Add networkAddCmd `cmd:"" help:"Add a network, or change one."`
	Rm  networkRmCmd  `cmd:"" help:"Remove a network that nothing uses."`
}

type networkLsCmd struct{}

// Run lists the networks.
func (networkLsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	all, err := b.Networks.All(e.ctx)
	if err != nil {
		return err
	}
	var rows []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n := all[name]
		if e.cli.JSON {
			if err := e.printProto(n); err != nil {
				return err
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", n.GetName(), n.GetHost(), n.GetBridge(), n.GetPrefix(), n.GetGateway(), strings.Join(n.GetReserved(), ",")))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("NETWORK HOST BRIDGE PREFIX GATEWAY RESERVED", rows)
}

type networkAddCmd struct {
	Name     string       `arg:"" help:"Name of the network."`
	Prefix   netip.Prefix `arg:"" help:"Prefix with the host's own address in it: 10.80.0.1/24."`
	Bridge   string       `required:"" help:"Bridge on the host."`
	Host     string       `default:"${host}" help:"Host that has the bridge."`
	Reserved []string     `help:"Addresses and prefixes that are never leased."`
}

// Run adds a network.
func (c *networkAddCmd) Run(e *env) error {
	n := &fulmarv1.Network{
		Name: c.Name, Host: c.Host, Bridge: c.Bridge, Prefix: c.Prefix.Masked().String(), Gateway: c.Prefix.Addr().String(), Reserved: c.Reserved,
	}
	if err := messages.CheckNetwork(n); err != nil {
		return err
	}
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	if err := unused(e, b, c.Name); err != nil {
		return fmt.Errorf("change network %s: %w", c.Name, err)
	}
	others, err := b.Networks.All(e.ctx)
	if err != nil {
		return err
	}
	if err := messages.CheckOverlap(n, others); err != nil {
		return err
	}
	hosts, err := b.Hosts.All(e.ctx)
	if err != nil {
		return err
	}
	if hosts[c.Host] == nil {
		fmt.Fprintf(e.err, "note: host %s has not reported yet; deployments on network %s are rejected until its vmm runs\n", c.Host, c.Name)
	}
	_, err = b.Networks.Edit(e.ctx, c.Name, func(have *fulmarv1.Network) (*fulmarv1.Network, error) {
		if proto.Equal(have, n) {
			return have, nil
		}
		return n, nil
	})
	return err
}

type networkRmCmd struct {
	Name string `arg:"" help:"Name of the network."`
}

// Run removes a network.
func (c *networkRmCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	_, rev, err := b.Networks.Get(e.ctx, c.Name)
	if err != nil {
		return err
	}
	if rev == 0 {
		return fmt.Errorf("there is no network %q; fulmar network ls lists them", c.Name)
	}
	if err := unused(e, b, c.Name); err != nil {
		return fmt.Errorf("remove network %s: %w", c.Name, err)
	}
	return b.Networks.Delete(e.ctx, c.Name, rev)
}

// unused refuses a network of which a deployment has instances.
func unused(e *env, b *bus.Bus, network string) error {
	heads, err := b.Heads.All(e.ctx)
	if err != nil {
		return err
	}
	for stack, h := range heads {
		for _, d := range h.GetDeployments() {
			dead := d.GetState() == fulmarv1.State_STATE_CONDEMNED && len(d.GetInstances()) == 0
			if d.GetContent().GetNetwork() == network && len(d.GetContent().GetUnits()) > 0 && !dead {
				return fmt.Errorf("stack %s uses it; retire it first", stack)
			}
		}
	}
	return nil
}

type leaseCmd struct {
	Ls leaseLsCmd `cmd:"" help:"List the leases."`
}

type leaseLsCmd struct{}

// Run lists the leases of addresses.
func (leaseLsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	all, err := b.Leases.All(e.ctx)
	if err != nil {
		return err
	}
	var rows []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		network, address, _ := messages.ParseLeaseKey(key)
		l := all[key]
		state, until := "held", "-"
		if l.GetRestingUntil() != nil {
			state, until = "resting", l.GetRestingUntil().AsTime().Local().Format(time.DateTime)
			if l.GetRestingUntil().AsTime().Before(time.Now()) {
				state = "free"
			}
		}
		if e.cli.JSON {
			if err := e.printJSON(map[string]string{"network": network, "address": address, "state": state, "instance": l.GetInstance(), "until": until}); err != nil {
				return err
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s", network, address, state, l.GetInstance(), until))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("NETWORK ADDRESS STATE INSTANCE UNTIL", rows)
}

type decodeCmd struct {
	As string `default:"auto" enum:"auto,event,head,lease,network,host,deploy" help:"What it is: ${enum}."`
}

// Run prints a message of the bus as JSON.
func (c *decodeCmd) Run(e *env) error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("read the message: %w", err)
	}
	m, err := decode(c.As, body)
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintln(e.out, string(text))
	return err
}

// decode reads a message: of the kind named, or of the first kind that explains it wholly.
func decode(as string, body []byte) (proto.Message, error) {
	kinds := []struct {
		name string
		make func() proto.Message
		fits func(proto.Message) bool
	}{
		{"event", func() proto.Message { return &fulmarv1.Event{} }, func(m proto.Message) bool { return messages.Verb(m.(*fulmarv1.Event).GetVerb()).Known() }},
		{"head", func() proto.Message { return &fulmarv1.Head{} }, func(m proto.Message) bool { return m.(*fulmarv1.Head).GetNewest() > 0 }},
		{"lease", func() proto.Message { return &fulmarv1.Lease{} }, func(m proto.Message) bool { return strings.Count(m.(*fulmarv1.Lease).GetInstance(), ".") == 2 }},
		{"network", func() proto.Message { return &fulmarv1.Network{} }, func(m proto.Message) bool { return m.(*fulmarv1.Network).GetPrefix() != "" }},
		{"host", func() proto.Message { return &fulmarv1.Host{} }, func(m proto.Message) bool { return m.(*fulmarv1.Host).GetName() != "" }},
		{"deploy", func() proto.Message { return &fulmarv1.DeployRequest{} }, func(m proto.Message) bool { return len(m.(*fulmarv1.DeployRequest).GetUnits()) > 0 }},
	}
	for _, k := range kinds {
		if as != "auto" && as != k.name {
			continue
		}
		m := k.make()
		err := messages.Decode(body, m)
		if as == k.name {
			return m, err
		}
		if err == nil && k.fits(m) && valid(m.ProtoReflect()) {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the %d bytes are no event, head, lease, network, host or deploy request", len(body))
}

// valid reports whether every enum of a message has a value that it knows.
func valid(m protoreflect.Message) bool {
	ok := true
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Enum() != nil && !f.IsList():
			ok = f.Enum().Values().ByNumber(v.Enum()) != nil
		case f.Message() != nil && !f.IsList():
			ok = valid(v.Message())
		}
		return ok
	})
	return ok
}
