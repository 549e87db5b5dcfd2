package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

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
	all, err := readable(e, b.Networks)
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
	if err := c.possible(e, b, n); err != nil {
		return err
	}
	have, rev, err := b.Networks.Get(e.ctx, c.Name)
	_, unreadable := errors.AsType[*bus.UnreadableError](err) // then it is made whole again, whoever uses it
	if err != nil && !unreadable || err == nil && proto.Equal(have, n) {
		return err
	}
	mild := unreadable || onlyReserved(have, n)
	if used := unused(e, b, c.Name); used != nil && !mild {
		return fmt.Errorf("change network %s: %w, or change nothing but its reserved addresses", c.Name, used)
	}
	if err := b.Networks.Put(e.ctx, c.Name, n, rev); err != nil {
		return changedMeanwhile(c.Name, err)
	}
	if rev == 0 || mild {
		return nil // nobody could use it before, or it may be used
	}
	return c.orBack(e, b, have)
}

// possible refuses a network that can be known not to work, and notes that its host is not there yet.
func (c *networkAddCmd) possible(e *env, b *bus.Bus, n *fulmarv1.Network) error {
	if c.Host == bus.HostName() {
		if err := checkBridge(n); err != nil {
			return err
		}
	}
	others, err := readable(e, b.Networks)
	if err != nil {
		return err
	}
	if err := messages.CheckOverlap(n, others); err != nil {
		return err
	}
	hosts, err := readable(e, b.Hosts)
	if err != nil {
		return err
	}
	if hosts[c.Host] == nil {
		fmt.Fprintf(e.err, "note: host %s has not reported yet; deployments on network %s are rejected until its vmm runs\n", c.Host, c.Name)
	}
	return nil
}

// checkBridge refuses the network of this machine whose bridge is an interface of another kind.
func checkBridge(n *fulmarv1.Network) error {
	link, err := netlink.LinkByName(n.GetBridge())
	if err == nil && link.Type() != "bridge" {
		return fmt.Errorf("network %s: interface %s of this machine is no bridge but of type %s; name a bridge, or one that is not there, which fulmar up makes", n.GetName(), n.GetBridge(), link.Type())
	}
	return nil // what cannot be known here shows when its host makes the bridge
}

// onlyReserved reports whether nothing but the reserved addresses of a network changes. That may be while it is used: an
// address that is reserved and held stays held, and is not leased again.
func onlyReserved(have, want *fulmarv1.Network) bool {
	have, want = proto.CloneOf(have), proto.CloneOf(want)
	have.Reserved, want.Reserved = nil, nil
	return proto.Equal(have, want)
}

// orBack undoes a change of a network that somebody began to use after it was found unused.
func (c *networkAddCmd) orBack(e *env, b *bus.Bus, before *fulmarv1.Network) error {
	used := unused(e, b, c.Name)
	if used == nil {
		return nil
	}
	_, rev, err := b.Networks.Get(e.ctx, c.Name)
	if err == nil {
		err = b.Networks.Put(e.ctx, c.Name, before, rev)
	}
	if err != nil {
		return fmt.Errorf("change network %s back, because %w: %w", c.Name, used, err)
	}
	return fmt.Errorf("change network %s: %w", c.Name, used)
}

func changedMeanwhile(network string, err error) error {
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return fmt.Errorf("network %s was changed by somebody else at the same time: look at it with fulmar network ls", network)
	}
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
	n, rev, err := b.Networks.Get(e.ctx, c.Name)
	_, unreadable := errors.AsType[*bus.UnreadableError](err)
	if err != nil && !unreadable {
		return err
	}
	if rev == 0 {
		return fmt.Errorf("there is no network %q; fulmar network ls lists them", c.Name)
	}
	if err := unused(e, b, c.Name); err != nil {
		return fmt.Errorf("remove network %s: %w", c.Name, err)
	}
	if err := b.Networks.Delete(e.ctx, c.Name, rev); err != nil {
		return changedMeanwhile(c.Name, err)
	}
	if unreadable {
		return nil // nobody could use it, and there is nothing to add again
	}
	return c.orBack(e, b, n)
}

// orBack adds a network again that somebody began to use after it was found unused. A request that is accepted even later
// finds that it is gone.
func (c *networkRmCmd) orBack(e *env, b *bus.Bus, before *fulmarv1.Network) error {
	used := unused(e, b, c.Name)
	if used == nil {
		return nil
	}
	if err := b.Networks.Put(e.ctx, c.Name, before, 0); err != nil && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return fmt.Errorf("add network %s again, because %w: %w", c.Name, used, err)
	}
	return fmt.Errorf("remove network %s: %w", c.Name, used)
}

// unused refuses a network of which a deployment has instances. Of a stack whose head cannot be read its leases tell.
func unused(e *env, b *bus.Bus, network string) error {
	heads, bad, err := b.Heads.Readable(e.ctx)
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
	if len(bad) == 0 {
		return nil
	}
	leases, _, err := b.Leases.Readable(e.ctx)
	if err != nil {
		return err
	}
	for key, l := range leases {
		in, _, _ := messages.ParseLeaseKey(key)
		stack, _, _, _ := messages.ParseInstance(l.GetInstance())
		if in == network && l.GetRestingUntil() == nil && slices.ContainsFunc(bad, func(u *bus.UnreadableError) bool { return u.Key == stack }) {
			return fmt.Errorf("stack %s, whose head cannot be read, holds an address of it", stack)
		}
	}
	return nil
}
