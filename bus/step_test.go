package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestAStepAddsItsFactsToTheDeployment(t *testing.T) {
	w := newWorld(t)
	w.step(w.replica(bus.Options{Service: "ipam"}), lease(func(_ context.Context, e *fulmarv1.Event) (messages.Verb, error) {
		e.GetDeployment().Units = []*fulmarv1.Unit{{Name: "web", Kept: true}}
		return messages.Leased, nil
	}))
	w.say("web", 42, messages.Built)
	e := w.await(messages.Leased)
	if e.GetService() != "ipam" || e.GetReason() != "" || !e.GetDeployment().GetUnits()[0].GetKept() || e.GetDeployment().GetNetwork().GetName() != "lan" {
		t.Errorf("got %v", e)
	}
}

func TestARefusalFailsADeploymentOnItsWayUp(t *testing.T) {
	w := newWorld(t)
	w.step(w.replica(bus.Options{}), lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		return "", fmt.Errorf("unit web: %w", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED, "network lan is full"))
	}))
	w.say("web", 42, messages.Built)
	e := w.await(messages.Failed)
	if e.GetReason() != "unit web: network lan is full" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED {
		t.Errorf("got %v", e)
	}
	w.settled("lease", "+ACK")
	w.wantChain("web", 42, messages.Built, messages.Failed)
}

func TestARefusalOnTheWayDownIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int32
	w.step(w.replica(bus.Options{}), bus.Step{Name: "stop", Hears: []messages.Verb{messages.Drained}, Handle: func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		if calls.Add(1) < 3 {
			return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_START, "the daemon says no")
		}
		return messages.Stopped, nil
	}})
	w.say("web", 42, messages.Drained)
	w.await(messages.Stopped)
	w.wantChain("web", 42, messages.Drained, messages.Stopped)
}

func TestAnErrorIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int32
	w.step(w.replica(bus.Options{}), lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		switch calls.Add(1) {
		case 1:
			return "", errors.New("the store is away")
		case 2:
			return "", bus.Later(time.Millisecond)
		}
		return messages.Leased, nil
	}))
	w.say("web", 42, messages.Built)
	w.await(messages.Leased)
	w.wantChain("web", 42, messages.Built, messages.Leased)
}

func TestNothingToSay(t *testing.T) {
	w := newWorld(t)
	w.step(w.replica(bus.Options{}), lease(answers("")))
	w.say("web", 42, messages.Built)
	w.settled("lease", "+ACK")
	w.wantChain("web", 42, messages.Built)
}

func TestAnUnreadableEventFailsItsDeployment(t *testing.T) {
	other, err := proto.Marshal(event("dns", 42, messages.Built))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body   []byte
		reason string
	}{
		"what is no message":                    {[]byte("\xff"), "the event built cannot be read: "},
		"a message about another deployment":    {other, "the event built cannot be read: its deployment is not the one of its subject"},
		"nothing, which is a message of nobody": {nil, "the event built cannot be read: its deployment is not the one of its subject"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.step(w.replica(bus.Options{}), lease(answers(messages.Leased)))
			if _, err := w.JS.Publish(t.Context(), messages.StepSubject("web", 42, messages.Built, "host1"), c.body); err != nil {
				t.Fatal(err)
			}
			e := w.await(messages.Failed)
			if e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_UNREADABLE || e.GetReason()[:len(c.reason)] != c.reason {
				t.Errorf("got %v", e)
			}
			if e.GetDeployment().GetNetwork().GetHost() != "host1" {
				t.Errorf("nobody on the host hears of it: %v", e)
			}
			w.say("web", 43, messages.Built) // it is out of the way
			w.await(messages.Leased)
			w.wantChain("web", 42, messages.Built, messages.Failed)
		})
	}
}

func TestAStepHearsItsVerbsOfItsHost(t *testing.T) {
	w := newWorld(t)
	heard := make(chan string, 10)
	w.step(w.replica(bus.Options{}), bus.Step{
		Name: "gc-host1", Hears: []messages.Verb{messages.Published, messages.Failed}, Host: "host1",
		Handle: func(_ context.Context, e *fulmarv1.Event) (messages.Verb, error) {
			heard <- e.GetVerb() + " " + e.GetDeployment().GetStack()
			return "", nil
		},
	})
	elsewhere := event("far", 1, messages.Published)
	elsewhere.Deployment.Network.Host = "host2"
	if err := w.Say(t.Context(), elsewhere, 0); err != nil {
		t.Fatal(err)
	}
	w.say("web", 2, messages.Healthy)
	w.say("web", 3, messages.Published)
	w.settled("gc-host1", "+ACK")
	w.say("web", 4, messages.Failed)
	w.settled("gc-host1", "+ACK")
	close(heard)
	var got []string
	for h := range heard {
		got = append(got, h)
	}
	if diff := cmp.Diff([]string{"published web", "failed web"}, got); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
}

func TestOneThatIsBlockedBlocksNobodyElse(t *testing.T) {
	w := newWorld(t)
	var others sync.WaitGroup
	others.Add(2)
	w.step(w.replica(bus.Options{}), lease(func(_ context.Context, e *fulmarv1.Event) (messages.Verb, error) {
		if e.GetDeployment().GetGeneration() == 1 {
			others.Wait() // a newer one of its own stack, and one of another stack
		} else {
			others.Done()
		}
		return messages.Leased, nil
	}))
	w.say("web", 1, messages.Built)
	w.say("web", 2, messages.Built)
	w.say("dns", 3, messages.Built)
	for range 3 {
		w.await(messages.Leased)
	}
}

func TestALongHandlerIsNotRunTwice(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var calls atomic.Int32
	w.step(w.replica(bus.Options{AckWait: 200 * time.Millisecond}), lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		calls.Add(1)
		<-release
		return messages.Leased, nil
	}))
	w.say("web", 42, messages.Built)
	for range 12 { // each a quarter of the ack wait
		w.settled("lease", "+WPI")
	}
	close(release)
	w.settled("lease", "+ACK")
	if calls.Load() != 1 {
		t.Errorf("the handler ran %d times while it worked", calls.Load())
	}
}

func TestADeadWorkersEventGoesToAnother(t *testing.T) {
	w := newWorld(t)
	b := w.replica(bus.Options{AckWait: 100 * time.Millisecond})
	began, release := make(chan struct{}), make(chan struct{})
	stop := w.step(b, lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		close(began)
		<-release
		return messages.Leased, nil
	}))
	w.say("web", 42, messages.Built)
	<-began
	b.NC.Close() // for the bus it is as if its process was gone
	w.step(w.replica(bus.Options{AckWait: 100 * time.Millisecond}), lease(answers(messages.Leased)))
	w.await(messages.Leased)
	close(release)
	stop()
	w.wantChain("web", 42, messages.Built, messages.Leased)
}

// TestAStopHandsBack stops a worker that has an event in hand and many more before it. With an ack wait of an hour, another
// worker gets them only if they were handed back.
func TestAStopHandsBack(t *testing.T) {
	const events = 100
	w := newWorld(t)
	o := bus.Options{AckWait: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	full := make(chan struct{})
	stopped := make(chan error, 1)
	b := w.replica(o)
	go func() {
		stopped <- b.Run(ctx, lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
			if calls.Add(1) == 64 {
				close(full) // all hands are full
			}
			<-ctx.Done()
			return "", errors.New("interrupted")
		}))
	}()
	for g := range uint64(events) {
		w.say("web", g+1, messages.Built)
	}
	<-full
	cancel()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	w.step(w.replica(o), lease(answers(messages.Leased)))
	for range events {
		w.await(messages.Leased)
	}
}

func TestWatchIsToldWhateverWasSaidSince(t *testing.T) {
	w := newWorld(t)
	w.say("web", 42, messages.Published)
	w.say("web", 42, messages.Drained)
	var calls atomic.Int32
	w.start(func(ctx context.Context) error {
		return w.replica(bus.Options{}).Watch(ctx, bus.Step{Name: "gc", Hears: []messages.Verb{messages.Published}, Handle: func(_ context.Context, e *fulmarv1.Event) (messages.Verb, error) {
			if calls.Add(1) == 1 {
				return "", bus.Later(time.Millisecond)
			}
			return messages.Stopped, nil // a watch says nothing
		}})
	})
	w.settled("gc", "+ACK")
	w.wantChain("web", 42, messages.Published, messages.Drained)
	if calls.Load() != 2 {
		t.Errorf("the handler ran %d times, want 2", calls.Load())
	}
}
