package firewall

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// With nftables what generations publish is in the sets of one table of our own, and the rules that look into them stand:
// so a switch costs the same however much is published.
const (
	tableOwn = "fulmar" // of the family ip

	setRedirects = "redirects" // a map: protocol . port of the host -> address . port
	setGuards    = "guards"    // address . protocol . source port: may open no flow
	setPorts     = "ports"     // TCP ports of the host at which a packet that belongs to no flow is dropped
	setBridges   = "bridges"   // of our networks: guards are for what comes from them
)

// item is the key of an element of one of the sets. What a set has no use for is zero.
type item struct {
	set      string
	protocol string
	address  netip.Addr
	port     uint16
	bridge   string
}

// meaning is what belongs to an element: where it leads, and the deployment that it was added for, as in web-43. Elements of other sets than the
// redirects may be needed by several deployments, of which it names one.
type meaning struct {
	address netip.Addr
	target  uint16
	owner   string
}

type items map[item]meaning

// change is one commit to the table.
type change struct {
	anew   bool // the table is made anew, whatever was there
	remove []item
	add    items // after what is removed
	drop   bool  // the table is removed
}

func (c change) empty() bool { return !c.anew && !c.drop && len(c.remove)+len(c.add) == 0 }

// redirects gives the elements that lead clients to p.
func (p Publication) redirects() iter.Seq2[item, meaning] {
	return func(yield func(item, meaning) bool) {
		for _, port := range p.Ports {
			if !yield(item{set: setRedirects, protocol: port.Protocol, port: port.Port}, meaning{port.Address, port.Target, p.Name()}) {
				return
			}
		}
	}
}

// guards gives the elements that protect the flows of p.
func (p Publication) guards() iter.Seq2[item, meaning] {
	return func(yield func(item, meaning) bool) {
		for _, port := range p.Ports {
			if !yield(item{set: setGuards, protocol: port.Protocol, address: port.Address, port: port.Target}, meaning{owner: p.Name()}) {
				return
			}
			if port.Protocol == "tcp" && !yield(item{set: setPorts, port: port.Port}, meaning{owner: p.Name()}) {
				return
			}
		}
	}
}

// Shown is a publication of which the kernel has the guard, and the redirect too if clients are led to it.
type Shown struct {
	Publication
	Redirected bool
}

// publish is the switch to p beside what is shown.
func publish(p Publication, all iter.Seq[Shown]) change {
	c := change{add: maps.Collect(p.guards())}
	maps.Insert(c.add, p.redirects())
	led := map[item]bool{}
	for other := range all {
		if !other.Redirected { // of another stack it may be one that drains, and is not tidied up yet
			continue
		}
		for key := range other.redirects() {
			if _, mine := c.add[key]; mine {
				led[key] = true
			}
		}
	}
	c.remove = slices.Collect(maps.Keys(led))
	return c
}

// withdraw removes redirects that were replaced and guards of what has ended, but for what the rest needs.
func withdraw(redirects, guards []Publication, rest iter.Seq[Shown]) change {
	old := map[item]bool{}
	for _, p := range redirects {
		for key := range p.redirects() {
			old[key] = true
		}
	}
	for _, p := range guards {
		for key := range p.guards() {
			old[key] = true
		}
	}
	if len(old) == 0 {
		return change{}
	}
	for other := range rest {
		for key := range other.guards() {
			delete(old, key)
		}
		for key := range other.redirects() {
			if other.Redirected {
				delete(old, key)
			}
		}
	}
	return change{remove: slices.Collect(maps.Keys(old))}
}

// table is what the kernel has of our own table.
type table struct {
	there bool
	sound bool // its rules are those that this process made
	items items
}

// items plans what the sets should have.
func (p *planner) items(want Want, have Have) {
	byGeneration := func(a, b Publication) int { return cmp.Compare(a.Generation, b.Generation) }
	live := slices.SortedFunc(slices.Values(want.Live), byGeneration)
	led := items{}
	for _, pub := range live {
		maps.Insert(led, pub.redirects())
	}
	wanted := items{}
	for _, n := range want.Networks {
		wanted[item{set: setBridges, bridge: n.Bridge}] = meaning{}
	}
	if have.Backend == NFTables {
		maps.Copy(wanted, led)
		leaving := slices.DeleteFunc(slices.Clone(want.Leaving), func(pub Publication) bool { return !have.Guards(pub) })
		for _, pub := range slices.SortedFunc(slices.Values(slices.Concat(live, want.Draining, leaving)), byGeneration) {
			maps.Insert(wanted, pub.guards())
		}
		for _, pub := range live {
			for key, m := range pub.redirects() {
				if wanted[key] == m && have.table.items[key] != m {
					p.Switched = append(p.Switched, pub)
					break
				}
			}
		}
	} else {
		want = want.bare()
	}
	kept := p.leftover(want, have, wanted, led)
	switch {
	case have.Backend == NFTables && !have.table.sound:
		maps.Copy(kept, wanted)
		p.table = change{anew: true, add: kept}
		p.tidied.remove = nil
	case have.Backend == NFTables:
		p.table.add = items{}
		for key, m := range wanted {
			before, there := have.table.items[key]
			if there && key.set == setRedirects && before != m {
				p.table.remove = append(p.table.remove, key)
				there = false
			}
			if !there {
				p.table.add[key] = m
			}
		}
	case have.table.there && len(kept) == 0:
		p.tidied = change{drop: true}
	}
}

// leftover plans to remove what is not wanted, and gives what has to stay because no record explains it, with the guards
// of what stays, whomever they name. A port to which clients are led otherwise is no longer that of what nobody explains:
// this table would come before iptables.
func (p *planner) leftover(want Want, have Have, wanted, led items) items {
	kept := items{}
	for key, m := range have.table.items {
		_, ok := wanted[key]
		_, taken := led[key]
		stack, generation, ours := parseTag(m.owner)
		if ok || taken || !ours || want.explains(generation) || want.Gone(stack, generation) {
			continue
		}
		kept[key] = m
		p.unexplained[generation] = m.owner
		if key.set != setRedirects {
			continue
		}
		unexplained := Publication{Ports: []Port{{key.protocol, key.port, m.address, m.target}}}
		for guard := range unexplained.guards() {
			if of, there := have.table.items[guard]; there {
				kept[guard] = of
			}
		}
	}
	for key := range have.table.items {
		_, stays := kept[key]
		if _, ok := wanted[key]; ok || stays {
			continue
		}
		p.tidied.remove = append(p.tidied.remove, key)
		if key.set == setGuards {
			p.Ended = append(p.Ended, key.address)
		}
	}
	return kept
}
