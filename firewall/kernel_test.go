package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fulmar/firewall/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

// freshKernel gives the firewall of the test's namespace, empty before and after.
func freshKernel(t *testing.T, backend Backend) *Kernel {
	t.Helper()
	nstest.NeedRoot(t)
	k, err := NewKernel(backend)
	if err != nil {
		t.Fatal(err)
	}
	flushAll(t)
	t.Cleanup(func() { flushAll(t) })
	t.Cleanup(k.Close)
	return k
}

// flushAll empties the firewall as a person would.
func flushAll(t *testing.T) {
	t.Helper()
	for _, table := range []string{tableRaw, tableMangle, tableFilter, tableNAT} {
		for _, flag := range []string{"-F", "-X"} {
			run(t, "iptables", "-t", table, flag)
		}
	}
	run(t, "nft", "add table ip fulmar; delete table ip fulmar")
}

// eachBackend runs a test with each backend.
func eachBackend(t *testing.T, test func(t *testing.T, k *Kernel)) {
	for _, backend := range []Backend{IPTables, NFTables} {
		t.Run(string(backend), func(t *testing.T) { test(t, freshKernel(t, backend)) })
	}
}

// shown gives a want as it is once the kernel has it.
func (w Want) shown() []Shown {
	var all []Shown
	for _, p := range w.Live {
		all = append(all, Shown{p, true})
	}
	for _, p := range w.Draining {
		all = append(all, Shown{p, false})
	}
	return all
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// apply makes the kernel have what is wanted, and checks that it then does.
func apply(t *testing.T, k *Kernel, want Want) Plan {
	t.Helper()
	plan := planFor(t, k, want)
	if err := k.Install(t.Context(), plan); err != nil {
		t.Fatalf("%v\n%s", err, plan.Install)
	}
	if err := k.Hook(append(plan.Missing, plan.Late...)...); err != nil {
		t.Fatal(err)
	}
	if err := k.Tidy(t.Context(), plan); err != nil {
		t.Fatalf("%v\n%s", err, plan.Remove)
	}
	if again := planFor(t, k, want); again.Changes() || again.Removes() || len(again.Late) > 0 {
		t.Fatalf("the kernel does not have what was installed:\n%s%s%v\n%v\n%v", again.Install, again.Remove, again.Missing, again.table, again.tidied)
	}
	return plan
}

func planFor(t *testing.T, k *Kernel, want Want) Plan {
	t.Helper()
	have, err := k.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want.Gone == nil {
		want.Gone = func(string, uint64) bool { return false }
	}
	return NewPlan(want, have)
}

func someWant() Want {
	dns := manyPorts("dns", 7, "10.78.0.2", 1)
	for i := range dns.Ports {
		dns.Ports[i].Port += 1000
	}
	return Want{
		Networks: []Network{{"br-b", netip.MustParsePrefix("10.78.0.0/24")}, {"br-a", netip.MustParsePrefix("10.77.0.0/16")}},
		Live:     []Publication{manyPorts("web", 43, "10.77.0.3", 40), dns},
		Draining: []Publication{manyPorts("web", 42, "10.77.0.2", 40)},
	}
}

// manyPorts publishes n TCP and n UDP ports.
func manyPorts(stack string, generation uint64, address string, n int) Publication {
	p := Publication{Stack: stack, Generation: generation}
	for i := range n {
		for _, protocol := range []string{"udp", "tcp"} {
			p.Ports = append(p.Ports, Port{protocol, uint16(8000 + i), netip.MustParseAddr(address), uint16(80 + i)})
		}
	}
	return p
}

func TestTheKernelHasWhatWasInstalled(t *testing.T) { eachBackend(t, theKernelHasWhatWasInstalled) }

func theKernelHasWhatWasInstalled(t *testing.T, k *Kernel) {
	plan := apply(t, k, someWant())
	if len(plan.Switched) != 2 || len(plan.Missing) != len(hooks()) {
		t.Errorf("switched %v, hooked %v", plan.Switched, plan.Missing)
	}
	for _, c := range []struct {
		pub  Publication
		want bool
	}{{someWant().Live[0], true}, {someWant().Live[1], true}, {someWant().Draining[0], false}, {manyPorts("web", 4, "10.77.0.3", 40), false}, {Publication{Stack: "web", Generation: 3}, false}} {
		if got, err := Redirected(c.pub); err != nil || got != c.want {
			t.Errorf("%s is redirected: %v, %v; want %v", c.pub.Name(), got, err, c.want)
		}
	}
}

func TestASwitchAndItsRemovalsLeaveWhatAPlanWouldMake(t *testing.T) {
	eachBackend(t, aSwitchAndItsRemovalsLeaveWhatAPlanWouldMake)
}

func aSwitchAndItsRemovalsLeaveWhatAPlanWouldMake(t *testing.T, k *Kernel) {
	want := someWant()
	apply(t, k, want)
	web43, web44 := want.Live[0], manyPorts("web", 44, "10.77.0.4", 17)

	if err := k.Publish(t.Context(), web44, slices.Values(want.shown())); err != nil {
		t.Fatal(err)
	}
	if rules := strings.Split(run(t, "iptables", "-t", "nat", "-S", chainMain), "\n"); k.backend == IPTables && !strings.HasSuffix(rules[1], "-j FULMAR-44") {
		t.Errorf("the new generation is not first: %q", rules)
	}
	want.Live[0], want.Draining = web44, append(want.Draining, web43)
	plan := planFor(t, k, want)
	if plan.Changes() {
		t.Errorf("after the switch there is still something missing:\n%s", plan.Install)
	}
	if !plan.Removes() || len(plan.Unexplained) > 0 {
		t.Errorf("after the switch the old redirect is not to be removed: %q are unexplained", plan.Unexplained)
	}
	if err := k.Remove(t.Context(), []Publication{web43}, nil, slices.Values(want.shown())); err != nil {
		t.Fatal(err)
	}
	if plan := planFor(t, k, want); plan.Changes() || plan.Removes() {
		t.Errorf("after the removal of the old redirect:\n%s%s%v%v", plan.Install, plan.Remove, plan.table, plan.tidied)
	}

	gone := want.Draining
	want.Draining = nil
	want.Gone = func(stack string, generation uint64) bool { return stack == "web" && generation < 44 }
	plan = planFor(t, k, want)
	slices.SortFunc(plan.Ended, netip.Addr.Compare)
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")}, slices.Compact(plan.Ended), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("ended addresses (-want +got):\n%s", diff)
	}
	if err := k.Remove(t.Context(), nil, gone, slices.Values(want.shown())); err != nil {
		t.Fatal(err)
	}
	if plan := planFor(t, k, want); plan.Changes() || plan.Removes() || len(plan.Ended) > 0 {
		t.Errorf("after the removal of the guards:\n%s%s", plan.Install, plan.Remove)
	}
}

func TestWhateverOthersDoIsSetRight(t *testing.T) {
	harm := map[string][]string{
		"every table flushed":            {"-F", "-t nat -F", "-t raw -F", "-t mangle -F", "-X", "-t nat -X", "-t raw -X", "-t mangle -X"},
		"the redirects flushed":          {"-t nat -F FULMAR"},
		"a translation deleted":          {"-t nat -D FULMAR-7 1"},
		"a translation added":            {"-t nat -A FULMAR-7 -p tcp --dport 1 -j DNAT --to-destination 10.0.0.1"},
		"a rule before ours":             {"-I FORWARD -j DROP"},
		"a hook deleted":                 {"-D INPUT -j FULMAR-IN"},
		"a base rule deleted":            {"-D FULMAR 3"},
		"a guard deleted":                {"-D FULMAR-GEN 1"},
		"a rule of another in our chain": {"-t nat -I FULMAR -j RETURN"},
		"a rule of ours doubled":         {"-t mangle -A FULMAR -p tcp -m tcp --dport 9000 -m comment --comment dns-7 -j DROP"},
		"an empty chain of nobody":       {"-t nat -N FULMAR-5"},
		"a jump to it":                   {"-t nat -N FULMAR-5", "-t nat -A FULMAR -p tcp --dport 9 -j FULMAR-5"},
	}
	for name, commands := range harm {
		t.Run(name, func(t *testing.T) {
			k := freshKernel(t, IPTables)
			apply(t, k, someWant())
			for _, command := range commands {
				run(t, "iptables", strings.Fields(command)...)
			}
			if plan := planFor(t, k, someWant()); !plan.Changes() && !plan.Removes() && len(plan.Late) == 0 {
				t.Fatal("not seen")
			}
			apply(t, k, someWant())
		})
	}
}

func TestRulesThatNoRecordExplainsStay(t *testing.T) {
	eachBackend(t, rulesThatNoRecordExplainsStay)
}

func rulesThatNoRecordExplainsStay(t *testing.T, k *Kernel) {
	apply(t, k, someWant())
	want := someWant()
	want.Live, want.Draining = want.Live[1:], nil
	want.Gone = func(_ string, generation uint64) bool { return generation == 42 }
	kernels := []*Kernel{k}
	for _, backend := range []Backend{k.backend, IPTables, NFTables} { // of another process, which made nothing of it
		other, err := NewKernel(backend)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		kernels = append(kernels, other)
	}
	for i, k := range kernels {
		plan := planFor(t, k, want)
		if diff := cmp.Diff([]string{"web-43"}, plan.Unexplained); diff != "" {
			t.Errorf("unexplained to kernel %d (-want +got):\n%s", i, diff)
		}
		if err := errors.Join(k.Install(t.Context(), plan), k.Tidy(t.Context(), plan)); err != nil {
			t.Fatal(err)
		}
		if got := run(t, "iptables-save") + run(t, "nft", "add table ip fulmar; list table ip fulmar"); strings.Contains(got, "web-42") || !strings.Contains(got, "web-43") {
			t.Errorf("what kernel %d left:\n%s", i, got)
		}
	}
}

func TestTune(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.Bridge(t, "br-tune", netip.MustParsePrefix("10.77.0.1/24"))
	n := Network{"br-tune", netip.MustParsePrefix("10.77.0.0/24")}
	if err := Tune(n.Sysctls()); err != nil {
		t.Fatal(err)
	}
	for path, want := range n.Sysctls() {
		if got, err := os.ReadFile("/proc/sys/" + path); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v", path, got, err)
		}
	}
	if err := Tune(Network{"br-none", n.Prefix}.Sysctls()); err == nil || !strings.Contains(err.Error(), "br-none/route_localnet") {
		t.Errorf("a bridge that is not there: %v", err)
	}
}

func BenchmarkPublish(b *testing.B) {
	nstest.NeedRoot(b)
	for _, backend := range []Backend{IPTables, NFTables} {
		for _, n := range []int{10, 1000} {
			b.Run(fmt.Sprintf("%s beside %d stacks", backend, n), func(b *testing.B) { benchmarkPublish(b, backend, n) })
		}
	}
}

func benchmarkPublish(b *testing.B, backend Backend, n int) {
	k, err := NewKernel(backend)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(k.Close)
	want := Want{Gone: func(string, uint64) bool { return true }}
	for i := range n {
		want.Live = append(want.Live, Publication{"other", uint64(i + 1), []Port{{"tcp", uint16(i + 1), netip.MustParseAddr("10.77.0.2"), 80}}})
	}
	have, err := k.Read(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	plan := NewPlan(want, have)
	if err := errors.Join(k.Install(b.Context(), plan), k.Tidy(b.Context(), plan)); err != nil {
		b.Fatal(err)
	}
	rest, old := want.shown(), []Publication{}
	for i := 0; b.Loop(); i++ {
		pub := Publication{"web", uint64(100000 + i), []Port{{"tcp", 60000, netip.MustParseAddr("10.77.0.3"), 80}, {"udp", 60000, netip.MustParseAddr("10.77.0.3"), 80}}}
		for _, p := range old {
			rest = append(rest[:n], Shown{p, true})
		}
		if err := k.Publish(b.Context(), pub, slices.Values(rest)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := k.Remove(b.Context(), old, old, slices.Values(append(rest[:n], Shown{pub, true}))); err != nil {
			b.Fatal(err)
		}
		old = []Publication{pub}
		b.StartTimer()
	}
}
