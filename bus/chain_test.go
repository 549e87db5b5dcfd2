package bus_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func (w *world) wantChain(stack string, generation uint64, want ...messages.Verb) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.chain(stack, generation)); diff != "" {
		w.t.Errorf("events of %s (-want +got):\n%s", messages.DeploymentName(stack, generation), diff)
	}
}

func TestAnEventHasOneSuccessor(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if err := w.Say(ctx, event("web", 42, messages.Accepted), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Say(ctx, event("web", 42, messages.Rejected), 0); !errors.Is(err, bus.ErrMoved) {
		t.Errorf("a second first event gives %v, want ErrMoved", err)
	}
	e, first, err := w.Last(ctx, "web", 42)
	if err != nil || e.GetVerb() != "accepted" || e.GetService() != "test" || e.GetTime() == nil {
		t.Fatalf("last is %v, %v", e, err)
	}
	if err := w.Say(ctx, event("web", 42, messages.Built), first); err != nil {
		t.Fatal(err)
	}
	if err := w.Say(ctx, event("web", 42, messages.Failed), first); !errors.Is(err, bus.ErrMoved) {
		t.Errorf("a second successor gives %v, want ErrMoved", err)
	}
	if err := w.Say(ctx, event("web", 43, messages.Accepted), 0); err != nil {
		t.Errorf("another deployment has a chain of its own, got %v", err)
	}
	w.wantChain("web", 42, messages.Accepted, messages.Built)
	if e, seq, err := w.Last(ctx, "web", 44); e != nil || seq != 0 || err != nil {
		t.Errorf("a deployment of which nothing was said has %v, %d, %v as its last event", e, seq, err)
	}
}

func TestAnObservationIsNoStep(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.say("web", 42, messages.Published)
	_, before, err := w.Last(ctx, "web", 42)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Observe(ctx, messages.Exited, event("web", 42, "").GetDeployment(), "web", "exited with status 1"); err != nil {
		t.Fatal(err)
	}
	if got := w.await(messages.Exited); got.GetUnit() != "web" || got.GetReason() != "exited with status 1" {
		t.Errorf("observed %v", got)
	}
	if _, after, err := w.Last(ctx, "web", 42); err != nil || after != before {
		t.Errorf("the chain moved from %d to %d, %v", before, after, err)
	}
	if err := w.Say(ctx, event("web", 42, messages.Drained), before); err != nil {
		t.Errorf("the chain does not go on after an observation: %v", err)
	}
}

func TestForgottenAcksRepeatNothing(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int32
	handle := func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		calls.Add(1)
		return messages.Leased, nil
	}
	w.say("web", 42, messages.Built)
	stop := w.step(w.replica(bus.Options{}), lease(handle))
	w.settled("lease", "+ACK")
	stop()
	w.forget(messages.EventStream, "lease")
	w.step(w.replica(bus.Options{}), lease(handle))
	w.settled("lease", "+ACK")
	w.wantChain("web", 42, messages.Built, messages.Leased)
	if calls.Load() != 1 {
		t.Errorf("the handler ran %d times for an event that has its successor", calls.Load())
	}
}

func TestTwoWorkersAtOnceMakeOneSuccessor(t *testing.T) {
	w := newWorld(t)
	var meet sync.WaitGroup // both have looked and found that it is their turn
	meet.Add(2)
	handle := func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		meet.Done()
		meet.Wait()
		return messages.Leased, nil
	}
	w.say("web", 42, messages.Built)
	for _, name := range []string{"lease-1", "lease-2"} {
		s := lease(handle)
		s.Name = name
		w.step(w.replica(bus.Options{}), s)
	}
	both := map[string]bool{}
	for len(both) < 2 {
		msg, err := w.acks.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if string(msg.Data) == "+ACK" {
			both[msg.Subject] = true
		}
	}
	w.wantChain("web", 42, messages.Built, messages.Leased)
}

func TestACrashBeforePublishIsMadeGood(t *testing.T) {
	w := newWorld(t)
	w.say("web", 42, messages.Built)
	crashing, crash := context.WithCancel(t.Context())
	died := make(chan error, 1)
	b := w.replica(bus.Options{})
	go func() {
		died <- b.Run(crashing, lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
			b.NC.Close() // the effect is done; nothing will be said or settled
			crash()
			return messages.Leased, nil
		}))
	}()
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	w.wantChain("web", 42, messages.Built)
	w.step(w.replica(bus.Options{}), lease(answers(messages.Leased)))
	w.await(messages.Leased)
	w.wantChain("web", 42, messages.Built, messages.Leased)
}

func TestTheLastEventMayBeUnreadable(t *testing.T) {
	w := newWorld(t)
	subject := messages.StepSubject("web", 42, messages.Leased, "host1")
	if _, err := w.JS.Publish(t.Context(), subject, []byte("\xff")); err != nil {
		t.Fatal(err)
	}
	e, seq, err := w.Last(t.Context(), "web", 42)
	if err != nil || seq == 0 {
		t.Fatalf("last is %d, %v", seq, err)
	}
	if e.GetVerb() != "leased" || e.GetDeployment().GetStack() != "web" || e.GetDeployment().GetNetwork().GetHost() != "host1" {
		t.Errorf("its subject says more than %v", e)
	}
}
