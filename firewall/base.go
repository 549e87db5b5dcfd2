package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// Hook is a rule of a built-in chain that leads to a chain of ours.
type Hook struct{ Table, Chain, Rule string }

// hooks are all hooks. Each stands first in its chain, because a rule before it may drop or translate what is ours.
func hooks() []Hook {
	const local = "-m addrtype --dst-type LOCAL -j " + chainMain
	return []Hook{
		{tableRaw, "PREROUTING", "-j " + chainMain},
		{tableMangle, "PREROUTING", "-p tcp -m conntrack --ctstate INVALID -m addrtype --dst-type LOCAL -j " + chainMain},
		{tableFilter, "FORWARD", "-j " + chainMain},
		{tableFilter, "INPUT", "-j " + chainInput},
		{tableNAT, "PREROUTING", local},
		{tableNAT, "OUTPUT", local},
		{tableNAT, "POSTROUTING", "-j " + chainPost},
	}
}

// fixed are the chains with a fixed content, and shared those to which generations add their rules.
func fixed() []line {
	return []line{{tableRaw, chainMain, ""}, {tableFilter, chainMain, ""}, {tableFilter, chainInput, ""}, {tableNAT, chainPost, ""}}
}

func shared() []line {
	return []line{{tableMangle, chainMain, ""}, {tableFilter, chainGuard, ""}, {tableNAT, chainMain, ""}}
}

// base is the content of the fixed chains for networks, in order. The rules of one kind stand together for all networks,
// so that none of them decides for another: what is routed from one of our bridges to another is dropped, unless it goes
// to a published port.
func base(networks []Network) []line {
	networks = slices.SortedFunc(slices.Values(networks), func(a, b Network) int { return strings.Compare(a.Bridge, b.Bridge) })
	var all []line
	each := func(table, chain, format string) {
		for _, n := range networks {
			all = append(all, line{table, chain, strings.NewReplacer("BR", n.Bridge, "NET", n.Prefix.Masked().String()).Replace(format)})
		}
	}
	each(tableRaw, chainMain, "-d 127.0.0.0/8 -i BR -j DROP") // route_localnet would let it in
	each(tableFilter, chainMain, "-i BR -m conntrack --ctstate INVALID -j DROP")
	each(tableFilter, chainMain, "-i BR -m conntrack --ctstate NEW -j "+chainGuard)
	each(tableFilter, chainMain, "-i BR -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	each(tableFilter, chainMain, "-o BR -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT")
	each(tableFilter, chainMain, "-i BR -o BR -j ACCEPT")
	each(tableFilter, chainMain, "-o BR -j DROP")
	each(tableFilter, chainMain, "-i BR -j ACCEPT")
	each(tableFilter, chainInput, "-i BR -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	each(tableFilter, chainInput, "-i BR -p icmp -m icmp --icmp-type 8 -j ACCEPT")
	each(tableFilter, chainInput, "-i BR -j DROP")
	each(tableNAT, chainPost, "-s NET -o BR -m conntrack --ctstate DNAT -j MASQUERADE")
	each(tableNAT, chainPost, "-s 127.0.0.0/8 -o BR -m conntrack --ctstate DNAT -j MASQUERADE")
	each(tableNAT, chainPost, "-s NET ! -o BR -j MASQUERADE")
	return all
}

// Sysctls are the settings of the kernel that n needs, as paths below /proc/sys and values.
func (n Network) Sysctls() map[string]string {
	conf := "net/ipv4/conf/" + n.Bridge + "/"
	return map[string]string{
		"net/ipv4/ip_forward":   "1",
		conf + "route_localnet": "1", // the host reaches published ports at 127.0.0.1
		conf + "arp_announce":   "2", // the bridge asks with its own address, whatever the packet's source is
		conf + "send_redirects": "0", // a neighbour is reached by the host on purpose
	}
}

// script is an input for iptables-restore under construction: by table, the chains that it declares, which empties those
// that exist, and then the commands.
type script struct{ declare, commands map[string][]string }

func newScript() script { return script{map[string][]string{}, map[string][]string{}} }

func (s script) chain(table, chain string) {
	s.declare[table] = append(s.declare[table], fmt.Sprintf(":%s - [0:0]", chain))
}

func (s script) append(l line) { s.add(l.table, "-A "+l.chain+" "+l.rule) }

func (s script) insert(l line) { s.add(l.table, "-I "+l.chain+" 1 "+l.rule) }

func (s script) delete(l line) { s.add(l.table, "-D "+l.chain+" "+l.rule) }

func (s script) drop(table, chain string) { s.add(table, "-F "+chain, "-X "+chain) }

func (s script) add(table string, commands ...string) {
	s.commands[table] = append(s.commands[table], commands...)
}

// String is the input, one commit a table. It is empty if nothing changes.
func (s script) String() string {
	var b strings.Builder
	for _, table := range []string{tableRaw, tableMangle, tableFilter, tableNAT} {
		if len(s.declare[table])+len(s.commands[table]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", table)
		for _, text := range slices.Concat(s.declare[table], s.commands[table]) {
			b.WriteString(text)
			b.WriteByte('\n')
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// Publish renders the switch to p: one input for iptables-restore --noflush that brings all its rules into force, before
// those of the generation that it replaces. It is for a generation of which the kernel has no rule, in a network whose
// base stands. It is empty if p publishes nothing.
func Publish(p Publication) string {
	s := newScript()
	if len(p.Ports) > 0 {
		guards, guarded := p.guard()
		redirects, redirected := p.redirect()
		s.chain(tableFilter, chainOf(p.Generation))
		s.chain(tableNAT, chainOf(p.Generation))
		for _, l := range slices.Concat(guards, redirects) {
			s.append(l)
		}
		for _, l := range slices.Concat(guarded, redirected) {
			s.insert(l)
		}
	}
	return s.String()
}

// Remove renders the removal, in one batch, of the redirects of generations that were replaced and of the guards of
// generations whose instances have ended. The kernel has all of it.
func Remove(redirects, guards []Publication) string {
	s := newScript()
	for _, p := range redirects {
		_, jumps := p.redirect()
		s.deleteAll(jumps, tableNAT, chainOf(p.Generation))
	}
	for _, p := range guards {
		_, jumps := p.guard()
		s.deleteAll(jumps, tableFilter, chainOf(p.Generation))
	}
	return s.String()
}

func (s script) deleteAll(jumps []line, table, chain string) {
	for _, l := range jumps {
		s.delete(l)
	}
	if len(jumps) > 0 {
		s.drop(table, chain)
	}
}
