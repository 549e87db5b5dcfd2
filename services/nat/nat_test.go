package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/firewall"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// web is a deployment of one unit with a TCP and a UDP port.
func web(generation uint64, i *fulmarv1.Instance) deployment {
	return deployment{stack: "web", generation: generation, units: []unit{{"web", []string{"8080:80/tcp", "8053:53/udp"}, i}}}
}

func TestEveryKindOfClientReachesWhatIsPublished(t *testing.T) {
	eachBackend(t, everyKindOfClientReachesWhatIsPublished)
}

func everyKindOfClientReachesWhatIsPublished(t *testing.T, w *world) {
	w.nat(t)
	i, itself := w.instance(t, "web", "web", 1, 2)
	_, neighbour := w.instance(t, "other", "other", 2, 3)
	e := w.deploy(t, web(1, i))
	if e.GetUnchanged() || e.GetService() != "nat" {
		t.Errorf("said %v", e)
	}
	for name, client := range map[string]struct {
		do   func(func() error) error
		addr string
	}{
		"from outside":                        {w.client.Do, "192.0.2.1"},
		"from the host at its address":        {here, "192.0.2.1"},
		"from the host at its bridge":         {here, "10.79.0.1"},
		"from the host at 127.0.0.1":          {here, "127.0.0.1"},
		"from another instance":               {neighbour.Do, "192.0.2.1"},
		"from another instance by the bridge": {neighbour.Do, "10.79.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			expectWho(t, client.do, "tcp4", client.addr+":8080", i.GetName())
			expectWho(t, client.do, "udp4", client.addr+":8053", i.GetName())
		})
	}
	if err := exec.Command("bridge", "link", "set", "dev", "vm2", "hairpin", "on").Run(); err != nil {
		t.Fatal(err)
	}
	expectWho(t, itself.Do, "tcp4", "192.0.2.1:8080", i.GetName())
	if got, err := try(neighbour.Do, "tcp4", "192.0.2.2:8080"); err == nil {
		t.Errorf("an instance's connection to a port of somebody outside was answered by %s", got)
	}
}

func TestASwitchMovesWhatIsNewAndKeepsWhatIsEstablished(t *testing.T) {
	eachBackend(t, aSwitchMovesWhatIsNewAndKeepsWhatIsEstablished)
}

func aSwitchMovesWhatIsNewAndKeepsWhatIsEstablished(t *testing.T, w *world) {
	w.nat(t)
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	w.deploy(t, web(1, first))
	kept, err := dial(w.client.Do, "tcp4", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	flow, err := dial(w.client.Do, "udp4", "192.0.2.1:8053")
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	for _, conn := range []net.Conn{kept, flow} {
		if got, err := ask(conn); got != first.GetName() || err != nil {
			t.Fatalf("before the switch: %q, %v", got, err)
		}
	}
	w.deploy(t, web(2, second))
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", second.GetName())
	if got, err := ask(flow); got != second.GetName() || err != nil {
		t.Errorf("the UDP flow after the switch: %q, %v", got, err)
	}
	until(t, func() error { return redirects(2) })
	if got, err := ask(kept); got != first.GetName() || err != nil {
		t.Errorf("the kept connection after the old rules were removed: %q, %v", got, err)
	}
}

// redirects checks which generations the kernel leads clients to.
func redirects(want ...uint64) error {
	for generation := range uint64(200) { // there are no more in a test
		pub := firewall.Publication{Stack: "web", Generation: generation}
		for _, port := range []uint16{53, 8053, 8080, 8081, 8443} {
			pub.Ports = append(pub.Ports, firewall.Port{Protocol: "tcp", Port: port}, firewall.Port{Protocol: "udp", Port: port})
		}
		got, err := firewall.Redirected(pub)
		if err != nil {
			return err
		}
		if got != slices.Contains(want, generation) {
			return fmt.Errorf("the kernel leads clients to generation %d: %v, want them led to %v", generation, got, want)
		}
	}
	return nil
}

func TestAUDPFlowThatTheHostTookFirstIsMoved(t *testing.T) {
	eachBackend(t, aUDPFlowThatTheHostTookFirstIsMoved)
}

func aUDPFlowThatTheHostTookFirstIsMoved(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.base(t) // flows are tracked from here on
	flow, err := dial(w.client.Do, "udp4", "192.0.2.1:8053")
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if got, err := ask(flow); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("before the first publication: %q, %v", got, err)
	}
	w.deploy(t, web(1, i))
	if got, err := ask(flow); err != nil || got != i.GetName() {
		t.Errorf("after it: %q, %v", got, err)
	}
}

func TestEverythingFlushedIsRestored(t *testing.T) { eachBackend(t, everythingFlushedIsRestored) }

func everythingFlushedIsRestored(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.deploy(t, web(1, i))
	for range 3 {
		w.flushEverything(t)
		until(t, func() error {
			got, err := try(w.client.Do, "tcp4", "192.0.2.1:8080")
			if err == nil && got != i.GetName() {
				t.Fatalf("answered by %q", got)
			}
			return err
		})
		until(t, func() error {
			_, err := try(here, "tcp4", "127.0.0.1:8080")
			return err
		})
	}
}

func TestAPortThatAnotherStackHoldsIsRefusedByName(t *testing.T) {
	for _, staged := range []bool{false, true} {
		t.Run(fmt.Sprintf("holder staged %v", staged), func(t *testing.T) {
			w := newWorld(t, firewall.IPTables)
			w.nat(t)
			i, _ := w.instance(t, "web", "web", 1, 2)
			holder := web(1, i)
			holder.staged = staged
			w.healthy(t, w.accept(t, holder))
			if e := w.next(t); e.GetVerb() != map[bool]string{false: "published", true: "staged"}[staged] {
				t.Fatalf("said %v", e)
			}
			before := rulesOf(t)
			other, _ := w.instance(t, "other", "other", 2, 3)
			late := deployment{stack: "other", generation: 2, units: []unit{{"other", []string{"9000:80/tcp", "8053:53/udp"}, other}}}
			w.healthy(t, w.accept(t, late))
			e := w.expect(t, messages.Failed, late)
			if e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_CONFLICT || !strings.Contains(e.GetReason(), "8053/udp") || !strings.Contains(e.GetReason(), "stack web") {
				t.Errorf("reason %q, %v", e.GetReason(), e.GetReasonCode())
			}
			if after := rulesOf(t); after != before {
				t.Errorf("the rules changed:\n%s\n%s", before, after)
			}
			if h := w.head(t, "other"); messages.Find(h, 2).GetState() != fulmarv1.State_STATE_UNDERWAY {
				t.Errorf("the head changed: %v", h)
			}
			// The same number of the other protocol is free.
			free := deployment{stack: "third", generation: 3, units: []unit{{"other", []string{"8053:80/tcp"}, other}}}
			w.deploy(t, free)
		})
	}
}

func TestAPortThatTheHostItselfListensOnIsRefused(t *testing.T) {
	eachBackend(t, aPortThatTheHostItselfListensOnIsRefused)
}

func aPortThatTheHostItselfListensOnIsRefused(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	generation := uint64(0)
	try := func(ports ...string) *fulmarv1.Event {
		t.Helper()
		generation++
		w.healthy(t, w.accept(t, deployment{stack: "web", generation: generation, units: []unit{{"web", ports, i}}}))
		return w.next(t)
	}
	for _, network := range []string{"tcp4 0.0.0.0:8080", "tcp4 127.0.0.1:8080", "tcp [::]:8080"} {
		kind, addr, _ := strings.Cut(network, " ")
		l, err := net.Listen(kind, addr)
		if err != nil {
			t.Fatal(err)
		}
		e := try("8080:80/tcp")
		if e.GetVerb() != "failed" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_CONFLICT || !strings.Contains(e.GetReason(), "port 8080/tcp of host host1 is taken by a process") {
			t.Errorf("beside %s: %s, %s", network, e.GetVerb(), e.GetReason())
		}
		if e := try("8081:80/tcp", "8080:53/udp"); e.GetVerb() != "published" {
			t.Errorf("other ports beside %s: %s, %s", network, e.GetVerb(), e.GetReason())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	six, err := net.Listen("tcp6", "[::]:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	if e := try("8080:80/tcp"); e.GetVerb() != "published" {
		t.Errorf("beside a listener for IPv6 only: %s, %s", e.GetVerb(), e.GetReason())
	}
	// Who listens on what was published first harms only himself: an update goes on.
	four, err := net.Listen("tcp4", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	if e := try("8080:80/tcp"); e.GetVerb() != "published" {
		t.Errorf("an update beside a later listener: %s, %s", e.GetVerb(), e.GetReason())
	}
	datagrams, err := net.ListenPacket("udp4", "0.0.0.0:8053")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	if e := try("8080:80/tcp", "8053:53/udp"); e.GetVerb() != "failed" || !strings.Contains(e.GetReason(), "port 8053/udp") {
		t.Errorf("beside a server of datagrams: %s, %s", e.GetVerb(), e.GetReason())
	}
}

func rulesOf(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("iptables-save").Output()
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "-A") {
			rules = append(rules, line)
		}
	}
	out, err = exec.Command("nft", "list", "table", "ip", "fulmar").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file or directory") {
		t.Fatalf("list the table: %v: %s", err, out)
	}
	elements := regexp.MustCompile(`[^{},]+comment "[^"]*"[^{},]*`).FindAllString(string(out), -1)
	for i, e := range elements {
		elements[i] = strings.Join(strings.Fields(e), " ") + "\n"
	}
	slices.Sort(elements)
	return strings.Join(append(rules, elements...), "")
}

func (w *world) head(t *testing.T, stack string) *fulmarv1.Head {
	t.Helper()
	h, _, err := w.bus.Heads.Get(t.Context(), stack)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestSomethingNewerIsNotOvertaken(t *testing.T) { eachBackend(t, somethingNewerIsNotOvertaken) }

func somethingNewerIsNotOvertaken(t *testing.T, w *world) {
	w.nat(t)
	old, _ := w.instance(t, "web", "web", 42, 2)
	newer, _ := w.instance(t, "web", "web", 43, 3)
	d := w.accept(t, web(42, old))
	w.deploy(t, web(43, newer))
	w.healthy(t, d)
	e := w.expect(t, messages.Failed, web(42, old))
	if e.GetReason() != "superseded by web-43" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		t.Errorf("reason %q, %v", e.GetReason(), e.GetReasonCode())
	}
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", newer.GetName())
}

func TestStagedIsNotPublished(t *testing.T) { eachBackend(t, stagedIsNotPublished) }

func stagedIsNotPublished(t *testing.T, w *world) {
	w.nat(t)
	live, _ := w.instance(t, "web", "web", 1, 2)
	next, _ := w.instance(t, "web", "web", 2, 3)
	w.deploy(t, web(1, live))
	d := web(2, next)
	d.staged = true
	w.healthy(t, w.accept(t, d))
	w.expect(t, messages.Staged, d)
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", live.GetName())
	w.deploy(t, web(3, next)) // promote keeps the instance
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", next.GetName())
}

func TestWhatIsKeptIsUnchanged(t *testing.T) { eachBackend(t, whatIsKeptIsUnchanged) }

func whatIsKeptIsUnchanged(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.deploy(t, web(1, i))
	if e := w.deploy(t, web(2, i)); !e.GetUnchanged() {
		t.Error("equal content was said to change something")
	}
	until(t, func() error { return redirects(2) })
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", i.GetName())
	d := web(3, i)
	d.units[0].ports[0] = "8081:80/tcp"
	if e := w.deploy(t, d); e.GetUnchanged() {
		t.Error("another port was said to be no change")
	}
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8081", i.GetName())
	until(t, func() error {
		if got, err := try(w.client.Do, "tcp4", "192.0.2.1:8080"); err == nil {
			return fmt.Errorf("a port that is published no more was answered by %s", got)
		}
		return nil
	})
}

func TestRetiredIsRefusedAndLeavesNoRule(t *testing.T) {
	eachBackend(t, retiredIsRefusedAndLeavesNoRule)
}

func retiredIsRefusedAndLeavesNoRule(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 1, 2)
	w.deploy(t, web(1, i))
	kept, err := dial(w.client.Do, "tcp4", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	w.deploy(t, deployment{stack: "web", generation: 2})
	until(t, func() error { return redirects() })
	if _, err := who(w.client.Do, "tcp4", "192.0.2.1:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new connection ended with %v", err)
	}
	if got, err := ask(kept); got != i.GetName() || err != nil {
		t.Errorf("an established connection: %q, %v", got, err)
	}
	w.end(t, "web", 1)
	until(t, func() error {
		if rules := rulesOf(t); strings.Contains(rules, "web-") || strings.Contains(rules, "FULMAR-1") {
			return fmt.Errorf("rules are left:\n%s", rules)
		}
		return nil
	})
	if got, err := ask(kept); err == nil {
		t.Errorf("a connection to an instance that is gone was answered by %s", got)
	}
}

// end takes a draining deployment from condemned to gone, as gc, vmm and ipam do.
func (w *world) end(t *testing.T, stack string, generation uint64) {
	t.Helper()
	dying := []*fulmarv1.Instance{}
	for _, edit := range []func(*fulmarv1.Head) (*fulmarv1.Head, error){
		func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnDrained(h, generation) },
		func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
			dying = messages.Dying(h, generation)
			return messages.Retire(h, generation)
		},
	} {
		if _, err := w.bus.Heads.Edit(t.Context(), stack, edit); err != nil {
			t.Fatal(err)
		}
	}
	_, last, err := w.bus.Last(t.Context(), stack, generation)
	if err != nil {
		t.Fatal(err)
	}
	d := &fulmarv1.Deployment{Stack: stack, Generation: generation, Network: lan(), Dying: dying}
	if err := w.bus.Say(t.Context(), &fulmarv1.Event{Verb: string(messages.Stopped), Deployment: d}, last); err != nil {
		t.Fatal(err)
	}
}

func TestItsLooksLeaveTheNeighborsAlone(t *testing.T) { eachBackend(t, itsLooksLeaveTheNeighborsAlone) }

func itsLooksLeaveTheNeighborsAlone(t *testing.T, w *world) {
	s, err := New(w.bus, w.config(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	index := w.bridge.Attrs().Index
	s.rules.networks = []firewall.Network{{Bridge: w.bridge.Attrs().Name, Prefix: netip.MustParsePrefix("10.79.0.0/24")}}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED,
		IP: net.IPv4(10, 79, 0, 99), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99},
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	list, err := netlink.NeighList(index, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list, func(n netlink.Neigh) bool { return n.IP.Equal(net.IPv4(10, 79, 0, 99)) }) {
		t.Errorf("the kernel knows %v: it will ask all for each", list)
	}
}
