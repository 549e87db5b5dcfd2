package firewall

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Ruleset is what the kernel has, as far as it matters here: by table, the rules of our own chains and of the built-in
// chains that have hooks, in their order.
type Ruleset map[string]map[string][]string

// Parse reads what iptables-save prints.
func Parse(r io.Reader) (Ruleset, error) {
	all, table := Ruleset{}, ""
	hooked := map[[2]string]bool{}
	for _, h := range hooks() {
		hooked[[2]string{h.Table, h.Chain}] = true
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text := lines.Text()
		switch {
		case text == "" || text[0] == '#' || text == "COMMIT":
		case text[0] == '*':
			table = text[1:]
			all[table] = map[string][]string{}
		case text[0] == ':':
			chain, _, _ := strings.Cut(text[1:], " ")
			if table != "" && (ours(chain) || hooked[[2]string{table, chain}]) {
				all[table][chain] = nil
			}
		case strings.HasPrefix(text, "-A "):
			chain, rule, _ := strings.Cut(text[3:], " ")
			if _, kept := all[table][chain]; kept {
				all[table][chain] = append(all[table][chain], rule)
			}
		default:
			return nil, fmt.Errorf("read the rules: %q is no line of iptables-save", text)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the rules: %w", err)
	}
	return all, nil
}

// ours reports whether any of the rules is ours.
func (r Ruleset) ours() bool {
	for _, chains := range r {
		for chain := range chains {
			if ours(chain) {
				return true
			}
		}
	}
	return false
}

// Have is what the kernel has.
type Have struct {
	Backend Backend // that is to be used
	Rules   Ruleset
	table   table
}

// Ours reports whether the kernel has anything of ours.
func (h Have) Ours() bool { return h.Rules.ours() || h.table.there }

// Guards reports whether the kernel has the guard of p.
func (h Have) Guards(p Publication) bool {
	if _, there := h.Rules[tableFilter][chainOf(p.Generation)]; there {
		return true
	}
	for key := range p.guards() {
		if _, there := h.table.items[key]; !there {
			return false
		}
	}
	return len(p.Ports) > 0
}

// ours reports whether a chain is ours: one that stands, or one of a generation.
func ours(chain string) bool {
	switch chain {
	case chainMain, chainInput, chainGuard, chainPost:
		return true
	}
	_, generation := generationOf(chain)
	return generation
}

// word gives what follows an option in a rule. Our own rules have no quoted words.
func word(rule, option string) string {
	_, rest, found := strings.Cut(" "+rule, " "+option+" ")
	if !found {
		return ""
	}
	rest, _, _ = strings.Cut(rest, " ")
	return rest
}

// owner tells which deployment a rule of a shared chain belongs to: by its comment, or by that in the chain to which it leads.
func (r Ruleset) owner(table, rule string) (stack string, generation uint64, ok bool) {
	name := word(rule, "--comment")
	for _, labelled := range r[table][word(rule, "-j")] {
		if name != "" {
			break
		}
		name = word(labelled, "--comment")
	}
	return parseTag(name)
}

// guarded gives the address that a rule of the guards' shared chain is for.
func guarded(rule string) (netip.Addr, bool) {
	prefix, err := netip.ParsePrefix(word(rule, "-s"))
	return prefix.Addr(), err == nil
}
