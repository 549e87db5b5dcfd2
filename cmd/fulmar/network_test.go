package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestNetworksAreAddedListedAndRemoved(t *testing.T) {
	w := newWorld(t)
	if status, _, errout := w.run("network", "add", "dmz", "10.9.0.1/24", "--bridge", "br0", "--host", "h1", "--reserved", "10.9.0.2,10.9.0.128/25"); status != 0 {
		t.Fatal(errout)
	}
	_, out, _ := w.run("network", "ls")
	if !strings.Contains(out, "dmz") || !strings.Contains(out, "10.9.0.0/24") || !strings.Contains(out, "10.9.0.2,10.9.0.128/25") {
		t.Errorf("network ls:\n%s", out)
	}
	_, out, _ = w.run("--json", "network", "ls")
	var n map[string]any
	if err := json.Unmarshal([]byte(out), &n); err != nil || n["gateway"] != "10.9.0.1" {
		t.Errorf("network ls --json: %v\n%s", err, out)
	}
	if status, _, errout := w.run("network", "rm", "dmz"); status != 0 {
		t.Error(errout)
	}
	if _, out, _ := w.run("network", "ls"); strings.Contains(out, "dmz") {
		t.Errorf("it is still there:\n%s", out)
	}
}

func TestANetworkInUseStays(t *testing.T) {
	w := newWorld(t)
	if status, _, errout := w.run("network", "add", "dmz", "10.9.0.1/24", "--bridge", "br0", "--host", "h1"); status != 0 {
		t.Fatal(errout)
	}
	if err := w.bus.Hosts.Put(t.Context(), "h1", &fulmarv1.Host{Name: "h1"}, 0); err != nil {
		t.Fatal(err)
	}
	// Nothing of it is built, because there is no such image; that it is underway is use enough.
	if status, out, _ := w.run("deploy", "web", strings.Repeat("0", 64), "--detach"); status != 0 || out != "web-1\n" {
		t.Fatalf("status %d: %s", status, out)
	}
	e := &env{ctx: t.Context(), err: t.Output()}
	if err := e.followLog(t.Context(), w.bus, 0, func(said) (bool, error) { return true, nil }, "fulmar.event.web.1.*.*"); err != nil {
		t.Fatal(err)
	}
	if status, _, errout := w.run("network", "rm", "dmz"); status != 1 || !strings.Contains(errout, "stack web uses it") {
		t.Errorf("status %d: %s", status, errout)
	}
	if _, out, _ := w.run("ps"); !strings.Contains(out, "web-1") || !strings.Contains(out, "underway") {
		t.Errorf("ps:\n%s", out)
	}
	if _, out, _ := w.run("events", "web"); !strings.Contains(out, "accepted") {
		t.Errorf("events:\n%s", out)
	}
	if _, out, _ := w.run("describe", "web"); !strings.Contains(out, "newest generation 1") {
		t.Errorf("describe:\n%s", out)
	}
}

// TestTheReservedAddressesOfANetworkInUseChange: nothing else of it does.
func TestTheReservedAddressesOfANetworkInUseChange(t *testing.T) {
	w := newSpoiledWorld(t) // web uses dmz
	add := func(more ...string) (int, string) {
		status, _, errout := w.run(append([]string{"network", "add", "dmz", "10.9.0.1/24", "--host", "h1"}, more...)...)
		return status, errout
	}
	for _, reserved := range []string{"10.9.0.2,10.9.0.128/25", "10.9.0.9"} {
		if status, errout := add("--bridge", "br0", "--reserved", reserved); status != 0 {
			t.Errorf("status %d: %s", status, errout)
		}
		if _, out, _ := w.run("network", "ls"); !strings.Contains(out, reserved) {
			t.Errorf("reserved are not %s:\n%s", reserved, out)
		}
	}
	if status, errout := add("--bridge", "br1", "--reserved", "10.9.0.9"); status != 1 || !strings.Contains(errout, "stack web uses it; retire it first, or change nothing but its reserved addresses") {
		t.Errorf("status %d: %s", status, errout)
	}
	if l, _, err := w.bus.Leases.Get(t.Context(), "dmz.10.9.0.2"); err != nil || l.GetInstance() != "web.web.1" {
		t.Errorf("the lease of an address that was reserved is %v, %v", l, err)
	}
}

func TestANetworkNeedsABridge(t *testing.T) {
	w := newQuietWorld(t)
	status, _, errout := w.run("network", "add", "lo", "10.83.0.1/30", "--bridge", "lo")
	if status != 1 || !strings.Contains(errout, "network lo: interface lo of this machine is no bridge but of type ") {
		t.Errorf("status %d: %s", status, errout)
	}
	if status, _, errout := w.run("network", "add", "lo", "10.83.0.1/30", "--bridge", "lo", "--host", "another"); status != 0 {
		t.Errorf("of another machine it is not known: status %d: %s", status, errout)
	}
}

// TestANetworkThatIsUsedMeanwhileStays is a request that is accepted between the look of network rm, or add, and its write.
func TestANetworkThatIsUsedMeanwhileStays(t *testing.T) {
	w := newWorld(t)
	e := &env{ctx: t.Context(), cli: &cli{}, out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	before := &fulmarv1.Network{Name: "dmz", Host: "h1", Bridge: "br0", Prefix: "10.9.0.0/24", Gateway: "10.9.0.1"}
	rm, add := &networkRmCmd{Name: "dmz"}, &networkAddCmd{Name: "dmz"}
	if err := rm.orBack(e, w.bus, before); err != nil {
		t.Errorf("one that nobody uses: %v", err)
	}
	head := &fulmarv1.Head{Stack: "web", Newest: 1, Deployments: []*fulmarv1.HeadDeployment{{
		Generation: 1, State: fulmarv1.State_STATE_UNDERWAY, Content: &fulmarv1.Content{Network: "dmz", Units: []*fulmarv1.UnitSpec{{Name: "web"}}},
	}}}
	if err := w.bus.Heads.Put(t.Context(), "web", head, 0); err != nil {
		t.Fatal(err)
	}
	if err := rm.orBack(e, w.bus, before); err == nil || !strings.Contains(err.Error(), "stack web uses it") {
		t.Errorf("after the removal of one that is used: %v", err)
	}
	have, rev, err := w.bus.Networks.Get(t.Context(), "dmz")
	if err != nil || !proto.Equal(have, before) {
		t.Fatalf("it is %v, %v", have, err)
	}
	changed := proto.CloneOf(before)
	changed.Bridge = "br1"
	if err := w.bus.Networks.Put(t.Context(), "dmz", changed, rev); err != nil {
		t.Fatal(err)
	}
	if err := add.orBack(e, w.bus, before); err == nil || !strings.Contains(err.Error(), "stack web uses it") {
		t.Errorf("after a change of one that is used: %v", err)
	}
	if have, _, err := w.bus.Networks.Get(t.Context(), "dmz"); err != nil || !proto.Equal(have, before) {
		t.Errorf("it is %v, %v", have, err)
	}
}

func TestLeasesAreListedUnlessTheyAreFree(t *testing.T) {
	w := newWorld(t)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(d)) }
	for address, l := range map[string]*fulmarv1.Lease{
		"10.9.0.2": {Instance: "web.web.3"}, "10.9.0.3": {Instance: "web.web.2", RestingUntil: at(time.Hour)}, "10.9.0.4": {Instance: "web.web.1", RestingUntil: at(-time.Second)},
	} {
		if err := w.bus.Leases.Put(t.Context(), messages.LeaseKey("dmz", address), l, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, out, _ := w.run("lease", "ls")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "held") || !strings.Contains(lines[1], "web.web.3") || !strings.Contains(lines[2], "resting") {
		t.Errorf("lease ls:\n%s", out)
	}
	if _, out, _ := w.run("lease", "ls", "--all"); !strings.Contains(out, "free") {
		t.Errorf("lease ls --all:\n%s", out)
	}
}
