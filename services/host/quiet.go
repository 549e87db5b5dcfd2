package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
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

// maxOwn bounds the addresses of a bridge that are looked at.
const maxOwn = 16

// hush keeps from a unikernel what comes with each start of another: questions for an address of the bridge itself, of which own are the IPv4
// addresses, because nobody else can answer them, and what unikernels announce of themselves, because host does so itself when it says
// anything new: see [bridges.introduce]. It still hears who asks for it, and every announcement of somebody else: one may say that an address that it
// speaks to has another hardware address now, and it would ask again only after minutes. The tap counts what it keeps back as dropped.
func (t *tap) hush(own []netip.Addr) error {
	program, err := bpf.Assemble(hushed(own[:min(len(own), maxOwn)]))
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(program))
	for i, r := range program {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	control, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = control.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.TUNATTACHFILTER, uintptr(unsafe.Pointer(&prog)))
	})
	if err == nil && errno != 0 {
		err = fmt.Errorf("attach filter to tap %s: %w", t.name, errno)
	}
	return err
}

// Where things are in an Ethernet frame with ARP (RFC 826) in it.
const (
	offSource   = 6
	offType     = 12
	offSenderIP = 28
	offTargetIP = 38
	typeARP     = 0x0806
	broadcast   = 0xffffffff // the first four of six bytes: no other address begins so
	accept      = 1 << 18

	// The hardware addresses of unikernels begin so, unless a request names others: see [albatross.MAC].
	vendor     = 0x00804100
	vendorMask = 0xffffff00
)

// hushed is the filter of hush.
func hushed(own []netip.Addr) []bpf.Instruction {
	const pass, drop = 0, 1 // from the end of the program
	length := 14 + len(own)
	to := func(at, end int) uint8 { return uint8(length - 2 + end - at - 1) }
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: broadcast, SkipTrue: to(1, pass)},
		bpf.LoadAbsolute{Off: offType, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeARP, SkipTrue: to(3, pass)},
		bpf.LoadAbsolute{Off: offSenderIP, Size: 4},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: offTargetIP, Size: 4},
		bpf.JumpIfX{Cond: bpf.JumpEqual, SkipTrue: uint8(len(own) + 1)}, // who asks for itself announces itself
	}
	for _, a := range own {
		b := a.As4()
		program = append(program, bpf.JumpIf{
			Cond: bpf.JumpEqual, Val: uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), SkipTrue: to(len(program), drop),
		})
	}
	return append(program,
		bpf.Jump{Skip: uint32(to(len(program), pass))},
		bpf.LoadAbsolute{Off: offSource, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vendorMask},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: vendor, SkipTrue: to(len(program)+3, drop)},
		bpf.RetConstant{Val: accept},
		bpf.RetConstant{Val: 0},
	)
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

// quieten does what can be done for a tap that is on its bridge, of which own are the addresses, and for its unikernel.
func (b *bridges) quieten(t *tap, bridge *netlink.Bridge, own []netip.Prefix, mac net.HardwareAddr) error {
	var addrs []netip.Addr
	for _, o := range own {
		addrs = append(addrs, o.Addr())
	}
	return errors.Join(t.hush(addrs), b.expect(t.name, mac))
}

// expect tells the bridge that a hardware address is behind a tap, so that no frame to it goes to all. It ends with the tap. Of an address that the bridge
// knows, such as its own, it says nothing: a unikernel that was given that of another must not take its packets.
func (b *bridges) expect(tap string, mac net.HardwareAddr) error {
	link, err := b.handle.LinkByName(tap)
	if err == nil {
		err = b.handle.NeighAdd(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: mac,
		})
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("tell the bridge of %s behind tap %s: %w", mac, tap, err)
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

// meet tells the kernel again of an instance that was adopted, should it have forgotten.
func (s *Service) meet(inst *instance) {
	a, ok := acquaintanceOf(inst.record.Name, inst.record.Args)
	if !ok {
		return
	}
	br, err := s.bridges.find(a.bridge)
	if err == nil {
		err = s.bridges.pin(br) // before: it makes the kernel forget
	}
	var own []netip.Prefix
	if err == nil {
		own, err = s.bridges.own(br)
	}
	if err == nil {
		err = s.bridges.introduce(a, nil, br, own)
	}
	if err != nil {
		s.log.Warn("bridge was not kept quiet", "unikernel", inst.record.Name.String(), "err", err)
	}
}

// part takes back what the kernel was told of an instance.
func (s *Service) part(inst *instance) error {
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
