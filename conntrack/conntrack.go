// Package conntrack asks the kernel's connection table what a drain and a switch need to know, and removes from it what
// must not live on: the flows of an address that is gone, and UDP flows that still go to the instance that was replaced.
//
// Every call speaks to the network namespace of the calling thread, opens a socket of its own and closes it again, so
// there is no state and every function may be called at once from anywhere. Dumps and deletes are filtered by the kernel
// (CTA_FILTER: dumps since Linux 5.8, deletes since about 6.8), which is what makes them cheap in a full table. An older
// kernel ignores the filter of a dump or refuses that of a delete, so what a dump returns is looked at again here, and a
// refused delete becomes a dump and one delete for each entry found.
//
// The invariant: nothing is ever deleted that does not carry the address that was named. A delete always names a tuple,
// so that a kernel that does not know the filter refuses it instead of emptying its table.
package conntrack

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// manyAddresses is how many addresses are asked for one by one. Each costs a walk over the kernel's table; above it one
// dump of all TCP entries is cheaper than the walks.
const manyAddresses = 8

// Established counts, for every address of addrs, the TCP flows that it still answers: entries whose reply comes from the
// address and whose state is before TIME_WAIT, but not SYN_SENT, nor SYN_RECV of one that no published port led there. An address without flows is in the answer with zero.
// Clients that vanished count for as long as the kernel keeps them (5 days by default).
func Established(addrs ...netip.Addr) (map[netip.Addr]int, error) {
	open := make(map[netip.Addr]int, len(addrs))
	for _, addr := range addrs {
		if !addr.Is4() {
			return nil, fmt.Errorf("count flows of %s: not an IPv4 address", addr)
		}
		open[addr] = 0
	}
	count := func(f flow) {
		if _, asked := open[f.replySource]; asked && f.protocol == protocolTCP && f.answered() {
			open[f.replySource]++
		}
	}
	if len(open) > manyAddresses {
		if err := dump(match{protocol: protocolTCP}, count); err != nil {
			return nil, fmt.Errorf("count TCP flows: %w", err)
		}
		return open, nil
	}
	for addr := range open {
		if err := dump(match{protocol: protocolTCP, replySource: addr}, count); err != nil {
			return nil, fmt.Errorf("count TCP flows of %s: %w", addr, err)
		}
	}
	return open, nil
}

// FlushUDP deletes the UDP flows that clients sent to port (in host byte order, before translation) and that replySource
// answers. Their next packet is translated anew. That there are none is success.
func FlushUDP(replySource netip.Addr, port uint16) error {
	if !replySource.Is4() || port == 0 {
		return fmt.Errorf("flush UDP flows of %s to port %d: not an IPv4 address and a port", replySource, port)
	}
	if err := remove(match{protocol: protocolUDP, replySource: replySource, port: port}); err != nil {
		return fmt.Errorf("flush UDP flows of %s to port %d: %w", replySource, port, err)
	}
	return nil
}

// DeleteAddress deletes every entry of addr, whatever its protocol: those that it opened, those that were opened to it,
// and those that were translated to it. It is for an address whose holder is gone: clients are reset instead of hanging,
// and the next holder inherits nothing.
func DeleteAddress(addr netip.Addr) error {
	if !addr.Is4() {
		return fmt.Errorf("delete the flows of %s: not an IPv4 address", addr)
	}
	for _, m := range []match{{replySource: addr}, {source: addr}, {destination: addr}} {
		if err := remove(m); err != nil {
			return fmt.Errorf("delete the flows of %s: %w", addr, err)
		}
	}
	return nil
}

// Usage is how full the connection table is.
type Usage struct {
	Count int // entries in this network namespace
	Max   int // entries the kernel keeps at most, beyond which new connections time out
}

// ReadUsage reads how full the connection table is. It fails on a kernel that tracks no connections yet.
func ReadUsage() (Usage, error) {
	count, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return Usage{}, err
	}
	limit, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return Usage{}, err
	}
	return Usage{Count: count, Max: limit}, nil
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the size of the connection table: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read the size of the connection table from %s: %w", path, err)
	}
	return n, nil
}
