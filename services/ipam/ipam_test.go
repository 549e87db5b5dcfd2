package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func lan() *fulmarv1.Network { return network("10.0.0.0/24", "10.0.0.1") }

func TestLease(t *testing.T) {
	w := newWorld(t, lan())
	w.start(calm())
	w.built("mail", 7, unit("smtp", "i1", "--ip={{.IP}}/{{.PrefixLen}}", `--signer={{ip "signer"}}`), unit("signer", "i2", "--gw={{.Gateway}}"))
	d := w.await(7, messages.Leased).GetDeployment()
	smtp, signer := d.GetUnits()[0], d.GetUnits()[1]
	for _, u := range d.GetUnits() {
		i := u.GetInstance()
		if i.GetName() != "mail."+u.GetName()+".7" || i.GetNetwork() != "lan" || !messages.IsDigest(i.GetDigest()) || u.GetKept() {
			t.Errorf("unit %s has %v", u.GetName(), u)
		}
	}
	a := smtp.GetInstance().GetAddress()
	if diff := cmp.Diff([]string{"--ip=" + a + "/24", "--signer=" + signer.GetInstance().GetAddress()}, smtp.GetArgs()); diff != "" {
		t.Errorf("arguments of smtp (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"--gw=10.0.0.1"}, signer.GetArgs()); diff != "" {
		t.Errorf("arguments of signer (-want +got):\n%s", diff)
	}
	want := map[string]string{a: "mail.smtp.7", signer.GetInstance().GetAddress(): "mail.signer.7"}
	if diff := cmp.Diff(want, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	entry := messages.Find(w.head("mail"), 7)
	if !entry.GetLeased() || len(entry.GetInstances()) != 2 || entry.GetInstances()[0].GetName() != "mail.smtp.7" {
		t.Errorf("the head has %v", entry)
	}
}

// next deploys the second generation of a stack whose first is live, and gives its units.
func (w *world) next(kind fulmarv1.Kind, units ...*fulmarv1.UnitSpec) []*fulmarv1.Unit {
	w.t.Helper()
	e := w.accepted("mail", 8, time.Minute, units...)
	e.Deployment.Kind = kind
	w.say(e, messages.Built)
	return w.await(8, messages.Leased).GetDeployment().GetUnits()
}

func TestWhatIsEqualIsKept(t *testing.T) {
	a, b := unit("a", "i1", `--b={{ip "b"}}`), unit("b", "i1")
	for name, c := range map[string]struct {
		kind  fulmarv1.Kind
		units []*fulmarv1.UnitSpec
		want  map[string]bool // by unit: whether it is kept
	}{
		"the same content keeps everything":          {fulmarv1.Kind_KIND_DEPLOY, []*fulmarv1.UnitSpec{a, b}, map[string]bool{"a": true, "b": true}},
		"what changed is made anew, beside the old":  {fulmarv1.Kind_KIND_DEPLOY, []*fulmarv1.UnitSpec{unit("a", "i2", `--b={{ip "b"}}`), b}, map[string]bool{"a": false, "b": true}},
		"who uses what changed is made anew as well": {fulmarv1.Kind_KIND_DEPLOY, []*fulmarv1.UnitSpec{a, unit("b", "i2")}, map[string]bool{"a": false, "b": false}},
		"a renewal keeps nothing":                    {fulmarv1.Kind_KIND_RENEW, []*fulmarv1.UnitSpec{a, b}, map[string]bool{"a": false, "b": false}},
		"a rollback keeps what is equal":             {fulmarv1.Kind_KIND_ROLLBACK, []*fulmarv1.UnitSpec{a, b}, map[string]bool{"a": true, "b": true}},
		"a retirement has no units":                  {fulmarv1.Kind_KIND_RETIRE, nil, map[string]bool{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, lan())
			w.start(calm())
			w.built("mail", 7, a, b)
			before := map[string]*fulmarv1.Instance{}
			for _, u := range w.await(7, messages.Leased).GetDeployment().GetUnits() {
				before[u.GetName()] = u.GetInstance()
			}
			w.publish("mail", 7)
			got, addresses := map[string]bool{}, map[string]bool{}
			for _, u := range w.next(c.kind, c.units...) {
				got[u.GetName()] = u.GetKept()
				addresses[u.GetInstance().GetAddress()] = true
				old := before[u.GetName()]
				if same := u.GetInstance().GetName() == old.GetName() && u.GetInstance().GetAddress() == old.GetAddress(); same != u.GetKept() {
					t.Errorf("unit %s is kept: %v, but has %v after %v", u.GetName(), u.GetKept(), u.GetInstance(), old)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
			if len(addresses) != len(c.units) {
				t.Errorf("%d units have %d addresses", len(c.units), len(addresses))
			}
			if !messages.Find(w.head("mail"), 8).GetLeased() {
				t.Error("the head does not know")
			}
		})
	}
}

func TestNobodyKeepsFromCondemned(t *testing.T) {
	w := newWorld(t, lan())
	w.start(calm())
	w.built("mail", 7, unit("a", "i1"))
	w.await(7, messages.Leased)
	w.edit("mail", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnFailed(h, 7) })
	if u := w.next(fulmarv1.Kind_KIND_DEPLOY, unit("a", "i1"))[0]; u.GetKept() {
		t.Errorf("kept %v", u.GetInstance())
	}
}

func TestAFullNetworkIsNamed(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/30", "10.0.0.1"))
	w.start(calm())
	w.built("mail", 7, unit("a", "i1"))
	w.await(7, messages.Leased)
	w.built("web", 8, unit("a", "i1"))
	e := w.await(8, messages.Failed)
	if e.GetReason() != "network lan (10.0.0.0/30) has no free address: 1 held, 0 resting" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED {
		t.Errorf("got %v", e)
	}
	if got := w.leases(); len(got) != 1 {
		t.Errorf("it costs leases: %v", got)
	}
}

func TestReservedAddressesAreNotLeased(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/29", "10.0.0.1", "10.0.0.2", "10.0.0.4/30"))
	w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	w.await(7, messages.Leased)
	if diff := cmp.Diff(map[string]string{"10.0.0.3": "web.a.7"}, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestARestingAddressIsWaitedFor(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/30", "10.0.0.1"))
	rested := time.Now().Add(400 * time.Millisecond)
	w.lease("10.0.0.2", &fulmarv1.Lease{Instance: "old.a.1", RestingUntil: timestamppb.New(rested)})
	w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	w.await(7, messages.Leased)
	if now := time.Now(); now.Before(rested) {
		t.Errorf("the address was leased %s before it had rested", rested.Sub(now))
	}
	if diff := cmp.Diff(map[string]string{"10.0.0.2": "web.a.7"}, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

// TestAnAddressWhoseHolderRunsAgain is a worker that was frozen and started an instance after it had been stopped.
func TestAnAddressWhoseHolderRunsAgain(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/30", "10.0.0.1"))
	w.lease("10.0.0.2", &fulmarv1.Lease{Instance: "old.a.1", RestingUntil: timestamppb.New(time.Now().Add(-time.Second))})
	runs := &fulmarv1.Host{Name: "host1", Instances: []*fulmarv1.HostInstance{{Name: "old.a.1", Running: true}}}
	if err := w.Hosts.Put(t.Context(), "host1", runs, 0); err != nil {
		t.Fatal(err)
	}
	e := w.built("web", 7, unit("a", "i1"))
	s := w.replica(calm())
	if verb, err := s.lease(t.Context(), proto.CloneOf(e)); verb != "" || err == nil {
		t.Fatalf("it says %q, %v", verb, err)
	} else if _, refused := messages.AsRefusal(err); refused {
		t.Fatalf("%v is final, and gc is about to stop the other", err)
	}
	if _, err := w.Hosts.Edit(t.Context(), "host1", func(*fulmarv1.Host) (*fulmarv1.Host, error) { return &fulmarv1.Host{Name: "host1"}, nil }); err != nil {
		t.Fatal(err)
	}
	if verb, err := s.lease(t.Context(), e); verb != messages.Leased || err != nil {
		t.Errorf("it says %q, %v", verb, err)
	}
}

// TestWhatWaitsForAnAddressGivesWayToWhatIsNewer has an address that rests for half a minute, and a newer deployment that
// needs none.
func TestWhatWaitsForAnAddressGivesWayToWhatIsNewer(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/30", "10.0.0.1"))
	w.lease("10.0.0.2", &fulmarv1.Lease{Instance: "old.a.1", RestingUntil: timestamppb.New(time.Now().Add(30 * time.Second))})
	for range 2 {
		w.start(calm())
	}
	w.built("web", 7, unit("a", "i1"))
	w.built("web", 8)
	w.await(8, messages.Leased)
	w.publish("web", 8)
	e := w.await(7, messages.Failed)
	if e.GetReason() != "superseded by web-8" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		t.Errorf("got %v", e)
	}
	w.wantChain("web", 7, messages.Built, messages.Failed)
	if diff := cmp.Diff(map[string]string{"10.0.0.2": "resting"}, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func TestAnAddressThatRestsBeyondTheDeadlineIsNotWaitedFor(t *testing.T) {
	w := newWorld(t, network("10.0.0.0/30", "10.0.0.1"))
	w.lease("10.0.0.2", &fulmarv1.Lease{Instance: "old.a.1", RestingUntil: timestamppb.New(time.Now().Add(time.Hour))})
	w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	if e := w.await(7, messages.Failed); e.GetReason() != "network lan (10.0.0.0/30) has no free address: 0 held, 1 resting" {
		t.Errorf("got %v", e)
	}
}

func TestANetworkThatCannotBeIsNamed(t *testing.T) {
	w := newWorld(t, network("10.0.0.0", "10.0.0.1"))
	w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	if e := w.await(7, messages.Failed); e.GetReason() != `network lan: prefix "10.0.0.0" is not an IPv4 prefix of /8 to /30` {
		t.Errorf("got %v", e)
	}
}

// TestManyClaimAtOnce has four replicas lease the addresses of sixteen stacks of three units, in a network that is just
// large enough.
func TestManyClaimAtOnce(t *testing.T) {
	const stacks = 16
	w := newWorld(t, network("10.0.0.0/26", "10.0.0.1", "10.0.0.50/31", "10.0.0.52/30", "10.0.0.56/29"))
	for range 4 {
		w.start(calm())
	}
	for g := range uint64(stacks) {
		w.built(fmt.Sprintf("s%d", g+1), g+1, unit("a", "i1"), unit("b", "i1"), unit("c", "i1"))
	}
	p := poolOf(t, w.network)
	seen := map[string]string{}
	for g := range uint64(stacks) {
		e := w.awaitAny(messages.Leased)
		for _, u := range e.GetDeployment().GetUnits() {
			i := u.GetInstance()
			if other, twice := seen[i.GetAddress()]; twice || !p.leasable(netip.MustParseAddr(i.GetAddress())) {
				t.Errorf("deployment %d: %s has %s, as %s", g, i.GetName(), i.GetAddress(), other)
			}
			seen[i.GetAddress()] = i.GetName()
		}
	}
	if diff := cmp.Diff(seen, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

func (w *world) awaitAny(verb messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	for {
		e := w.nextEvent()
		switch {
		case e.GetVerb() == string(messages.Failed):
			w.t.Fatalf("failed: %s", e.GetReason())
		case e.GetVerb() == string(verb):
			return e
		}
	}
}
