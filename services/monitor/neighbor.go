package monitor

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// neighbors asks for the hardware address of a unit that does not answer. The kernel asks once when the first packet is
// sent, and again only after a second; if its question was lost, because the unit had not opened its tap yet, that
// second would be most of a deployment. The answer goes to the kernel, which waits for it. It takes CAP_NET_RAW; without
// it, the kernel's second it is.
type neighbors struct{ fd int }

func newNeighbors() *neighbors { return &neighbors{fd: -1} }

// open makes the socket. It hears nothing.
func (n *neighbors) open() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for ARP: %w", err)
	}
	n.fd = fd
	return nil
}

func (n *neighbors) close() {
	if n.fd >= 0 {
		_ = unix.Close(n.fd) // there is nothing to lose
	}
}

// ask broadcasts one ARP request for an address, if it is on a link of this host. It wakes every unikernel of the link, so
// it does not when the kernel was told the hardware address, as host does: then the unit was asked, and has not answered.
func (n *neighbors) ask(to netip.Addr) error {
	if n.fd < 0 {
		return nil
	}
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Gw != nil {
		return err
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return err
	}
	if told(link, to) {
		return nil
	}
	src, ok := netip.AddrFromSlice(routes[0].Src.To4())
	if !ok || len(link.Attrs().HardwareAddr) != 6 || link.Attrs().Flags&net.FlagLoopback != 0 {
		return nil
	}
	return unix.Sendto(n.fd, arpRequest(link.Attrs().HardwareAddr, src, to), unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{
		Protocol: 0x0608, // ETH_P_ARP in network byte order
		Ifindex:  link.Attrs().Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	})
}

// told reports whether somebody told the kernel the hardware address of a neighbor. A kernel before Linux 5.0 cannot say.
func told(link netlink.Link, to netip.Addr) bool {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(link.Attrs().Index)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, to.AsSlice()))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil || len(messages) == 0 {
		return false
	}
	n, err := netlink.NeighDeserialize(messages[0])
	return err == nil && n.Flags&netlink.NTF_EXT_LEARNED != 0 && n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0
}

// arpRequest is the question who has an address (RFC 826).
func arpRequest(mac net.HardwareAddr, from, to netip.Addr) []byte {
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, their lengths, request
	packet = append(packet, mac...)
	packet = append(packet, from.AsSlice()...)
	packet = append(packet, 0, 0, 0, 0, 0, 0)
	return append(packet, to.AsSlice()...)
}
