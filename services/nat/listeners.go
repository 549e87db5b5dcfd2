package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fulmar/firewall"
)

// Numbers of include/uapi/linux/inet_diag.h, sock_diag.h and include/net/tcp_states.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagV6Only       = 11 // attribute: the socket takes no IPv4
	stateClose       = 7  // of a UDP socket without a peer
	stateListen      = 10
)

// listener is a socket of a process of this network namespace that waits for clients.
type listener struct {
	protocol string
	addr     netip.AddrPort
}

// listeners lists them. On a kernel that cannot tell there are none.
func listeners() ([]listener, error) {
	var all []listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []struct {
			name            string
			protocol, state uint8
		}{{"tcp", unix.IPPROTO_TCP, stateListen}, {"udp", unix.IPPROTO_UDP, stateClose}} {
			req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
			body := make([]byte, diagRequestSize)
			body[0], body[1] = family, kind.protocol
			binary.NativeEndian.PutUint32(body[4:], 1<<kind.state)
			req.AddRawData(body)
			err := req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func(message []byte) bool {
				if addr, ok := parseListener(message); ok {
					all = append(all, listener{kind.name, addr})
				}
				return true
			})
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, nl.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list the sockets of the host: %w", err)
			}
		}
	}
	return all, nil
}

// parseListener reads where a socket listens for IPv4.
func parseListener(message []byte) (netip.AddrPort, bool) {
	if len(message) < diagMessageSize {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(message[4:])
	if message[0] == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(message[8:12])), port), true
	}
	addr := netip.AddrFrom16([16]byte(message[8:24])).Unmap()
	attrs, err := nl.ParseRouteAttrAsMap(message[diagMessageSize:])
	if only := attrs[diagV6Only].Value; err != nil || len(only) == 1 && only[0] != 0 || addr.Is6() && !addr.IsUnspecified() {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, port), true
}

// taken finds the first of ports that a process of the host listens on: leading it elsewhere would cut the process off
// from its clients. Ports of UDP that the host gives to whoever asks (from first to last) do not count: such a socket
// is hardly a server.
func taken(ports []firewall.Port, all []listener, first, last uint16) (listener, bool) {
	for _, port := range ports {
		if port.Protocol == "udp" && first <= port.Port && port.Port <= last {
			continue
		}
		for _, l := range all {
			if l.protocol == port.Protocol && l.addr.Port() == port.Port {
				return l, true
			}
		}
	}
	return listener{}, false
}

// ephemeral reads the range of ports that the host gives to whoever asks for any.
func ephemeral() (first, last uint16, err error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0, fmt.Errorf("read the range of local ports: %w", err)
	}
	var bounds [2]uint16
	for i, word := range strings.Fields(string(text)) {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil || i > 1 {
			return 0, 0, fmt.Errorf("read the range of local ports: %q", text)
		}
		bounds[i] = uint16(n)
	}
	return bounds[0], bounds[1], nil
}
