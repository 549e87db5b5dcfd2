package firewall

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func port(protocol string, number uint16, address string, target uint16) Port {
	return Port{protocol, number, netip.MustParseAddr(address), target}
}

// mail is a stack of two units with ports of their own.
func mail() Publication {
	return Publication{Stack: "mail", Generation: 43, Ports: []Port{
		port("tcp", 993, "10.0.0.3", 143), port("tcp", 25, "10.0.0.2", 2525), port("udp", 53, "10.0.0.2", 53), port("tcp", 587, "10.0.0.2", 2525),
	}}
}

func TestRenderedInputs(t *testing.T) {
	lan := Network{"br0", netip.MustParsePrefix("10.0.0.1/24")}
	for name, c := range map[string]struct{ got, want string }{
		"a switch": {Publish(mail()), `
*mangle
-I FULMAR 1 -p tcp -m multiport --dports 25,587,993 -m comment --comment mail-43 -j DROP
COMMIT
*filter
:FULMAR-43 - [0:0]
-A FULMAR-43 -s 10.0.0.2/32 -p tcp -m tcp --sport 2525 -m comment --comment mail-43 -j DROP
-A FULMAR-43 -s 10.0.0.2/32 -p udp -m udp --sport 53 -j DROP
-A FULMAR-43 -s 10.0.0.3/32 -p tcp -m tcp --sport 143 -j DROP
-I FULMAR-GEN 1 -s 10.0.0.2/32 -j FULMAR-43
-I FULMAR-GEN 1 -s 10.0.0.3/32 -j FULMAR-43
COMMIT
*nat
:FULMAR-43 - [0:0]
-A FULMAR-43 -p tcp -m tcp --dport 25 -m comment --comment mail-43 -j DNAT --to-destination 10.0.0.2:2525
-A FULMAR-43 -p tcp -m tcp --dport 587 -j DNAT --to-destination 10.0.0.2:2525
-A FULMAR-43 -p tcp -m tcp --dport 993 -j DNAT --to-destination 10.0.0.3:143
-A FULMAR-43 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.2:53
-I FULMAR 1 -p tcp -m multiport --dports 25,587,993 -j FULMAR-43
-I FULMAR 1 -p udp -m udp --dport 53 -j FULMAR-43
COMMIT
`},
		"a switch to nothing": {Publish(Publication{Stack: "mail", Generation: 43}), "\n"},
		"a removal of redirects": {Remove([]Publication{mail()}, nil), `
*nat
-D FULMAR -p tcp -m multiport --dports 25,587,993 -j FULMAR-43
-D FULMAR -p udp -m udp --dport 53 -j FULMAR-43
-F FULMAR-43
-X FULMAR-43
COMMIT
`},
		"a removal of guards": {Remove(nil, []Publication{mail()}), `
*mangle
-D FULMAR -p tcp -m multiport --dports 25,587,993 -m comment --comment mail-43 -j DROP
COMMIT
*filter
-D FULMAR-GEN -s 10.0.0.2/32 -j FULMAR-43
-D FULMAR-GEN -s 10.0.0.3/32 -j FULMAR-43
-F FULMAR-43
-X FULMAR-43
COMMIT
`},
		"a removal of nothing": {Remove([]Publication{{Stack: "mail", Generation: 43}}, nil), "\n"},
		"a new host": {NewPlan(Want{Networks: []Network{lan}}, Have{Backend: IPTables}).Install, `
*raw
:FULMAR - [0:0]
-A FULMAR -d 127.0.0.0/8 -i br0 -j DROP
COMMIT
*mangle
:FULMAR - [0:0]
COMMIT
*filter
:FULMAR - [0:0]
:FULMAR-IN - [0:0]
:FULMAR-GEN - [0:0]
-A FULMAR -i br0 -m conntrack --ctstate INVALID -j DROP
-A FULMAR -i br0 -m conntrack --ctstate NEW -j FULMAR-GEN
-A FULMAR -i br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FULMAR -o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A FULMAR -i br0 -o br0 -j ACCEPT
-A FULMAR -o br0 -j DROP
-A FULMAR -i br0 -j ACCEPT
-A FULMAR-IN -i br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FULMAR-IN -i br0 -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A FULMAR-IN -i br0 -j DROP
COMMIT
*nat
:FULMAR-POST - [0:0]
:FULMAR - [0:0]
-A FULMAR-POST -s 10.0.0.0/24 -o br0 -m conntrack --ctstate DNAT -j MASQUERADE
-A FULMAR-POST -s 127.0.0.0/8 -o br0 -m conntrack --ctstate DNAT -j MASQUERADE
-A FULMAR-POST -s 10.0.0.0/24 ! -o br0 -j MASQUERADE
COMMIT
`},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), c.got); diff != "" {
				t.Errorf("input (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortsAreSplitByWhatARuleTakes(t *testing.T) {
	_, jumps := manyPorts("web", 1, "10.0.0.2", 31).redirect()
	var sizes []int
	for _, l := range jumps {
		sizes = append(sizes, len(strings.Split(word(l.rule, "--dports"), ","))) // of one port, a rule has another word
	}
	if diff := cmp.Diff([]int{15, 15, 1, 15, 15, 1}, sizes); diff != "" {
		t.Errorf("ports a rule (-want +got):\n%s", diff)
	}
}

func TestChainNamesFitTheKernel(t *testing.T) {
	name := chainOf(math.MaxUint64)
	if g, ok := generationOf(name); len(name) > 28 || !ok || g != math.MaxUint64 {
		t.Errorf("%q, back to %d", name, g)
	}
	for _, foreign := range []string{"FULMAR", "FULMAR-IN", "FULMAR-", "FULMAR-4x", "DOCKER-4", "FULMAR-99999999999999999999"} {
		if _, ok := generationOf(foreign); ok {
			t.Errorf("%s is the chain of a generation", foreign)
		}
	}
}

func TestParse(t *testing.T) {
	const save = `# Generated
*nat
:PREROUTING ACCEPT [1:60]
:DOCKER - [0:0]
:FULMAR - [0:0]
:FULMAR-43 - [0:0]
:FULMARIUS - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j FULMAR
-A DOCKER -i docker0 -j RETURN
-A FULMARIUS -j RETURN
-A FULMAR -p tcp -m tcp --dport 80 -j FULMAR-43
-A FULMAR-43 -p tcp -m tcp --dport 80 -m comment --comment web-1-43 -j DNAT --to-destination 10.0.0.2:80
COMMIT
# Completed
`
	got, err := Parse(strings.NewReader(save))
	want := Ruleset{"nat": {
		"PREROUTING": {"-m addrtype --dst-type LOCAL -j FULMAR"},
		"FULMAR":     {"-p tcp -m tcp --dport 80 -j FULMAR-43"},
		"FULMAR-43":  {"-p tcp -m tcp --dport 80 -m comment --comment web-1-43 -j DNAT --to-destination 10.0.0.2:80"},
	}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, ruleset (-want +got):\n%s", err, diff)
	}
	if stack, generation, ok := got.owner("nat", got["nat"]["FULMAR"][0]); stack != "web-1" || generation != 43 || !ok {
		t.Errorf("owner %s, %d, %v", stack, generation, ok)
	}
	if _, err := Parse(strings.NewReader("iptables: who are you?\n")); err == nil {
		t.Error("a complaint was read as rules")
	}
}

func TestPlanLeavesWhatIsLeaving(t *testing.T) {
	leaving := manyPorts("web", 42, "10.0.0.2", 1)
	never := manyPorts("web", 41, "10.0.0.9", 1)
	content, jumps := leaving.guard()
	have := Ruleset{tableFilter: {}, tableNAT: {chainMain: nil}, tableMangle: {}}
	for _, l := range append(content, jumps...) {
		have[l.table][l.chain] = append(have[l.table][l.chain], l.rule)
	}
	p := NewPlan(Want{Leaving: []Publication{never, leaving}, Gone: func(string, uint64) bool { return true }}, Have{Backend: IPTables, Rules: have})
	if p.Remove != "" || strings.Contains(p.Install, "FULMAR-4") || len(p.Ended) > 0 {
		t.Errorf("the plan touches what is leaving:\n%s%s%v", p.Install, p.Remove, p.Ended)
	}
}
