// Package firewall knows how what Fulmar publishes looks in the kernel: it renders the rules, reads them back, and says
// which of them have to change. nat is the only one who changes rules; gc reads whether the kernel still has any of a
// generation.
//
// What stands are chains of our own, named FULMAR and FULMAR-<word>, and one hook to each from a built-in chain. What
// changes are the rules of the generations, in three parts: the redirect (table nat: a chain FULMAR-<generation> of
// translations and the jumps to it), which exists while the generation is live, and the guard (table filter: what stops
// an old instance from opening flows from a published port again; table mangle: what keeps a packet outside of the window
// from resetting a live connection), which stays until its instances have ended. The first rule of a generation's chain, and
// each rule that it has in a shared chain without one of its own, carries the deployment's name, as in web-43, as its comment.
//
// With the backend [NFTables] what changes are elements instead, in the sets of one table of our own, whose rules stand.
// They mean the same, and each names a deployment in its comment.
//
// The invariant: all rules of a generation come into force by one commit, before those of the generation that it
// replaces, and nothing is changed that is not in a chain of ours or a hook to one.
//
// Rendering and planning are pure; [Kernel], [Redirected] and [Watch] touch the network namespace of the process.
package firewall

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The tables, in the order in which a change is committed: what guards a generation comes before what leads to it.
const (
	tableRaw    = "raw"
	tableMangle = "mangle"
	tableFilter = "filter"
	tableNAT    = "nat"
)

// The chains that stand. All but the shared ones, to which generations add their rules, have a fixed content.
const (
	chainMain  = "FULMAR"      // raw: fixed; filter: fixed; mangle and nat: shared
	chainInput = "FULMAR-IN"   // filter: fixed
	chainGuard = "FULMAR-GEN"  // filter: shared
	chainPost  = "FULMAR-POST" // nat: fixed
)

// Backend is what the redirects and guards of generations are written with. What stands is written with iptables in any case.
type Backend string

const (
	// IPTables makes a chain of each generation, which everybody can see with iptables -S. Each change costs more the more
	// is published.
	IPTables Backend = "iptables"
	// NFTables makes elements of the sets of one table, in a time that does not depend on how much is published.
	NFTables Backend = "nftables"
)

// multiport is how many ports one rule of iptables takes.
const multiport = 15

// Network is a bridge with the prefix of the instances on it.
type Network struct {
	Bridge string
	Prefix netip.Prefix
}

// Port leads a port of the host to a port of an instance.
type Port struct {
	Protocol string // tcp or udp
	Port     uint16 // on the host's addresses
	Address  netip.Addr
	Target   uint16
}

// Publication is what a generation of a stack publishes. Its units may have an address each.
type Publication struct {
	Stack      string
	Generation uint64
	Ports      []Port // no two with the same protocol and port
}

// Name is the deployment's name: web-43.
func (p Publication) Name() string { return tag(p.Stack, p.Generation) }

func tag(stack string, generation uint64) string {
	return stack + "-" + strconv.FormatUint(generation, 10)
}

func parseTag(s string) (stack string, generation uint64, ok bool) {
	i := strings.LastIndexByte(s, '-')
	if i < 1 {
		return "", 0, false
	}
	generation, err := strconv.ParseUint(s[i+1:], 10, 64)
	return s[:i], generation, err == nil
}

// chainOf is the chain of a generation, at most 27 of the 28 characters that the kernel takes.
func chainOf(generation uint64) string { return chainMain + "-" + strconv.FormatUint(generation, 10) }

// generationOf is the reverse of chainOf.
func generationOf(chain string) (uint64, bool) {
	digits, ours := strings.CutPrefix(chain, chainMain+"-")
	if !ours {
		return 0, false
	}
	generation, err := strconv.ParseUint(digits, 10, 64)
	return generation, err == nil
}

// line is a rule at its place, as iptables-save prints it after "-A CHAIN ".
type line struct{ table, chain, rule string }

// redirect is what leads clients to p: the content of its chain, and the jumps to it, one a protocol and 15 ports.
func (p Publication) redirect() (content, jumps []line) {
	chain := chainOf(p.Generation)
	for _, port := range p.sorted() {
		content = append(content, line{tableNAT, chain, fmt.Sprintf("%s%s -j DNAT --to-destination %s:%d",
			match(port.Protocol, "d", strconv.Itoa(int(port.Port))), p.label(len(content)), port.Address, port.Target)})
	}
	for _, ports := range p.chunks(func(port Port) (string, uint16) { return port.Protocol, port.Port }) {
		jumps = append(jumps, line{tableNAT, chainMain, fmt.Sprintf("%s -j %s", match(ports.key, "d", ports.list), chain)})
	}
	return content, jumps
}

// guard is what protects the flows of p: new flows from a published port of an instance are dropped, and so are packets
// to a published port that belong to no flow.
func (p Publication) guard() (content, jumps []line) {
	chain := chainOf(p.Generation)
	for _, ports := range p.chunks(func(port Port) (string, uint16) { return port.Address.String() + " " + port.Protocol, port.Target }) {
		address, protocol, _ := strings.Cut(ports.key, " ")
		content = append(content, line{tableFilter, chain, fmt.Sprintf("-s %s/32 %s%s -j DROP",
			address, match(protocol, "s", ports.list), p.label(len(content)))})
	}
	for _, address := range p.Addresses() {
		jumps = append(jumps, line{tableFilter, chainGuard, fmt.Sprintf("-s %s/32 -j %s", address, chain)})
	}
	for _, ports := range p.chunks(func(port Port) (string, uint16) { return port.Protocol, port.Port }) {
		if ports.key == "tcp" {
			jumps = append(jumps, line{tableMangle, chainMain, fmt.Sprintf("%s%s -j DROP", match(ports.key, "d", ports.list), p.label(0))})
		}
	}
	return content, jumps
}

// label is the comment of the rule of that number in a chain. In the chain of a generation the first rule has one, and the
// jumps to it have none: the kernel copies and checks all jumps at each change.
func (p Publication) label(number int) string {
	if number > 0 {
		return ""
	}
	return " -m comment --comment " + p.Name()
}

// match matches a list of source ("s") or destination ("d") ports, as iptables-save prints it. The match of a single port is
// less to copy.
func match(protocol, side, list string) string {
	if strings.Contains(list, ",") {
		return fmt.Sprintf("-p %s -m multiport --%sports %s", protocol, side, list)
	}
	return fmt.Sprintf("-p %s -m %s --%sport %s", protocol, protocol, side, list)
}

// Addresses are the addresses of the instances that p leads to.
func (p Publication) Addresses() []netip.Addr {
	var addrs []netip.Addr
	for _, port := range p.Ports {
		addrs = append(addrs, port.Address)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func (p Publication) sorted() []Port {
	return slices.SortedFunc(slices.Values(p.Ports), func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
}

// chunk is a list of ports that fits one rule.
type chunk struct{ key, list string }

// chunks groups ports by what keyed says, sorted and each once, in lists of at most 15.
func (p Publication) chunks(keyed func(Port) (string, uint16)) []chunk {
	groups := map[string][]uint16{}
	for _, port := range p.Ports {
		key, number := keyed(port)
		groups[key] = append(groups[key], number)
	}
	var all []chunk
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		slices.Sort(groups[key])
		for ports := range slices.Chunk(slices.Compact(groups[key]), multiport) {
			var list []string
			for _, port := range ports {
				list = append(list, strconv.Itoa(int(port)))
			}
			all = append(all, chunk{key, strings.Join(list, ",")})
		}
	}
	return all
}
