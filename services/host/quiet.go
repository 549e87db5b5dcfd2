package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// A bridge gives every broadcast, and every frame to an address that it does not know, to all its ports. With a thousand unikernels
// each of them wakes a thousand processes, which takes longer than a whole start. So host sees to it that starting one
// needs few of them, and that the rest wake only those that they may be for. What is here is an improvement only: without any of
// it the same unikernels reach one another by ARP.

// offIPv6 keeps the kernel from having addresses of its own on a tap, which is a port of a bridge and needs none: the routes of each, and
// what it announces, cost every other tap some time. A tap of that name must be down.
func offIPv6(tap string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", tap, "disable_ipv6"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return nil // a kernel without IPv6, or a container that may not: it costs time, and nothing else
	}
	return err
}

// gateway is what is known of a bridge, and what is read of it at first.
func (b *bridges) gateway(bridge *netlink.Bridge) (gateway, error) {
	return b.unicasts.gateway(bridge.Attrs().Index, func() (gateway, error) { return b.read(bridge) })
}

// read reads the IPv4 addresses of a bridge. From then on the bridge takes what is sent to the hardware address that it has now, even when it is given
// another: else who asks it alone would not find out. It also takes what is sent to those that a bridge of its name had before, which unikernels may remember.
func (b *bridges) read(bridge *netlink.Bridge) (gateway, error) {
	a := gateway{mac: bridge.Attrs().HardwareAddr}
	var err error
	if a.own, err = b.own(bridge); err != nil {
		return a, err
	}
	for _, mac := range b.remember(bridge.Attrs().Name, a.mac) {
		err = b.handle.NeighSet(&netlink.Neigh{
			LinkIndex: bridge.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, HardwareAddr: mac,
		})
		if err != nil {
			return a, fmt.Errorf("tell bridge %s of its own address: %w", bridge.Attrs().Name, err)
		}
	}
	return a, nil
}

// macsKept is how many hardware addresses of bridges of one name are remembered.
const macsKept = 4

// remember gives the last hardware addresses of bridges of a name, of which mac is the latest.
func (b *bridges) remember(name string, mac net.HardwareAddr) []net.HardwareAddr {
	b.mu.Lock()
	defer b.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(b.macs[name]), func(other net.HardwareAddr) bool { return slices.Equal(other, mac) })
	b.macs[name] = append(others[max(0, len(others)+1-macsKept):], mac)
	return b.macs[name]
}

// readAgain reads the bridge of an index. That it is gone is a [netlink.LinkNotFoundError].
func (b *bridges) readAgain(index int) (gateway, error) {
	link, err := b.handle.LinkByIndex(index)
	if err != nil {
		return gateway{}, fmt.Errorf("find bridge %d: %w", index, err)
	}
	bridge, ok := link.(*netlink.Bridge)
	if !ok {
		return gateway{}, fmt.Errorf("interface %s is not a bridge", link.Attrs().Name)
	}
	return b.read(bridge)
}

// attend follows which IPv4 addresses bridges have, until ctx ends.
func (s *Service) attend(ctx context.Context) {
	b := s.bridges
	stop := context.AfterFunc(ctx, b.addresses.Close)
	defer stop()
	for {
		messages, _, err := b.addresses.Receive()
		var changed []int
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // something was missed
			changed = b.unicasts.known()
		case err != nil:
			s.log.Error("addresses of bridges were not followed any more", "err", err)
			return
		}
		for _, m := range messages {
			if len(m.Data) >= unix.SizeofIfAddrmsg {
				changed = append(changed, int(nl.DeserializeIfAddrmsg(m.Data).Index))
			}
		}
		if b.unicasts.strange(changed) || errors.Is(err, unix.ENOBUFS) {
			s.mendSoon()
		}
		for _, index := range changed {
			err := b.unicasts.renew(index, func() (gateway, error) { return b.readAgain(index) })
			if gone := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &gone) {
				s.log.Warn("bridge was not kept quiet", "index", index, "err", err)
			}
		}
	}
}

// own lists the IPv4 addresses of a bridge.
func (b *bridges) own(bridge *netlink.Bridge) ([]netip.Prefix, error) {
	index := uint32(bridge.Attrs().Index)
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.Sockets = b.sockets
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index = index // a kernel before Linux 4.20 tells those of all interfaces
	req.AddData(msg)
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the addresses of bridge %s: %w", bridge.Attrs().Name, err)
	}
	var own []netip.Prefix
	for _, m := range messages {
		head := nl.DeserializeIfAddrmsg(m)
		attrs, err := nl.ParseRouteAttrAsMap(m[head.Len():])
		if err != nil {
			return nil, fmt.Errorf("list the addresses of bridge %s: %w", bridge.Attrs().Name, err)
		}
		if addr, ok := netip.AddrFromSlice(attrs[unix.IFA_LOCAL].Value); ok && head.Index == index {
			own = append(own, netip.PrefixFrom(addr, int(head.Prefixlen)))
		}
	}
	return own, nil
}

// expect tells the bridge that a hardware address is behind a tap, so that no frame to it goes to all. It ends with the tap. Of an address that the bridge
// knows, such as its own, it says nothing: a unikernel that was given that of another must not take its packets.
func (b *bridges) expect(t *tap, mac net.HardwareAddr) error {
	err := b.handle.NeighAdd(&netlink.Neigh{
		LinkIndex: t.index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: mac,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("tell the bridge of %s behind tap %s: %w", mac, t.name, err)
	}
	return nil
}

// ownAddress is the IPv4 address that the arguments of a unikernel give it, in the way of MirageOS: --ipv4=10.0.0.2/24.
func ownAddress(arguments []string) (netip.Addr, bool) {
	for _, a := range arguments {
		text, ok := strings.CutPrefix(a, "--ipv4=")
		if !ok {
			continue
		}
		p, err := netip.ParsePrefix(text)
		return p.Addr(), err == nil && p.Addr().Is4()
	}
	return netip.Addr{}, false
}

// acquaintance is what the kernel can be told of a unikernel before it speaks: which hardware address its IPv4 address has.
type acquaintance struct {
	bridge string
	addr   netip.Addr
	mac    net.HardwareAddr
}

// is says whether two are the same.
func (a acquaintance) is(b acquaintance) bool {
	return a.bridge == b.bridge && a.addr == b.addr && slices.Equal(a.mac, b.mac)
}

// acquaintanceOf gives that of a unikernel. One whose address or device its arguments leave open has none.
func acquaintanceOf(name albatross.Name, args albatross.Args) (a acquaintance, ok bool) {
	addr, ok := ownAddress(args.Arguments)
	if !ok || len(args.Bridges) != 1 {
		return a, false
	}
	return acquaintance{bridge: bridgeName(args.Bridges[0]), addr: addr, mac: mac(name, args.Bridges[0])}, true
}

// introduce makes a, which is behind a tap, the kernel's neighbor, so that it need not ask all who has the address, and so that a thousand of them do not fill its
// table of neighbors, from which these entries do not count. It says nothing against what the kernel knows already, and the kernel looks
// within seconds whether it is true. If the address may have been another's lately, it tells all.
func (b *bridges) introduce(a acquaintance, t *tap, bridge *netlink.Bridge, own []netip.Prefix) error {
	if b.holders.moved(holderKey{bridge.Attrs().Index, a.addr}, a.mac.String(), time.Now()) && t != nil {
		if _, err := t.file.Write(greeting(a)); err != nil {
			return fmt.Errorf("announce %s at %s: %w", a.addr, a.mac, err)
		}
	}
	near := false
	for _, o := range own {
		near = near || o.Contains(a.addr) && o.Addr() != a.addr
	}
	if !near {
		return nil
	}
	neigh := &netlink.Neigh{
		LinkIndex: bridge.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED,
		IP: a.addr.AsSlice(), HardwareAddr: a.mac,
	}
	err := b.handle.NeighAdd(neigh)
	if errors.Is(err, unix.EEXIST) {
		have, gerr := b.neighbor(bridge, a.addr)
		if gerr != nil || have == nil || have.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 && have.HardwareAddr.String() != a.mac.String() {
			return gerr
		}
		err = b.handle.NeighSet(neigh)
	}
	if err != nil {
		return fmt.Errorf("introduce %s at %s to bridge %s: %w", a.addr, a.mac, a.bridge, err)
	}
	return nil
}

// quieten spares the others on a bridge what the start of a unikernel would tell them.
func (s *Service) quieten(r record, w wire) error {
	to, err := s.bridges.gateway(w.bridge)
	if err != nil {
		return err
	}
	err = s.bridges.expect(w.tap, w.mac)
	a, ok := acquaintanceOf(r.Name, r.Args)
	if ok {
		err = errors.Join(err, s.bridges.introduce(a, w.tap, w.bridge, to.own)) // before: what it says to all must not go to the bridge alone
	}
	return errors.Join(err, s.bridges.unicasts.add(w.tap.index, speaker{w.bridge.Attrs().Index, a.addr}))
}

// part takes back what the kernel was told of an instance, whose taps are gone.
func (s *Service) part(inst *instance) error {
	if err := s.bridges.unicasts.drop(inst.links...); err != nil {
		s.log.Warn("bridges were not kept quiet", "unikernel", inst.record.Name.String(), "err", err)
	}
	a, ok := acquaintanceOf(inst.record.Name, inst.record.Args)
	if !ok {
		return nil
	}
	return s.bridges.part(a)
}

// part takes back what introduce said, unless the kernel knows better by now. That the bridge is gone is as well.
func (b *bridges) part(a acquaintance) error {
	bridge, err := b.find(a.bridge)
	if _, refused := errors.AsType[refusal](err); refused {
		return nil
	}
	if err != nil {
		return err
	}
	b.holders.left(holderKey{bridge.Attrs().Index, a.addr}, a.mac.String(), time.Now())
	have, err := b.neighbor(bridge, a.addr)
	if err != nil || have == nil || have.Flags&netlink.NTF_EXT_LEARNED == 0 || have.HardwareAddr.String() != a.mac.String() {
		return err
	}
	if err := b.handle.NeighDel(have); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take %s from the neighbors of bridge %s: %w", a.addr, a.bridge, err)
	}
	return nil
}

// neighbor is what the kernel knows of an address on a bridge, or nil. A kernel before Linux 5.0 does not say.
func (b *bridges) neighbor(bridge *netlink.Bridge, addr netip.Addr) (*netlink.Neigh, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.Sockets = b.sockets
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(bridge.Attrs().Index)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(messages) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s on bridge %s: %w", addr, bridge.Attrs().Name, err)
	}
	return netlink.NeighDeserialize(messages[0])
}
