package conntrack

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h that vishvananda's nl does not have.
const (
	ctaID     = 12
	ctaFilter = 25

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2

	// Bits of the filter's flags: which fields of the tuple have to be equal (net/netfilter/nf_conntrack_netlink.c).
	filterIPSource        = 1 << 0
	filterIPDestination   = 1 << 1
	filterProtocol        = 1 << 3
	filterPortDestination = 1 << 5
)

const (
	protocolTCP = unix.IPPROTO_TCP
	protocolUDP = unix.IPPROTO_UDP
)

// match says which entries are meant: those that are equal in every field that is set.
type match struct {
	protocol    uint8
	source      netip.Addr // of the original direction, before translation
	destination netip.Addr // of the original direction, before translation
	port        uint16     // destination port of the original direction; needs protocol
	replySource netip.Addr // who answers, after translation
}

// flow is one entry of the table, as much of it as is decided by. original is its tuple in the kernel's own bytes: with
// id it names the entry for a delete.
type flow struct {
	protocol    uint8
	state       uint8 // TCP only
	source      netip.Addr
	destination netip.Addr
	port        uint16
	replySource netip.Addr
	original    []byte
	id          []byte
}

// answered reports whether a TCP flow was answered and may still carry data in either direction. A request that nobody
// answers is none: who sent it asks again, and reaches whoever holds the port then. The kernel keeps it for 2 minutes, and
// every health check that is too early for its unit leaves one. Nor is a handshake straight to the address, past every
// published port, that was answered and not finished: a health check that ends in that moment leaves it for a minute, if
// the unit does not ask what has become of it. A client's handshake comes by a published port and counts.
func (f flow) answered() bool {
	if f.state == nl.TCP_CONNTRACK_SYN_RECV && f.destination == f.replySource {
		return false
	}
	return f.state != nl.TCP_CONNTRACK_SYN_SENT && (f.state < nl.TCP_CONNTRACK_TIME_WAIT || f.state == nl.TCP_CONNTRACK_SYN_SENT2)
}

func (m match) holds(f flow) bool {
	return (m.protocol == 0 || m.protocol == f.protocol) &&
		(m.port == 0 || m.port == f.port) &&
		(!m.source.IsValid() || m.source == f.source) &&
		(!m.destination.IsValid() || m.destination == f.destination) &&
		(!m.replySource.IsValid() || m.replySource == f.replySource)
}

// attributes renders m as the filter of a dump or a delete: two partial tuples, and flags that say which of their fields
// count. Both tuples are always there; see the package's invariant.
func (m match) attributes() []*nl.RtAttr {
	var origFlags, replyFlags uint32
	orig := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
	if m.source.IsValid() || m.destination.IsValid() {
		ip := orig.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
		if m.source.IsValid() {
			origFlags |= filterIPSource
			ip.AddRtAttr(nl.CTA_IP_V4_SRC, m.source.AsSlice())
		}
		if m.destination.IsValid() {
			origFlags |= filterIPDestination
			ip.AddRtAttr(nl.CTA_IP_V4_DST, m.destination.AsSlice())
		}
	}
	if m.protocol != 0 {
		origFlags |= filterProtocol
		proto := orig.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
		proto.AddRtAttr(nl.CTA_PROTO_NUM, nl.Uint8Attr(m.protocol))
		if m.port != 0 {
			origFlags |= filterPortDestination
			proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(m.port))
		}
	}
	reply := nl.NewRtAttr(nl.CTA_TUPLE_REPLY|unix.NLA_F_NESTED, nil)
	if m.replySource.IsValid() {
		replyFlags |= filterIPSource
		reply.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(nl.CTA_IP_V4_SRC, m.replySource.AsSlice())
	}
	filter := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(origFlags))
	filter.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(replyFlags))
	return []*nl.RtAttr{orig, reply, filter}
}

// parse reads one entry of a dump. Attributes that it does not know, or that are cut short, are passed over: an entry
// without the fields of a match is never acted on.
func parse(message []byte) flow {
	var f flow
	if len(message) < nl.SizeofNfgenmsg {
		return f
	}
	for kind, value := range attributes(message[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			t := parseTuple(value)
			f.source, f.destination, f.protocol, f.port, f.original = t.source, t.destination, t.protocol, t.port, value
		case nl.CTA_TUPLE_REPLY:
			f.replySource = parseTuple(value).source
		case nl.CTA_PROTOINFO:
			f.state = parseState(value)
		case ctaID:
			f.id = value
		}
	}
	return f
}

type tuple struct {
	source, destination netip.Addr
	protocol            uint8
	port                uint16
}

func parseTuple(data []byte) tuple {
	var t tuple
	for kind, value := range attributes(data) {
		for inner, v := range attributes(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && inner == nl.CTA_IP_V4_SRC:
				t.source, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_IP && inner == nl.CTA_IP_V4_DST:
				t.destination, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(v) == 1:
				t.protocol = v[0]
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				t.port = binary.BigEndian.Uint16(v)
			}
		}
	}
	return t
}

func parseState(data []byte) uint8 {
	for kind, value := range attributes(data) {
		if kind != nl.CTA_PROTOINFO_TCP {
			continue
		}
		for inner, v := range attributes(value) {
			if inner == nl.CTA_PROTOINFO_TCP_STATE && len(v) == 1 {
				return v[0]
			}
		}
	}
	return 0
}

// attributes yields the netlink attributes of data, type and payload, up to the first that does not fit.
func attributes(data []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(data))
			if size < unix.SizeofRtAttr || size > len(data) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(data[2:])&nl.NLA_TYPE_MASK, data[unix.SizeofRtAttr:size]) {
				return
			}
			data = data[min(len(data), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}
