package ipam

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func protoCompare() cmp.Option { return protocmp.Transform() }

func (w *world) wantFailed(generation uint64, awaits messages.Verb) {
	w.t.Helper()
	e := w.await(generation, messages.Failed)
	if e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_DEADLINE || !strings.HasSuffix(e.GetReason(), "while it waited for "+string(awaits)) {
		w.t.Errorf("got %v", e)
	}
	if e.GetDeployment().GetNetwork().GetHost() != "host1" {
		w.t.Errorf("nobody on its host hears of it: %v", e)
	}
	if d := messages.Find(w.head("web"), generation); d.GetState() != fulmarv1.State_STATE_CONDEMNED || d.GetExpired() != e.GetReason() {
		w.t.Errorf("the head has %v", d)
	}
}

func TestADeadlinePasses(t *testing.T) {
	t.Parallel() // it waits for most of the time
	w := newWorld(t, lan())
	for range 2 { // two replicas keep it
		w.start(calm())
	}
	e := w.accepted("web", 7, 2*time.Second, unit("a", "i1"))
	w.say(e, messages.Accepted)
	w.wantFailed(7, messages.Built)
	w.wantChain("web", 7, messages.Accepted, messages.Failed)
}

func TestADeadlinePassedWhileIpamWasAway(t *testing.T) {
	w := newWorld(t, lan())
	e := w.accepted("web", 7, -time.Second, unit("a", "i1"))
	w.say(e, messages.Started)
	w.start(calm())
	w.wantFailed(7, messages.Healthy)
}

func TestACrashBetweenExpiryAndFailed(t *testing.T) {
	w := newWorld(t, lan())
	e := w.accepted("web", 7, -time.Second, unit("a", "i1"))
	w.say(e, messages.Built)
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Expire(h, 7, time.Now(), "the deadline passed while it waited for leased")
	})
	w.start(calm())
	w.wantFailed(7, messages.Leased)
	w.wantChain("web", 7, messages.Built, messages.Failed)
}

func TestADeadlineThatPassesNamesTheLastErrorOfTheTries(t *testing.T) {
	t.Parallel() // it waits for most of the time
	w := newWorld(t, lan())
	vmm := bustest.Open(t, w.server, bus.Options{Service: "vmm"})
	w.background(func(ctx context.Context) error {
		return vmm.Run(ctx, bus.Step{Name: "start", Hears: []messages.Verb{messages.Leased}, Handle: func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
			return "", errors.New("start web.a.7:\nthe host is busy \xff")
		}})
	})
	w.start(calm())
	e := w.accepted("web", 7, 6*time.Second, unit("a", "i1"))
	w.say(e, messages.Built)
	e = w.await(7, messages.Failed)
	if want := "while it waited for started: vmm: start web.a.7: the host is busy \uFFFD"; !strings.HasSuffix(e.GetReason(), want) {
		t.Errorf("the reason is %q, want one that ends in %q", e.GetReason(), want)
	}
}

// TestOneThatWasNeverAcceptedFailsAsWell is a builder that died between head and publish, for good.
func TestOneThatWasNeverAcceptedFailsAsWell(t *testing.T) {
	w := newWorld(t, lan())
	w.accepted("web", 7, -time.Second, unit("a", "i1"))
	w.start(calm())
	w.wantFailed(7, messages.Accepted)
	w.wantChain("web", 7, messages.Failed)
}

func TestWhatWasPublishedInTimeIsLeftAlone(t *testing.T) {
	t.Parallel() // it waits for most of the time
	w := newWorld(t, lan())
	w.start(calm())
	e := w.accepted("web", 7, 6*time.Second, unit("a", "i1"))
	w.say(e, messages.Built)
	w.await(7, messages.Leased)
	w.publish("web", 7) // and nat dies before it says so
	late := w.accepted("dns", 8, 7*time.Second, unit("a", "i1"))
	w.say(late, messages.Accepted)
	w.await(8, messages.Failed) // later than the deadline of 7
	if d := messages.Find(w.head("web"), 7); d.GetState() != fulmarv1.State_STATE_LIVE {
		t.Errorf("the head has %v", d)
	}
	w.wantChain("web", 7, messages.Built, messages.Leased)
}

func TestTheSweepFreesOrphans(t *testing.T) {
	w := newWorld(t, lan())
	w.accepted("web", 7, time.Minute, unit("a", "i1"))
	w.accepted("web", 8, time.Minute, unit("a", "i1"))
	if err := w.Hosts.Put(t.Context(), "host1", &fulmarv1.Host{Instances: []*fulmarv1.HostInstance{
		{Name: "web.run.3", Running: true}, {Name: "web.dead.3"}, {Name: "web.a.8", Running: true},
	}}, 0); err != nil {
		t.Fatal(err)
	}
	w.edit("web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.SetInstances(h, 8, nil, []*fulmarv1.Instance{{Unit: "a", Name: "web.a.8", Network: "lan", Address: "10.0.0.8"}})
	})
	for address, instance := range map[string]string{
		"10.0.0.2":  "web.a.3",    // of a generation that is gone
		"10.0.0.3":  "web.run.3",  // as well, but it runs: the instance goes first
		"10.0.0.4":  "web.dead.3", // as well, and it has exited
		"10.0.0.5":  "web.a.7",    // about to be leased
		"10.0.0.6":  "web.a.9",    // of a generation yet to come
		"10.0.0.7":  "dns.a.3",    // of a stack that has no head
		"10.0.0.8":  "web.a.8",    // explained
		"10.0.0.9":  "web.a.8",    // a second address of the same instance
		"10.0.0.10": "printer",    // not ours
	} {
		w.lease(address, &fulmarv1.Lease{Instance: instance})
	}
	if err := w.replica(calm()).sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"10.0.0.2": "resting", "10.0.0.3": "web.run.3", "10.0.0.4": "resting", "10.0.0.5": "web.a.7", "10.0.0.6": "web.a.9",
		"10.0.0.7": "dns.a.3", "10.0.0.8": "web.a.8", "10.0.0.9": "resting", "10.0.0.10": "printer",
	}
	if diff := cmp.Diff(want, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

// TestNoTryKeepsADeadlineFromBeingKept has a stranger tell tries: one that no record can hold, and one that says of what is
// not in its subject.
func TestNoTryKeepsADeadlineFromBeingKept(t *testing.T) {
	t.Parallel() // it waits for most of the time
	w := newWorld(t, lan())
	w.start(calm())
	e := w.accepted("web", 7, 8*time.Second, unit("a", "i1", strings.Repeat("x", 8000)))
	w.say(e, messages.Built)
	w.await(7, messages.Leased)
	for _, try := range []struct{ generation, bytes int }{{7, 8<<20 - 100}, {8, 8}} {
		body, err := proto.Marshal(&fulmarv1.Event{
			Verb: string(messages.Leased), Service: "vmm", Reason: strings.Repeat("x", try.bytes), Deployment: &fulmarv1.Deployment{Stack: "web", Generation: 7},
		})
		if err == nil {
			err = w.NC.Publish(messages.TrySubject("web", uint64(try.generation)), body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e = w.await(7, messages.Failed)
	if n := len(e.GetReason()); n > 800 || !strings.Contains(e.GetReason(), ": vmm: xxxxxxxxxx") {
		t.Errorf("the reason has %d bytes: %.200s", n, e.GetReason())
	}
}
