package ipam

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Every handler may run again after any crash, and twice at once.

func (w *world) wantChain(stack string, generation uint64, want ...messages.Verb) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.chain(stack, generation)); diff != "" {
		w.t.Errorf("events of %s (-want +got):\n%s", messages.DeploymentName(stack, generation), diff)
	}
}

// forget makes the bus forget every acknowledgement of a step.
func (w *world) forget(consumer string) {
	w.t.Helper()
	if err := w.JS.DeleteConsumer(w.t.Context(), messages.EventStream, consumer); err != nil {
		w.t.Fatal(err)
	}
}

func TestLeaseAfterACrashBetweenClaimAndHead(t *testing.T) {
	w := newWorld(t, lan())
	e := w.built("web", 7, unit("a", "i1"), unit("b", "i1"))
	died := w.replica(calm())
	if _, err := died.assign(t.Context(), w.head("web"), proto.CloneOf(e.GetDeployment())); err != nil {
		t.Fatal(err)
	}
	claimed := w.leases()
	w.start(calm())
	w.await(7, messages.Leased)
	if diff := cmp.Diff(claimed, w.leases()); diff != "" {
		t.Errorf("what was claimed is used (-claimed +after):\n%s", diff)
	}
	w.wantChain("web", 7, messages.Built, messages.Leased)
}

func TestLeaseAfterACrashBetweenHeadAndPublish(t *testing.T) {
	w := newWorld(t, lan())
	e := w.built("web", 7, unit("a", "i1", "--ip={{.IP}}"), unit("b", "i1"))
	died := proto.CloneOf(e)
	if verb, err := w.replica(calm()).lease(t.Context(), died); verb != messages.Leased || err != nil {
		t.Fatal(verb, err)
	}
	before := w.head("web")
	w.start(calm())
	got := w.await(7, messages.Leased)
	if diff := cmp.Diff(died.GetDeployment().GetUnits(), got.GetDeployment().GetUnits(), protoCompare()); diff != "" {
		t.Errorf("units (-first try +second):\n%s", diff)
	}
	if diff := cmp.Diff(before, w.head("web"), protoCompare()); diff != "" {
		t.Errorf("the head changed again:\n%s", diff)
	}
	if len(w.leases()) != 2 {
		t.Errorf("leases: %v", w.leases())
	}
	w.wantChain("web", 7, messages.Built, messages.Leased)
}

func TestLeaseByTwoReplicasAtOnce(t *testing.T) {
	w := newWorld(t, lan())
	e := w.built("web", 7, unit("a", "i1"), unit("b", "i1"))
	type result struct {
		verb messages.Verb
		err  error
	}
	results := make(chan result)
	for _, s := range []*Service{w.replica(calm()), w.replica(calm())} {
		go func() {
			verb, err := s.lease(t.Context(), proto.CloneOf(e))
			results <- result{verb, err}
		}()
	}
	done := 0
	for range 2 {
		if r := <-results; r.err == nil && r.verb == messages.Leased {
			done++ // the other one may have met its write; it would be called again
		}
	}
	if done == 0 {
		t.Fatal("neither of them did it")
	}
	entry := messages.Find(w.head("web"), 7)
	w.start(Config{Rest: time.Minute, Sweep: 20 * time.Millisecond})
	w.await(7, messages.Leased)
	// An address that the slower one claimed for nothing is swept, and the others stay.
	changed := w.watchLeases()
	for w.countHeld() != len(entry.GetInstances()) {
		<-changed
	}
	for _, i := range entry.GetInstances() {
		if got := w.leases()[i.GetAddress()]; got != i.GetName() {
			t.Errorf("%s is held by %q, the head says %s", i.GetAddress(), got, i.GetName())
		}
	}
}

func (w *world) countHeld() int {
	w.t.Helper()
	held := 0
	for _, instance := range w.leases() {
		if instance != "resting" {
			held++
		}
	}
	return held
}

// watchLeases gives a channel that receives after changes of leases.
func (w *world) watchLeases() <-chan struct{} {
	w.t.Helper()
	v := w.Leases.View()
	w.background(v.Run)
	c := make(chan struct{}, 1)
	w.background(func(ctx context.Context) error {
		for {
			changed := v.Changed()
			select {
			case c <- struct{}{}:
			default:
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return c
}

func TestForgottenAcksLeaseNothingTwice(t *testing.T) {
	w := newWorld(t, lan())
	stop := w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	w.await(7, messages.Leased)
	stop()
	before := w.leases()
	w.forget("ipam-lease")
	w.start(calm())
	w.built("web", 8, unit("a", "i2"))
	w.await(8, messages.Leased) // it comes after the old one
	w.wantChain("web", 7, messages.Built, messages.Leased)
	after := w.leases()
	if len(after) != 2 {
		t.Errorf("leases: %v", after)
	}
	for a, i := range before {
		if after[a] != i {
			t.Errorf("%s went from %s to %s", a, i, after[a])
		}
	}
}

func TestNothingIsLeasedForWhatIsCondemned(t *testing.T) {
	w := newWorld(t, lan())
	e := w.built("web", 7, unit("a", "i1"))
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnFailed(h, 7) })
	if verb, err := w.replica(calm()).lease(t.Context(), e); verb != "" || err != nil {
		t.Errorf("it says %q, %v", verb, err)
	}
	if got := w.leases(); len(got) != 0 {
		t.Errorf("leases: %v", got)
	}
}

// stopped brings a leased deployment down to where vmm has stopped its instances.
func (w *world) stopped(e *fulmarv1.Event) *fulmarv1.Event {
	w.t.Helper()
	d := e.GetDeployment()
	w.say(e, messages.Failed)
	w.edit(d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnFailed(h, d.GetGeneration()) })
	d.Dying = messages.Dying(w.head(d.GetStack()), d.GetGeneration())
	w.say(e, messages.Drained)
	return e
}

func TestRetire(t *testing.T) {
	w := newWorld(t, lan())
	w.start(calm())
	w.built("web", 7, unit("a", "i1"), unit("b", "i1"))
	e := w.stopped(w.await(7, messages.Leased))
	deadline := e.GetDeployment().GetDeadline().AsTime()
	w.say(e, messages.Stopped)
	w.await(7, messages.Retired)
	if d := messages.Find(w.head("web"), 7); d != nil {
		t.Errorf("the head still has %v", d)
	}
	all, err := w.Leases.All(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("leases: %v, %v", all, err)
	}
	for key, l := range all {
		if want := deadline.Add(time.Minute); !l.GetRestingUntil().AsTime().Equal(want) {
			t.Errorf("%s rests until %s, want a minute after the deadline, %s", key, l.GetRestingUntil().AsTime(), want)
		}
	}
}

// TestRestHeedsOlderDeadlines retires an instance that was made by a deployment with a later deadline than the last one that
// kept it: until then a frozen worker of the older one could start it again.
func TestRestHeedsOlderDeadlines(t *testing.T) {
	w := newWorld(t, lan())
	w.start(calm())
	first := w.accepted("web", 7, time.Hour, unit("a", "i1"))
	w.say(first, messages.Built)
	w.await(7, messages.Leased)
	w.publish("web", 7)
	w.built("web", 8, unit("a", "i1"))
	kept := w.await(8, messages.Leased)
	w.publish("web", 8)
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnDrained(h, 7) })
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Retire(h, 7) })
	w.accepted("web", 9, time.Minute)
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.SetInstances(h, 9, nil, nil) })
	w.publish("web", 9)
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.CondemnDrained(h, 8) })
	kept.Deployment.Dying = messages.Dying(w.head("web"), 8)
	w.say(kept, messages.Drained)
	w.say(kept, messages.Stopped)
	w.await(8, messages.Retired)
	all, err := w.Leases.All(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("leases: %v, %v", all, err)
	}
	want := first.GetDeployment().GetDeadline().AsTime().Add(time.Minute)
	for _, l := range all {
		if !l.GetRestingUntil().AsTime().Equal(want) {
			t.Errorf("it rests until %s, want %s", l.GetRestingUntil().AsTime(), want)
		}
	}
}

func TestRetireAgain(t *testing.T) {
	w := newWorld(t, lan())
	stop := w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	e := w.stopped(w.await(7, messages.Leased))
	stop()
	e.Verb = string(messages.Stopped)
	for _, s := range []*Service{w.replica(calm()), w.replica(calm())} { // a crash before publish, and once more
		if verb, err := s.retire(t.Context(), proto.CloneOf(e)); verb != messages.Retired || err != nil {
			t.Fatalf("it says %q, %v", verb, err)
		}
	}
	before, err := w.Leases.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.say(e, messages.Stopped)
	w.start(calm())
	w.await(7, messages.Retired)
	after, err := w.Leases.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after, protoCompare()); diff != "" {
		t.Errorf("leases changed again:\n%s", diff)
	}
	w.wantChain("web", 7, messages.Built, messages.Leased, messages.Failed, messages.Drained, messages.Stopped, messages.Retired)
}

func TestRetireLeavesWhatHasANewHolder(t *testing.T) {
	w := newWorld(t, lan())
	w.start(calm())
	w.built("web", 7, unit("a", "i1"))
	e := w.stopped(w.await(7, messages.Leased))
	address := e.GetDeployment().GetDying()[0].GetAddress()
	key := messages.LeaseKey("lan", address)
	if _, err := w.Leases.Edit(t.Context(), key, func(*fulmarv1.Lease) (*fulmarv1.Lease, error) { return &fulmarv1.Lease{Instance: "dns.a.5"}, nil }); err != nil {
		t.Fatal(err)
	}
	w.say(e, messages.Stopped)
	w.await(7, messages.Retired)
	if got := w.leases()[address]; got != "dns.a.5" {
		t.Errorf("the address of another is %s", got)
	}
}

func TestRetireFreesWhatWasClaimedForNothing(t *testing.T) {
	w := newWorld(t, lan())
	e := w.built("web", 7, unit("a", "i1"))
	if _, err := w.replica(calm()).assign(t.Context(), w.head("web"), proto.CloneOf(e.GetDeployment())); err != nil {
		t.Fatal(err)
	}
	w.stopped(e) // it failed before its head was written: nothing of it is dying
	w.say(e, messages.Stopped)
	w.start(calm())
	w.await(7, messages.Retired)
	for a, i := range w.leases() {
		if i != "resting" {
			t.Errorf("%s is held by %s", a, i)
		}
	}
	if len(w.leases()) != 1 {
		t.Errorf("leases: %v", w.leases())
	}
}
