package firewall

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Want is what the records say that the kernel should have.
type Want struct {
	Networks []Network
	// Live has the publications that clients are led to.
	Live []Publication
	// Draining has those that were replaced: their instances still serve what is established.
	Draining []Publication
	// Leaving has those whose instances are being ended: of them, the kernel keeps the guards that it has.
	Leaving []Publication
	// Gone reports whether the records prove that a deployment that is in none of the above is over. A missing record
	// proves nothing.
	Gone func(stack string, generation uint64) bool
}

// Plan is what makes the kernel have what is wanted. The zero Plan changes nothing.
type Plan struct {
	// Install is an input for iptables-restore --noflush that adds what is missing and sets right what is wrong.
	Install string
	// Missing are hooks that are not there, and Late those that are there, but not first in their chain.
	Missing, Late []Hook
	// Remove is such an input too, to be run after all of the above: it removes what is no longer wanted.
	Remove string
	// Switched has the live publications that clients are led to by this plan and were not before.
	Switched []Publication
	// Ended has the addresses of instances that have ended and still had a guard.
	Ended []netip.Addr
	// Unexplained names the deployments of which the kernel has rules and no record tells why. They are left alone.
	Unexplained []string

	table  change // goes with Install
	tidied change // goes with Remove
}

// Changes reports whether the plan changes anything that matters at once; what is late or to be removed can wait.
func (p Plan) Changes() bool { return p.Install != "" || !p.table.empty() || len(p.Missing) > 0 }

// Removes reports whether the plan removes what is no longer wanted.
func (p Plan) Removes() bool { return p.Remove != "" || !p.tidied.empty() }

// Empty reports whether a Want is of a host without networks and publications, whose firewall is none of our business.
func (w Want) Empty() bool {
	return len(w.Networks)+len(w.Live)+len(w.Draining)+len(w.Leaving) == 0
}

// explains reports whether the records have a generation.
func (w Want) explains(generation uint64) bool {
	return slices.ContainsFunc(slices.Concat(w.Live, w.Draining, w.Leaving), func(p Publication) bool { return p.Generation == generation })
}

// bare is w without publications, of which then nothing is wanted.
func (w Want) bare() Want {
	known := map[uint64]bool{}
	for _, pub := range slices.Concat(w.Live, w.Draining, w.Leaving) {
		known[pub.Generation] = true
	}
	return Want{Networks: w.Networks, Gone: func(stack string, generation uint64) bool { return known[generation] || w.Gone(stack, generation) }}
}

// NewPlan compares what is wanted with what the kernel has. What the kernel has of another backend is no longer wanted.
func NewPlan(want Want, have Have) Plan {
	p := &planner{
		have: have, install: newScript(), remove: newScript(), kept: map[line]bool{}, explained: map[uint64]string{}, unexplained: map[uint64]string{},
	}
	rules := want
	if have.Backend == NFTables {
		rules = want.bare()
	}
	for _, h := range hooks() {
		switch at := slices.Index(have.Rules[h.Table][h.Chain], h.Rule); {
		case at < 0:
			p.Missing = append(p.Missing, h)
		case at > 0:
			p.Late = append(p.Late, h)
		}
	}
	for _, chain := range fixed() {
		p.content(chain.table, chain.chain, inChain(base(want.Networks), chain))
	}
	p.generations(rules)
	p.obsolete(rules)
	p.items(want, have)
	for _, generation := range slices.Sorted(maps.Keys(p.unexplained)) {
		p.Unexplained = append(p.Unexplained, p.unexplained[generation])
	}
	p.Install, p.Remove = p.install.String(), p.remove.String()
	return p.Plan
}

// planner gathers a plan.
type planner struct {
	Plan
	have            Have
	install, remove script
	kept            map[line]bool     // rules of shared chains and chains of generations (without rule) that stay
	explained       map[uint64]string // the deployments that the records know, by generation
	unexplained     map[uint64]string // and those that only the kernel knows
}

// inChain gives the rules of one chain.
func inChain(all []line, chain line) []line {
	return slices.DeleteFunc(slices.Clone(all), func(l line) bool { return l.table != chain.table || l.chain != chain.chain })
}

// content makes a chain have exactly the rules of lines, in their order, by one commit.
func (p *planner) content(table, chain string, lines []line) {
	have, exists := p.have.Rules[table][chain]
	p.kept[line{table, chain, ""}] = true
	if exists && slices.EqualFunc(have, lines, func(rule string, l line) bool { return rule == l.rule }) {
		return
	}
	p.install.chain(table, chain)
	for _, l := range lines {
		p.install.append(l)
	}
}

func (p *planner) generations(want Want) {
	for _, chain := range shared() {
		if _, exists := p.have.Rules[chain.table][chain.chain]; !exists {
			p.install.chain(chain.table, chain.chain)
		}
	}
	byGeneration := func(a, b Publication) int { return cmp.Compare(a.Generation, b.Generation) }
	for _, pub := range slices.SortedFunc(slices.Values(want.Live), byGeneration) {
		p.explained[pub.Generation] = pub.Name()
		p.part(tableFilter, pub, pub.guard)
		if p.part(tableNAT, pub, pub.redirect) {
			p.Switched = append(p.Switched, pub)
		}
	}
	for _, pub := range slices.SortedFunc(slices.Values(want.Draining), byGeneration) {
		p.explained[pub.Generation] = pub.Name()
		p.part(tableFilter, pub, pub.guard)
	}
	for _, pub := range want.Leaving {
		p.explained[pub.Generation] = pub.Name()
		if p.have.Guards(pub) {
			p.part(tableFilter, pub, pub.guard)
		}
	}
}

// part makes the kernel have one part of a publication: the content of its chain in table, and the jumps to it. It
// reports whether a jump was missing.
func (p *planner) part(table string, pub Publication, render func() (content, jumps []line)) bool {
	content, jumps := render()
	if len(jumps) == 0 {
		return false
	}
	p.content(table, chainOf(pub.Generation), content)
	missing := false
	for _, l := range jumps {
		p.kept[l] = true
		if !slices.Contains(p.have.Rules[l.table][l.chain], l.rule) {
			p.install.insert(l)
			missing = true
		}
	}
	return missing
}

// obsolete removes what no part named: rules of the shared chains, and then chains of generations.
func (p *planner) obsolete(want Want) {
	seen := map[line]bool{}
	for _, chain := range shared() {
		for _, rule := range p.have.Rules[chain.table][chain.chain] {
			l := line{chain.table, chain.chain, rule}
			if p.kept[l] && !seen[l] {
				seen[l] = true
				continue
			}
			stack, generation, ours := p.have.Rules.owner(chain.table, rule)
			if ours && p.explained[generation] == "" && !want.Gone(stack, generation) {
				p.unexplained[generation] = tag(stack, generation)
				continue
			}
			p.remove.delete(l)
			if address, ok := guarded(rule); ok && chain.chain == chainGuard && !p.kept[l] {
				p.Ended = append(p.Ended, address)
			}
		}
	}
	for _, table := range []string{tableFilter, tableNAT} {
		for _, chain := range slices.Sorted(maps.Keys(p.have.Rules[table])) {
			generation, ok := generationOf(chain)
			if ok && !p.kept[line{table, chain, ""}] && p.unexplained[generation] == "" {
				p.remove.drop(table, chain)
			}
		}
	}
}
