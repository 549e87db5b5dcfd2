package lab

import (
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
)

var counters = regexp.MustCompile(`\[[0-9]+:[0-9]+\]`)

// Rules lists the rules of the host as iptables-save prints them, without comments and counters, and the elements of the
// table that publishes in place of some of them.
func Rules() ([]string, error) {
	text, err := exec.Command("iptables-save").Output()
	if err != nil {
		return nil, fmt.Errorf("list the rules: %w", err)
	}
	var rules []string
	for line := range strings.Lines(counters.ReplaceAllString(string(text), "")) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			rules = append(rules, line)
		}
	}
	own, err := elements(nftables.TableFamilyIPv4)
	return append(rules, own...), err
}

// elements lists the elements in the sets of Fulmar's own table of a family, sorted, but for what stands.
func elements(family nftables.TableFamily) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("list the elements: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	var all []string
	for _, table := range tables {
		if table.Name != "fulmar" {
			continue
		}
		sets, err := conn.GetSets(table)
		if err != nil {
			return nil, fmt.Errorf("list the sets: %w", err)
		}
		for _, set := range sets {
			found, err := conn.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("list the elements of %s: %w", set.Name, err)
			}
			for _, e := range found {
				if set.Name != "bridges" {
					all = append(all, fmt.Sprintf("element of %s: %x %x %s", set.Name, e.Key, e.Val, e.Comment))
				}
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

// FlushRules empties tables of iptables and deletes all chains in them but the kernel's; if none is named all of them, and
// all other tables of nftables.
func FlushRules(tables ...string) error {
	chains := map[string]string{
		"filter": ":INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n",
		"nat":    ":PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n",
		"mangle": ":PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n",
		"raw":    ":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n",
	}
	if len(tables) == 0 {
		tables = slices.Sorted(maps.Keys(chains))
		if out, err := exec.Command("nft", "flush ruleset").CombinedOutput(); err != nil {
			return fmt.Errorf("flush all tables: %w: %s", err, out)
		}
	}
	var input strings.Builder // one commit a table: whoever restores them does so before or after
	for _, table := range tables {
		input.WriteString("*" + table + "\n" + chains[table] + "COMMIT\n")
	}
	cmd := exec.Command("iptables-restore", "-w")
	cmd.Stdin = strings.NewReader(input.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("flush tables %q: %w: %s", tables, err, out)
	}
	return nil
}
