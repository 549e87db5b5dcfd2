package gc_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/gc"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

func TestADrainWaitsForKernelAndConnections(t *testing.T) {
	w := newWorld(t)
	open := connect(t)
	long := entry(5, draining, instance(5))
	long.Content.Drain = durationpb.New(24 * time.Hour)
	w.head(6, long, entry(6, live, instance(6)))
	w.say(messages.Published, 5)
	w.say(messages.Published, 6)
	w.gc(never)
	w.awaitPlan("web-5 wait: the kernel still leads clients to it")

	unpublish(t)
	w.awaitPlan("web-5 wait: 1 connections are open")
	if s := w.state(5); s != draining {
		t.Errorf("with an open connection it is %v", s)
	}
	w.last(5, messages.Published)

	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	e := w.chain(5, messages.Published, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(5)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	if s := w.state(5); s != condemned {
		t.Errorf("drained was said while it is %v", s)
	}
}

func TestADrainDoesNotWaitForTheConnectionsOfWhatHasExited(t *testing.T) {
	w := newWorld(t)
	connect(t) // and nobody ends it: its entry stays for days
	exited := &fulmarv1.Host{Name: "h1", Instances: []*fulmarv1.HostInstance{{Name: "web.web.5", Exit: "exited with status 1"}}}
	if err := w.bus.Hosts.Put(t.Context(), "h1", exited, 0); err != nil {
		t.Fatal(err)
	}
	long := entry(5, draining, instance(5))
	long.Content.Drain = durationpb.New(24 * time.Hour)
	w.head(6, long, entry(6, live, instance(6)))
	w.say(messages.Published, 5)
	w.say(messages.Published, 6)
	w.gc(never)
	w.awaitPlan("web-5 wait: the kernel still leads clients to it")
	unpublish(t)
	w.chain(5, messages.Published, messages.Drained)
}

func TestADrainEndsWithItsTime(t *testing.T) {
	w := newWorld(t)
	connect(t)
	unpublish(t)
	short := entry(5, draining, instance(5))
	short.Content.Drain = durationpb.New(600 * time.Millisecond)
	w.head(6, short, entry(6, live, instance(6)))
	w.say(messages.Published, 6)
	w.gc(never)
	w.chain(5, messages.Drained)
	if early := time.Until(short.GetDrainingSince().AsTime().Add(600 * time.Millisecond)); early > 0 {
		t.Errorf("it was drained %s before its time was over, with a connection open", early)
	}
}

func TestWhatIsKeptIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(5, draining, instance(5)), entry(6, live, instance(5)))
	w.say(messages.Published, 6)
	w.gc(never)
	if e := w.chain(5, messages.Drained); len(e.GetDeployment().GetDying()) > 0 {
		t.Errorf("dying: %v, which generation 6 refers to", e.GetDeployment().GetDying())
	}
}

func TestWhatHasFailedGoes(t *testing.T) {
	w := newWorld(t)
	w.gc(never)
	w.head(6, entry(5, live, instance(5)), entry(6, underway, instance(5), instance(6)), entry(7, underway))
	w.say(messages.Started, 6)
	w.say(messages.Started, 7)
	w.say(messages.Failed, 6)
	e := w.chain(6, messages.Started, messages.Failed, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(6)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	if w.state(5) != live || w.state(7) != underway {
		t.Errorf("the others are %v and %v", w.state(5), w.state(7))
	}
}

func TestTheSweepNeedsNoEvents(t *testing.T) {
	w := newWorld(t)
	expired := entry(5, condemned, instance(5))
	expired.Expired = "not healthy within 1m0s"
	lost := entry(6, condemned, instance(6)) // nothing is left of its log
	elsewhere := entry(8, condemned, instance(8))
	elsewhere.Host = "h2"
	w.head(9, expired, lost, entry(7, underway, instance(7)), elsewhere, entry(9, draining, instance(9)))
	w.say(messages.Started, 5)
	w.say(messages.Failed, 7)
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "gc-h1"); err == nil {
		t.Fatal("there is a consumer already")
	}
	w.gc(50 * time.Millisecond)

	next := w.follow(5)
	next()
	if e := next(); e.GetVerb() != "failed" || e.GetReason() != expired.GetExpired() || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_DEADLINE || len(e.GetDeployment().GetDying()) > 0 {
		t.Errorf("first came %v", e)
	}
	if e := next(); e.GetVerb() != "drained" || len(e.GetDeployment().GetDying()) != 1 {
		t.Errorf("then came %v", e)
	}
	e := w.chain(6, messages.Drained)
	want := &fulmarv1.Deployment{
		Stack: "web", Generation: 6, Network: &fulmarv1.Network{Name: "n1", Host: "h1"}, Content: lost.GetContent(),
		Deadline: lost.GetDeadline(), Dying: []*fulmarv1.Instance{instance(6)},
	}
	if diff := cmp.Diff(want, e.GetDeployment(), protocmp.Transform()); diff != "" {
		t.Errorf("the deployment whose log is lost (-want +got):\n%s", diff)
	}
	w.chain(7, messages.Failed, messages.Drained)
	w.chain(9, messages.Drained)
	if e, _, err := w.bus.Last(t.Context(), "web", 8); e != nil || err != nil {
		t.Errorf("of a deployment on another host: %v, %v", e, err)
	}
}

func TestACrashBeforeDrainedAndForgottenAcksDrainOnce(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(5, condemned, instance(5)), entry(6, live, instance(6))) // condemned by a gc that died then
	w.say(messages.Published, 5)
	w.say(messages.Published, 6)
	stop := w.gc(never)
	w.chain(5, messages.Published, messages.Drained)
	stop()
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "gc-h1"); err != nil { // every ack is forgotten
		t.Fatal(err)
	}
	w.gc(50 * time.Millisecond)
	w.head(8, entry(5, condemned, instance(5)), entry(6, live, instance(6)), entry(8, underway, instance(8)))
	w.say(messages.Failed, 8) // comes after those that are delivered again
	w.chain(8, messages.Failed, messages.Drained)
	w.last(5, messages.Drained)
	if n := w.count(5, messages.Drained); n != 1 {
		t.Errorf("drained was said %d times", n)
	}
}

func TestTwoReplicasDrainOnce(t *testing.T) {
	w := newWorld(t)
	w.gc(never)
	w.gc(never)
	w.awaitPlan()
	for g := uint64(1); g <= 20; g++ {
		w.head(g, entry(g, underway, instance(g)))
		w.say(messages.Failed, g)
		if _, err := w.bus.Sweep(t.Context(), "h1", false); err != nil { // both hear it, and both sweep
			t.Fatal(err)
		}
		w.chain(g, messages.Failed, messages.Drained)
	}
	for g := uint64(1); g <= 20; g++ {
		if n := w.count(g, messages.Drained); n != 1 {
			t.Errorf("drained was said %d times of web-%d", n, g)
		}
	}
}

func TestOnlyProvenOrphansAreSwept(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(6, live, instance(6)))
	w.say(messages.Retired, 3)
	running := func(names ...string) *fulmarv1.Host {
		h := &fulmarv1.Host{Name: "h1", Instances: []*fulmarv1.HostInstance{{Name: "web.web.2", Exit: "exited"}}}
		for _, n := range names {
			h.Instances = append(h.Instances, &fulmarv1.HostInstance{Name: n, Running: true})
		}
		return h
	}
	if err := w.bus.Hosts.Put(t.Context(), "h1", running("web.web.3", "web.web.6", "web.web.7", "dns.dns.1", "stranger"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.bus.Leases.Put(t.Context(), messages.LeaseKey("n1", "10.9.0.3"), &fulmarv1.Lease{Instance: "web.web.3"}, 0); err != nil {
		t.Fatal(err)
	}
	plan := func(first string) []string {
		return []string{
			first,
			"web.web.7 report: the head of stack web knows no generation after 6",
			"dns.dns.1 report: stack dns has no head",
			"stranger report: no deployment made it: its name is not STACK.UNIT.GENERATION",
		}
	}
	b := bustest.Open(t, w.server, bus.Options{Service: "gc", Host: "h1"})
	svc, err := gc.New(b, gc.Config{Host: "h1"}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	items, err := svc.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		got = append(got, fmt.Sprintf("%s %s: %s", i.Subject, i.Do, i.Why))
	}
	if diff := cmp.Diff(plan("web.web.3 drain: no deployment refers to it"), got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	w.last(3, messages.Retired) // a plan does nothing

	w.gc(50 * time.Millisecond)
	e := w.chain(3, messages.Retired, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(3)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	w.awaitPlan(plan("web.web.3 wait: it is being stopped")...)
	for _, stack := range []string{"dns", "stranger"} {
		if e, _, err := w.bus.Last(t.Context(), stack, 1); e != nil || err != nil {
			t.Errorf("of what nobody can explain: %v, %v", e, err)
		}
	}
	if n := w.count(3, messages.Drained); n != 1 {
		t.Errorf("drained was said %d times", n)
	}
}

// TestAHeadThatCannotBeReadStopsNobodyElse has garbage for the head of one stack, of which something runs, and something to
// sweep of another one.
func TestAHeadThatCannotBeReadStopsNobodyElse(t *testing.T) {
	w := newWorld(t)
	kv, err := w.bus.JS.KeyValue(t.Context(), messages.HeadBucket)
	if err == nil {
		_, err = kv.Put(t.Context(), "bad", []byte("garbage"))
	}
	if err == nil {
		err = w.bus.Hosts.Put(t.Context(), "h1", &fulmarv1.Host{Name: "h1", Instances: []*fulmarv1.HostInstance{{Name: "bad.web.1", Running: true}, {Name: "web.web.3", Running: true}}}, 0)
	}
	if err == nil { // the lease of the orphan
		err = w.bus.Leases.Put(t.Context(), messages.LeaseKey("n1", "10.9.0.3"), &fulmarv1.Lease{Instance: "web.web.3"}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.head(6, entry(5, condemned, instance(5)), entry(6, live, instance(6)))
	w.say(messages.Published, 5)
	w.gc(50 * time.Millisecond)
	w.chain(5, messages.Published, messages.Drained)
	w.chain(3, messages.Drained)
	items, err := w.bus.Sweep(t.Context(), "h1", false)
	if err != nil || len(items) == 0 || items[0].GetSubject() != "bad" || items[0].GetAction() != "report" || !strings.Contains(items[0].GetReason(), "record bad of bucket fulmar-heads cannot be read") {
		t.Errorf("a sweep says %v, %v", items, err)
	}
	for _, i := range items {
		if i.GetSubject() == "bad.web.1" && (i.GetAction() != "report" || i.GetReason() != "the head of stack bad cannot be read") {
			t.Errorf("of the instance it says %v", i)
		}
	}
	if e, _, err := w.bus.Last(t.Context(), "bad", 1); e != nil || err != nil {
		t.Errorf("of what cannot be explained: %v, %v", e, err)
	}
}
